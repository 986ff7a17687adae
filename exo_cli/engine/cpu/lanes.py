"""Sixteen float32 side by side, as a value that kernels can hold: numba's own types know no vectors.

Every operation is one LLVM instruction or a few; none is reordered by the compiler, so the order in which a
kernel writes its sums is the order in which they are made, on every processor.
"""

from collections.abc import Callable
from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model

from exo_cli.engine.cpu.emit import F16, F32, I8, I32, LANES, V16, VF, VH, VI, Emitter, splat


class LanesType(types.Type):  # type: ignore[misc] # numba has no types for checkers
    """The type of such a value."""

    def __init__(self) -> None:
        super().__init__(name="Lanes")


lanes: Final = LanesType()


@register_model(LanesType)
class LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, VF)


Write = Callable[..., Any]


def _operation(result: Any, arguments: int, write: Write) -> Any:
    """An operation of one to three arguments, written by `write(emitter, *values)`."""

    def found(kinds: tuple[Any, ...]) -> Any:
        def code(_context: Any, builder: ir.IRBuilder, _signature: Any, values: Any) -> Any:
            made = write(Emitter(builder), *values)
            return ir.Constant(ir.IntType(8).as_pointer(), None) if result is types.void else made

        return result(*kinds), code

    if arguments == 1:
        return intrinsic(lambda context, a: found((_plain(a),)))
    if arguments == 2:
        return intrinsic(lambda context, a, b: found((_plain(a), _plain(b))))
    return intrinsic(lambda context, a, b, c: found((_plain(a), _plain(b), _plain(c))))


def _plain(kind: Any) -> Any:
    """Integers are addresses, other numbers float32."""
    if isinstance(kind, types.Integer | types.IntegerLiteral):
        return types.int64
    return types.float32 if isinstance(kind, types.Float) else kind


def _unary(name: str) -> Write:
    return lambda e, a: e.call(f"llvm.{name}.v16f32", VF, a)


def _half_store(e: Emitter, address: Any, value: Any) -> None:
    """As float16; what it cannot hold becomes its largest number, not infinity."""
    most = splat(VF, 65504.0)
    held = e.call(
        "llvm.minnum.v16f32", VF, e.call("llvm.maxnum.v16f32", VF, value, splat(VF, -65504.0)), most
    )
    e.store(e.b.fptrunc(held, VH), address, 2)


def _bytes_store(e: Emitter, address: Any, value: Any) -> None:
    """Whole numbers between -128 and 127 as bytes."""
    e.store(e.b.trunc(e.b.fptosi(value, VI), ir.VectorType(I8, LANES)), address, 1)


def _fold(e: Emitter, value: Any, join: Callable[[Any, Any], Any]) -> Any:
    """All lanes as one number: always the upper half onto the lower one."""
    width = LANES
    while width > 1:
        width //= 2
        kind = ir.VectorType(I32, width)
        low, high = (
            e.b.shuffle_vector(value, value, ir.Constant(kind, list(range(start, start + width))))
            for start in (0, width)
        )
        value = join(low, high)
    return e.b.extract_element(value, ir.Constant(I32, 0))


def _larger(e: Emitter) -> Callable[[Any, Any], Any]:
    return lambda a, b: e.b.select(e.b.fcmp_ordered(">", a, b), a, b)


def _power(e: Emitter, value: Any, exponent: Any) -> Any:
    """value * 2 ** exponent, for whole exponents from -126 to 127."""
    whole = e.b.fptosi(exponent, VI)
    bits = e.b.shl(e.b.add(whole, splat(VI, 127)), splat(VI, 23))
    return e.b.fmul(value, e.b.bitcast(bits, VF))


def _first(e: Emitter, value: Any, count: Any, other: Any) -> Any:
    """The first `count` lanes, and `other` in those after them."""
    places = ir.Constant(VI, list(range(LANES)))
    limit = e.broadcast(e.b.trunc(count, I32), VI)
    return e.b.select(e.b.icmp_signed("<", places, limit), value, e.broadcast(other, VF))


def _beyond(e: Emitter, value: Any, count: Any, other: Any) -> Any:
    """`other` in the first `count` lanes, and the lanes after them."""
    places = ir.Constant(VI, list(range(LANES)))
    limit = e.broadcast(e.b.trunc(count, I32), VI)
    return e.b.select(e.b.icmp_signed(">=", places, limit), value, e.broadcast(other, VF))


load = _operation(lanes, 1, lambda e, a: e.floats(a))
load_half = _operation(lanes, 1, lambda e, a: e.half_floats(a))
load_brain = _operation(lanes, 1, lambda e, a: e.brain_floats(a))
load_one = _operation(lanes, 1, lambda e, a: e.one(a))
store = _operation(types.void, 2, lambda e, a, v: e.store(v, a, 4))
store_half = _operation(types.void, 2, _half_store)
store_bytes = _operation(types.void, 2, _bytes_store)
fill = _operation(lanes, 1, lambda e, x: e.broadcast(x, VF))
add = _operation(lanes, 2, lambda e, a, b: e.b.fadd(a, b))
subtract = _operation(lanes, 2, lambda e, a, b: e.b.fsub(a, b))
multiply = _operation(lanes, 2, lambda e, a, b: e.b.fmul(a, b))
divide = _operation(lanes, 2, lambda e, a, b: e.b.fdiv(a, b))
fma = _operation(lanes, 3, lambda e, a, b, c: e.fma(a, b, c))
larger = _operation(lanes, 2, lambda e, a, b: _larger(e)(a, b))
smaller = _operation(lanes, 2, lambda e, a, b: e.b.select(e.b.fcmp_ordered("<", a, b), a, b))
magnitude = _operation(lanes, 1, _unary("fabs"))
nearest = _operation(lanes, 1, _unary("rint"))
power = _operation(lanes, 2, _power)
first = _operation(lanes, 3, _first)
beyond = _operation(lanes, 3, _beyond)
total = _operation(types.float32, 1, lambda e, a: _fold(e, a, e.b.fadd))
highest = _operation(types.float32, 1, lambda e, a: _fold(e, a, _larger(e)))

peek = _operation(types.float32, 1, lambda e, a: e.load(F32, a, 4))
poke = _operation(types.void, 2, lambda e, a, v: e.store(v, a, 4))
peek_half = _operation(types.float32, 1, lambda e, a: e.b.fpext(e.load(F16, a, 2), F32))
peek_brain = _operation(
    types.float32,
    1,
    lambda e, a: e.b.bitcast(e.b.shl(e.b.zext(e.load(V16.element, a, 2), I32), ir.Constant(I32, 16)), F32),
)
word = _operation(types.int64, 1, lambda e, a: e.load(ir.IntType(64), a, 8))
field = _operation(types.int64, 2, lambda e, a, n: e.load(ir.IntType(64), e.at(a, e.times(n, 8)), 8))
poke_word = _operation(types.void, 2, lambda e, a, v: e.store(v, a, 8))
byte = _operation(types.int64, 1, lambda e, a: e.b.zext(e.load(I8, a, 1), ir.IntType(64)))
poke_half = _operation(types.void, 2, lambda e, a, v: e.store(e.b.fptrunc(_held(e, v), F16), a, 2))


def _held(e: Emitter, value: Any) -> Any:
    """Within what float16 can hold."""
    most, least = ir.Constant(F32, 65504.0), ir.Constant(F32, -65504.0)
    value = e.b.select(e.b.fcmp_ordered("<", value, most), value, most)
    return e.b.select(e.b.fcmp_ordered(">", value, least), value, least)
