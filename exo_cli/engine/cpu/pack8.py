"""A head's keys and values as bytes, and queries to multiply them with: how they lie, and putting them there.

Groups of 32 numbers of a key or a value share a step and a lowest number (bfloat16). A block is 32 positions:
first the steps and the lowest numbers, a group after the other, then the bytes. Of keys, four numbers of a
position stand side by side, so that a lane is a position; of values, a lane is an output. A query's numbers
are split into two bytes each (15 bits), which loses next to nothing beside what a cache does. Knows nothing
of attention.
"""

from typing import Final

from llvmlite import ir

from exo_cli.engine.cpu.attend import BLOCK
from exo_cli.engine.cpu.emit import F32, I8, I16, I32, LANES, VF, VI, Emitter, Value, native, splat
from exo_cli.engine.cpu.jit import inner

GROUP: Final = 32
"""Numbers that share a step; a head is as wide as some of them."""
STEP_BYTES: Final = 2
"""Of a step, and of a lowest number."""
SMALL = ir.VectorType(I8, LANES)
_WORDS = ir.VectorType(I32, LANES // 4)
QUERY_BYTES: Final = 4 * GROUP
"""A packed group of a query stays where its floats were: upper bytes, lower bytes, a step, a sum."""
LOWER, STEP, SUM = GROUP, 2 * GROUP, 2 * GROUP + 4
_FINEST: Final = 127 * 128
"""Steps to the largest number of a query's group."""
CODES: Final = BLOCK * GROUP
"""Bytes of a block's group of keys."""
LOWEST: Final = BLOCK * STEP_BYTES
"""From a block's steps to its lowest numbers."""
HEADS: Final = 2 * LOWEST
"""Both, of one group."""
_LEAST: Final = 1e-30
"""A group whose numbers are next to the same is one number: dividing by its step would leave float32."""
_MOST: Final = 1e30
"""What is larger becomes this, so that scores stay numbers."""


def _held(e: Emitter, x: Value) -> list[Value]:
    """A group, without what is no number."""
    b = e.b
    found = []
    for half in (0, 1):
        part = e.floats(e.at(x, 64 * half))
        part = b.select(b.fcmp_ordered("ord", part, part), part, splat(VF, 0.0))
        part = e.call("llvm.minnum.v16f32", VF, part, splat(VF, _MOST))
        found.append(e.call("llvm.maxnum.v16f32", VF, part, splat(VF, -_MOST)))
    return found


def _top(e: Emitter, parts: list[Value]) -> Value:
    larger = e.b.select(e.b.fcmp_ordered(">", *parts), *parts)
    return e.call("llvm.vector.reduce.fmax.v16f32", F32, larger)


def _upwards(e: Emitter, size: Value) -> Value:
    """What is not negative, as bfloat16 holds it, or the next above."""
    return e.b.and_(e.b.add(e.b.bitcast(size, I32), ir.Constant(I32, 0xFFFF)), ir.Constant(I32, -0x10000))


def _nearest(e: Emitter, number: Value, step: Value, least: int, most: int) -> Value:
    """How many steps; none where the step is next to nothing."""
    alive = e.b.fcmp_ordered(">", step, ir.Constant(F32, _LEAST))
    inverse = e.b.select(alive, e.b.fdiv(ir.Constant(F32, 1.0), step), ir.Constant(F32, 0.0))
    near = e.call("llvm.rint.v16f32", VF, e.b.fmul(number, e.broadcast(inverse, VF)))
    near = e.call("llvm.minnum.v16f32", VF, near, splat(VF, float(most)))
    return e.b.fptosi(e.call("llvm.maxnum.v16f32", VF, near, splat(VF, float(least))), VI)


def _group(e: Emitter, x: Value, heads: Value) -> list[Value]:
    """A group of a key or a value as bytes; its step and its lowest number go to `heads`."""
    b = e.b
    parts = _held(e, x)
    low = b.fsub(ir.Constant(F32, 0.0), _top(e, [b.fsub(splat(VF, 0.0), part) for part in parts]))
    bits = b.bitcast(low, I32)
    # Downwards: the next one of a negative number is larger in size.
    below = b.select(b.icmp_signed("<", bits, ir.Constant(I32, 0)), _upwards(e, low), bits)
    below = b.and_(below, ir.Constant(I32, -0x10000))
    low = b.bitcast(below, F32)
    step_bits = _upwards(e, b.fdiv(b.fsub(_top(e, parts), low), ir.Constant(F32, 255.0)))
    for word, at in ((step_bits, heads), (below, e.at(heads, LOWEST))):
        e.store(b.trunc(b.lshr(word, ir.Constant(I32, 16)), I16), at, 2)
    step, lowest = b.bitcast(step_bits, F32), e.broadcast(low, VF)
    return [b.trunc(_nearest(e, b.fsub(part, lowest), step, 0, 255), SMALL) for part in parts]


def _key_group(e: Emitter, x: Value, codes: Value, heads: Value) -> None:
    """To every fourth number's place of a block."""
    for half, numbers in enumerate(_group(e, x, heads)):
        words = e.b.bitcast(numbers, _WORDS)
        for four in range(_WORDS.count):
            word = e.b.extract_element(words, ir.Constant(I32, four))
            e.store(word, e.at(codes, 4 * BLOCK * (_WORDS.count * half + four)), 4)


def _value_group(e: Emitter, x: Value, codes: Value, heads: Value) -> None:
    for half, numbers in enumerate(_group(e, x, heads)):
        e.store(numbers, e.at(codes, LANES * half), 1)


def _query_group(e: Emitter, x: Value) -> None:
    """In place: 128 times the upper bytes and the lower ones are the number of steps."""
    b = e.b
    parts = _held(e, x)
    top = _top(e, [e.call("llvm.fabs.v16f32", VF, part) for part in parts])
    step = b.fdiv(top, ir.Constant(F32, float(_FINEST)))
    total: Value = ir.Constant(I32, 0)
    for half, part in enumerate(parts):
        numbers = _nearest(e, part, step, -_FINEST, _FINEST)
        upper = b.ashr(b.add(numbers, splat(VI, 64)), splat(VI, 7))
        lower = b.sub(numbers, b.shl(upper, splat(VI, 7)))
        e.store(b.trunc(upper, SMALL), e.at(x, LANES * half), 1)
        e.store(b.trunc(lower, SMALL), e.at(x, LOWER + LANES * half), 1)
        total = b.add(total, e.call("llvm.vector.reduce.add.v16i32", I32, numbers))
    e.store(step, e.at(x, STEP), 4)
    e.store(b.fmul(b.sitofp(total, F32), step), e.at(x, SUM), 4)


_key, _value = native(_key_group), native(_value_group)
pack_query = native(_query_group)
"""Takes (address of a group,)."""


def position_bytes(width: int) -> int:
    """Of one position's key, or of its value."""
    return width + 2 * STEP_BYTES * (width // GROUP)


position_bytes_here = inner(position_bytes)
"""The same, for kernels."""


@inner
def put_key8(x: int, keys: int, width: int, position: int) -> None:
    """One position's key to its place."""
    groups = width // GROUP
    start = keys + position // BLOCK * BLOCK * position_bytes_here(width)
    place = position % BLOCK
    for group in range(groups):
        codes = start + HEADS * groups + CODES * group + 4 * place
        _key((x + 4 * GROUP * group, codes, start + HEADS * group + STEP_BYTES * place))


@inner
def put_value8(x: int, values: int, width: int, position: int) -> None:
    groups = width // GROUP
    start = values + position // BLOCK * BLOCK * position_bytes_here(width)
    place = position % BLOCK
    for group in range(groups):
        codes = start + HEADS * groups + width * place + GROUP * group
        _value((x + 4 * GROUP * group, codes, start + HEADS * group + STEP_BYTES * place))
