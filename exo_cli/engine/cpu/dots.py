"""Rows of int8 activations times a tile of packed weights: the kernel that nearly all time goes into.

A tile is 32 outputs; a lane is an output, so nothing is ever added across lanes. Weights come in blocks of
one group each: 32 scales, 32 biases, then the group's numbers, four inputs of an output side by side in
32 bits (see `layout`). An activation row is `groups * group` bytes, then a float32 scale a group, then a
float32 sum a group. For each output the groups are added in their order, each with the same four
operations, so a result depends neither on how many rows go together nor on the processor.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, Final

from exo_cli.engine.cpu.emit import BYTES, I32, LANES, MIDDLE, VF, VI, Emitter, Value, native, splat
from exo_cli.engine.cpu.jit import apart

TILE: Final = 32
HALF, BRAIN, SINGLE, POWERS = 0, 1, 2, 3
"""How scales and biases are kept: float16, bfloat16 or float32; scales alone, as powers of two in a byte."""
ROWS: Final = (1, 2, 3, 4, 6)
"""How many activation rows a kernel takes at once."""
AT_ONCE: Final = ROWS[-1]
AHEAD: Final = 9216
"""Bytes that weights are asked for before they are due, where they are read once a step: as many as a core
takes while memory answers, about a quarter of its first cache."""


def _write(rows: int, bits: int, group: int) -> Callable[..., None]:
    data = TILE * group * bits // 8

    def write(
        e: Emitter,
        w: Value,
        kind: Value,
        groups: Value,
        x: Value,
        stride: Value,
        y: Value,
        y_stride: Value,
        ahead: Value,
    ) -> None:
        b = e.b
        single = b.icmp_signed("==", kind, e.number(SINGLE))
        brain = b.icmp_signed("==", kind, e.number(BRAIN))
        head = b.select(single, e.number(TILE * 8), e.number(TILE * 4))
        block = e.at(head, data)
        bases = [e.at(x, b.mul(stride, e.number(row))) for row in range(rows)]
        scales_at = e.times(groups, group)
        sums_at = e.at(scales_at, e.times(groups, 4))
        zero = [splat(VF, 0.0)] * (2 * rows)
        with e.loop(groups, zero) as (number, sums, following):
            start = e.at(w, b.mul(number, block))
            scale = _heads(e, start, single, brain)
            packed = e.at(start, head)
            for line in range(0, data + TILE * 4, 64):
                e.prefetch_once(e.at(e.at(start, ahead), line))
            x_at = e.times(number, group)
            dots = _products(e, packed, bases, x_at, bits, group, lambda codes: codes)
            four_bytes = e.times(number, 4)
            for row in range(rows):
                factor = e.one(e.at(bases[row], e.at(scales_at, four_bytes)))
                total = e.one(e.at(bases[row], e.at(sums_at, four_bytes)))
                for side in (0, 1):
                    at = 2 * row + side
                    number_ = b.sitofp(dots[at], VF)
                    by = b.fmul(scale[side], factor)
                    grown = e.fma(number_, by, sums[at])
                    following.append(e.fma(scale[2 + side], total, grown))
        for row in range(rows):
            for side in (0, 1):
                e.store(
                    following[2 * row + side], e.at(y, e.at(b.mul(y_stride, e.number(row)), 64 * side)), 4
                )

    return write


def _products(
    e: Emitter,
    packed: Value,
    bases: list[Value],
    x_at: Value,
    bits: int,
    group: int,
    meant: Callable[[Value], Value],
) -> list[Value]:
    """One group's sums of products, by row and half a tile; `meant`: what codes stand for."""
    per_vector = 32 // bits
    """Inputs in one 64-byte vector of 16 outputs."""
    dots = [splat(VI, 0)] * (2 * len(bases))
    for step in range(group // per_vector):
        vectors = [e.load(BYTES, e.at(packed, 64 * (2 * step + side)), 1) for side in (0, 1)]
        pieces = (
            [[e.low_nibbles(v) for v in vectors], [e.high_nibbles(v) for v in vectors]]
            if bits == 4
            else [vectors]
        )
        for piece, codes in enumerate(pieces):
            weights = [meant(each) for each in codes]
            place = e.at(x_at, step * per_vector + 4 * piece)
            for row, base in enumerate(bases):
                four = e.load(I32, e.at(base, place), 1)
                for side in (0, 1):
                    at = 2 * row + side
                    dots[at] = e.add_products(dots[at], weights[side], four, small=bits == 4)
    return dots


def _heads(e: Emitter, start: Value, single: Value, brain: Value) -> list[Value]:
    """Two vectors of scales and two of biases, as float32."""
    b = e.b
    found: list[tuple[Any, list[Value]]] = []
    wide, narrow, ends = (b.append_basic_block(name) for name in ("wide", "narrow", "heads"))
    brains, halves = (b.append_basic_block(name) for name in ("brains", "halves"))
    b.cbranch(single, wide, narrow)
    b.position_at_end(narrow)
    b.cbranch(brain, brains, halves)
    readers: list[tuple[Any, Callable[[Value], Value], int]] = [
        (wide, e.floats, 4),
        (brains, e.brain_floats, 2),
        (halves, e.half_floats, 2),
    ]
    for where, read, size in readers:
        b.position_at_end(where)
        found.append((b.block, [read(e.at(start, part * LANES * size)) for part in range(4)]))
        b.branch(ends)
    b.position_at_end(ends)
    out = []
    for part in range(4):
        phi = b.phi(VF)
        for where, values in found:
            phi.add_incoming(values[part], where)
        out.append(phi)
    return out


PAIR_BYTES: Final = 2 * TILE + 2 * TILE * 16
"""Two groups of mxfp4: a byte an output and group, then the codes."""


def _write_mxfp4(rows: int) -> Callable[..., None]:
    """Groups of 32 lie in pairs, so that all codes begin on a cache line."""
    group = 32

    def write(
        e: Emitter,
        w: Value,
        _kind: Value,
        groups: Value,
        x: Value,
        stride: Value,
        y: Value,
        y_stride: Value,
        ahead: Value,
    ) -> None:
        b = e.b
        bases = [e.at(x, b.mul(stride, e.number(row))) for row in range(rows)]
        scales_at = e.times(groups, group)
        sums_at = e.at(scales_at, e.times(groups, 4))
        zero = [splat(VF, 0.0)] * (2 * rows)
        with e.loop(groups, zero) as (number, sums, following):
            pair = e.at(w, e.times(b.lshr(number, e.number(1)), PAIR_BYTES))
            odd = b.and_(number, e.number(1))
            head = e.at(pair, e.times(odd, TILE))
            packed = e.at(e.at(pair, 2 * TILE), e.times(odd, TILE * 16))
            for line in range(-64, TILE * 16, 64):
                e.prefetch_once(e.at(e.at(packed, ahead), line))
            scale = [e.powers(e.at(head, LANES * side)) for side in (0, 1)]
            dots = _products(e, packed, bases, e.times(number, group), 4, group, e.e2m1)
            four_bytes = e.times(number, 4)
            for row in range(rows):
                # Codes are twice as large, and MIDDLE higher, as what they stand for.
                factor = b.fmul(e.one(e.at(bases[row], e.at(scales_at, four_bytes))), splat(VF, 0.5))
                total = e.one(e.at(bases[row], e.at(sums_at, four_bytes)))
                lower = b.fmul(total, splat(VF, -MIDDLE / 2))
                for side in (0, 1):
                    at = 2 * row + side
                    by = b.fmul(scale[side], factor)
                    grown = e.fma(b.sitofp(dots[at], VF), by, sums[at])
                    following.append(e.fma(scale[side], lower, grown))
        for row in range(rows):
            for side in (0, 1):
                at = e.at(b.mul(y_stride, e.number(row)), 64 * side)
                e.store(following[2 * row + side], e.at(y, at), 4)

    return write


def _write_plain(rows: int, kind: int) -> Callable[..., None]:
    size = 4 if kind == SINGLE else 2

    def write(
        e: Emitter,
        w: Value,
        _kind: Value,
        inputs: Value,
        x: Value,
        stride: Value,
        y: Value,
        y_stride: Value,
        ahead: Value,
    ) -> None:
        b = e.b
        read = {HALF: e.half_floats, BRAIN: e.brain_floats, SINGLE: e.floats}[kind]
        bases = [e.at(x, b.mul(stride, e.number(row))) for row in range(rows)]
        # Even and odd inputs are summed apart, so that one sum does not wait for the other.
        zero = [splat(VF, 0.0)] * (4 * rows)
        with e.loop(b.lshr(inputs, e.number(1)), zero) as (number, sums, following):
            at = e.at(w, e.times(number, 2 * TILE * size))
            for line in range(0, 2 * TILE * size, 64):
                e.prefetch_once(e.at(e.at(at, ahead), line))
            for odd in (0, 1):
                weights = [read(e.at(at, (TILE * odd + LANES * side) * size)) for side in (0, 1)]
                for row in range(rows):
                    number_ = e.one(e.at(bases[row], e.at(e.times(number, 8), 4 * odd)))
                    for side in (0, 1):
                        following.append(e.fma(weights[side], number_, sums[2 * rows * odd + 2 * row + side]))
        for row in range(rows):
            for side in (0, 1):
                whole = b.fadd(following[2 * row + side], following[2 * rows + 2 * row + side])
                e.store(whole, e.at(y, e.at(b.mul(y_stride, e.number(row)), 64 * side)), 4)

    return write


Write = Callable[..., None]


def _all_rows(made: Callable[[int], Write], group: int) -> Any:
    """A kernel for any number of rows: sixes first, then what is left, the largest part first."""
    writers = {rows: made(rows) for rows in ROWS}

    def write(
        e: Emitter,
        kind: Value,
        inputs: Value,
        tile: Value,
        x: Value,
        stride: Value,
        y: Value,
        y_stride: Value,
        rows: Value,
    ) -> None:
        b = e.b
        groups = b.sdiv(inputs, e.number(group)) if group else inputs

        def some(size: int, first: Value) -> None:
            # The first rows to go over a tile fetch it; to the others it is near.
            ahead = b.select(b.icmp_signed("==", first, e.number(0)), e.number(AHEAD), e.number(0))
            from_x, to_y = e.at(x, b.mul(stride, first)), e.at(y, b.mul(y_stride, first))
            writers[size](e, tile, kind, groups, from_x, stride, to_y, y_stride, ahead)

        sixes = b.sdiv(rows, e.number(AT_ONCE))
        done = e.times(sixes, AT_ONCE)
        with e.when(b.icmp_signed(">", sixes, e.number(0))), e.loop(sixes, []) as (number, _, _after):
            some(AT_ONCE, e.times(number, AT_ONCE))
        for size in ROWS[-2::-1]:
            fits = b.icmp_signed(">=", b.sub(rows, done), e.number(size))
            with e.when(fits):
                some(size, done)
            done = b.add(done, b.select(fits, e.number(size), e.number(0)))

    return native(write)


_4_32, _4_64, _8_32, _8_64 = (
    _all_rows(lambda rows, bits=bits, group=group: _write(rows, bits, group), group)  # type: ignore[misc]
    for bits in (4, 8)
    for group in (32, 64)
)
_4_powers = _all_rows(_write_mxfp4, 32)
_half, _brain, _single = (
    _all_rows(lambda rows, kind=kind: _write_plain(rows, kind), 0)  # type: ignore[misc]
    for kind in (HALF, BRAIN, SINGLE)
)


# `rows` rows from `x` on times one tile, to `y` on; strides are in bytes. One function a format, so that only
# those are compiled that a model has.


def _packed_4_32(
    kind: int, inputs: int, tile: int, x: int, stride: int, y: int, y_stride: int, rows: int
) -> None:
    _4_32((kind, inputs, tile, x, stride, y, y_stride, rows))


def _packed_4_64(
    kind: int, inputs: int, tile: int, x: int, stride: int, y: int, y_stride: int, rows: int
) -> None:
    _4_64((kind, inputs, tile, x, stride, y, y_stride, rows))


def _packed_8_32(
    kind: int, inputs: int, tile: int, x: int, stride: int, y: int, y_stride: int, rows: int
) -> None:
    _8_32((kind, inputs, tile, x, stride, y, y_stride, rows))


def _packed_8_64(
    kind: int, inputs: int, tile: int, x: int, stride: int, y: int, y_stride: int, rows: int
) -> None:
    _8_64((kind, inputs, tile, x, stride, y, y_stride, rows))


def _packed_mxfp4(
    kind: int, inputs: int, tile: int, x: int, stride: int, y: int, y_stride: int, rows: int
) -> None:
    _4_powers((kind, inputs, tile, x, stride, y, y_stride, rows))


def _plain_half(
    kind: int, inputs: int, tile: int, x: int, stride: int, y: int, y_stride: int, rows: int
) -> None:
    _half((kind, inputs, tile, x, stride, y, y_stride, rows))


def _plain_brain(
    kind: int, inputs: int, tile: int, x: int, stride: int, y: int, y_stride: int, rows: int
) -> None:
    _brain((kind, inputs, tile, x, stride, y, y_stride, rows))


def _plain_single(
    kind: int, inputs: int, tile: int, x: int, stride: int, y: int, y_stride: int, rows: int
) -> None:
    _single((kind, inputs, tile, x, stride, y, y_stride, rows))


_FUNCTIONS: Final = {
    (4, 32): _packed_4_32,
    (4, 64): _packed_4_64,
    (8, 32): _packed_8_32,
    (8, 64): _packed_8_64,
    (4, POWERS): _packed_mxfp4,
    (16, HALF): _plain_half,
    (16, BRAIN): _plain_brain,
    (32, SINGLE): _plain_single,
}
ARGUMENTS: Final = 8


@cache
def function(bits: int, group: int, kind: int) -> Any:
    """The kernel for a format, compiled now if it is not kept; its `.address` is what native code calls."""
    return apart(ARGUMENTS)(_FUNCTIONS[bits, kind if bits > 8 or kind == POWERS else group])
