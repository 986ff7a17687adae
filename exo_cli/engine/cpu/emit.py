"""LLVM code by hand: the few vector operations that numba has no words for.

`Emitter` wraps a builder. A vector is 16 numbers of 32 bits whatever the processor has; LLVM cuts it into
what there is. Nothing here may be reordered by the compiler: no fast-math flag is ever set, so a result
depends on the order in which the operations are written and on nothing else.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from exo_cli.engine.cpu.features import Dot
from exo_cli.engine.cpu.jit import HERE

LANES: Final = 16
I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F32 = ir.FloatType()
F16 = ir.HalfType()
VF = ir.VectorType(F32, LANES)
VI = ir.VectorType(I32, LANES)
V16 = ir.VectorType(I16, LANES)
VH = ir.VectorType(F16, LANES)
BYTES = ir.VectorType(I8, 4 * LANES)
HALVES = ir.VectorType(I16, 2 * LANES)

MIDDLE: Final = 12
E2M1: Final = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0]
"""By code, twice what four bits of mxfp4 stand for, MIDDLE higher."""

Value = Any


def splat(vector: ir.VectorType, number: float) -> ir.Constant:
    return ir.Constant(vector, [number] * vector.count)


class Emitter:
    """Writes code at the builder's place; addresses are 64-bit integers."""

    def __init__(self, builder: ir.IRBuilder, dot: Dot = HERE.dot) -> None:
        self.b = builder
        self.dot = dot

    # -- numbers and memory ----------------------------------------------------------------------

    def number(self, value: int) -> ir.Constant:
        return ir.Constant(I64, value)

    def at(self, base: Value, offset: "Value | int") -> Value:
        return self.b.add(base, self.number(offset) if isinstance(offset, int) else offset)

    def times(self, value: Value, by: int) -> Value:
        return self.b.mul(value, self.number(by))

    def load(self, kind: ir.Type, address: Value, align: int = 1) -> Value:
        found = self.b.load(self.b.inttoptr(address, kind.as_pointer()), typ=kind)
        found.align = align
        return found

    def store(self, value: Value, address: Value, align: int = 1) -> None:
        self.b.store(value, self.b.inttoptr(address, value.type.as_pointer())).align = align

    def call(self, name: str, result: ir.Type, *arguments: Value) -> Value:
        """A function of LLVM's own."""
        known = self.b.module.globals.get(name)
        if known is None:
            kind = ir.FunctionType(result, [each.type for each in arguments])
            known = ir.Function(self.b.module, kind, name)
        return self.b.call(known, arguments)

    def prefetch_once(self, address: Value) -> None:
        """Into the nearest cache, past the others: what is read once a step drives nothing out."""
        pointer = self.b.inttoptr(address, I8.as_pointer())
        self.call(
            "llvm.prefetch.p0",
            ir.VoidType(),
            pointer,
            ir.Constant(I32, 0),
            ir.Constant(I32, 0),
            ir.Constant(I32, 1),
        )

    # -- vectors ---------------------------------------------------------------------------------

    def broadcast(self, value: Value, kind: ir.VectorType) -> Value:
        first = self.b.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(I32, 0))
        nowhere = ir.Constant(ir.VectorType(I32, kind.count), [0] * kind.count)
        return self.b.shuffle_vector(first, ir.Constant(kind, ir.Undefined), nowhere)

    def floats(self, address: Value) -> Value:
        return self.load(VF, address, 4)

    def one(self, address: Value) -> Value:
        """The float at an address, in every lane."""
        return self.broadcast(self.load(F32, address, 4), VF)

    def half_floats(self, address: Value) -> Value:
        """Sixteen float16 as float32."""
        return self.b.fpext(self.load(VH, address, 2), VF)

    def brain_floats(self, address: Value) -> Value:
        """Sixteen bfloat16 as float32."""
        wide = self.b.zext(self.load(V16, address, 2), VI)
        return self.b.bitcast(self.b.shl(wide, splat(VI, 16)), VF)

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """a * b + c, rounded once."""
        return self.call("llvm.fma.v16f32", VF, a, b, c)

    def low_nibbles(self, packed: Value) -> Value:
        return self.b.and_(packed, splat(BYTES, 15))

    def high_nibbles(self, packed: Value) -> Value:
        shifted = self.b.lshr(self.b.bitcast(packed, HALVES), splat(HALVES, 4))
        return self.b.and_(self.b.bitcast(shifted, BYTES), splat(BYTES, 15))

    def e2m1(self, codes: Value) -> Value:
        """For each byte below 16, as mxfp4's numbers of four bits: twice what it stands for, 12 higher."""
        if self.dot == "generic":
            return self._e2m1_by_steps(codes)
        if self.dot == "vnni512":
            return self.call("llvm.x86.avx512.pshuf.b.512", BYTES, ir.Constant(BYTES, 4 * E2M1), codes)
        half = ir.VectorType(I8, 2 * LANES)
        out = []
        for start in (0, 2 * LANES):
            places = ir.Constant(ir.VectorType(I32, 2 * LANES), list(range(start, start + 2 * LANES)))
            part = self.b.shuffle_vector(codes, codes, places)
            out.append(self.call("llvm.x86.avx2.pshuf.b", half, ir.Constant(half, 2 * E2M1), part))
        return self.b.shuffle_vector(*out, ir.Constant(ir.VectorType(I32, 4 * LANES), list(range(4 * LANES))))

    def _e2m1_by_steps(self, codes: Value) -> Value:
        number = found = self.b.and_(codes, splat(BYTES, 7))
        for least, more in ((5, 1), (6, 1), (7, 3)):
            above = self.b.sext(self.b.icmp_unsigned(">=", number, splat(BYTES, least)), BYTES)
            found = self.b.add(found, self.b.and_(above, splat(BYTES, more)))
        middle = splat(BYTES, MIDDLE)
        negative = self.b.icmp_unsigned(">=", codes, splat(BYTES, 8))
        return self.b.select(negative, self.b.sub(middle, found), self.b.add(middle, found))

    def powers(self, address: Value) -> Value:
        """Sixteen bytes as powers of two, 127 standing for 1; of the smallest, 2 ** -127, comes 0."""
        wide = self.b.zext(self.load(ir.VectorType(I8, LANES), address, 1), VI)
        return self.b.bitcast(self.b.shl(wide, splat(VI, 23)), VF)

    def add_products(self, sums: Value, weights: Value, four: Value, *, small: bool) -> Value:
        """To every lane's sum: its four unsigned weights times the four signed numbers in `four` (32 bits).

        `small`: no weight is above 128, so that two products fit in 16 bits.
        """
        if self.dot == "vnni512":
            each = self.broadcast(four, VI)
            return self.call("llvm.x86.avx512.vpdpbusd.512", VI, sums, self.b.bitcast(weights, VI), each)
        if self.dot == "generic":
            return self._products_by_shifts(sums, weights, four)
        return self._products_in_halves(sums, weights, four, small=small)

    def _products_by_shifts(self, sums: Value, weights: Value, four: Value) -> Value:
        wide = self.b.bitcast(weights, VI)
        for place in range(4):
            weight = self.b.and_(self.b.lshr(wide, splat(VI, 8 * place)), splat(VI, 255))
            left = self.b.shl(four, ir.Constant(I32, 24 - 8 * place))
            number = self.b.ashr(left, ir.Constant(I32, 24))
            sums = self.b.add(sums, self.b.mul(weight, self.broadcast(number, VI)))
        return sums

    def _products_in_halves(self, sums: Value, weights: Value, four: Value, *, small: bool) -> Value:
        half = ir.VectorType(I32, LANES // 2)
        bytes_ = ir.VectorType(I8, 2 * LANES)
        wide = self.b.bitcast(weights, VI)
        each = self.broadcast(four, half)
        out = []
        for start in (0, LANES // 2):
            places = ir.Constant(half, list(range(start, start + LANES // 2)))
            part = self.b.shuffle_vector(wide, wide, places)
            sum_ = self.b.shuffle_vector(sums, sums, places)
            if self.dot == "vnni256":
                out.append(self.call("llvm.x86.avx512.vpdpbusd.256", half, sum_, part, each))
                continue
            numbers = self.b.bitcast(each, bytes_)
            weight = self.b.bitcast(part, bytes_)
            # Two products of large weights would not fit in 16 bits: their top bit goes by itself.
            pieces = (
                [weight]
                if small
                else [self.b.and_(weight, splat(bytes_, 127)), self.b.and_(weight, splat(bytes_, -128))]
            )
            for piece in pieces:
                pairs = self.call("llvm.x86.avx2.pmadd.ub.sw", ir.VectorType(I16, LANES), piece, numbers)
                fours = self.call("llvm.x86.avx2.pmadd.wd", half, pairs, splat(ir.VectorType(I16, LANES), 1))
                sum_ = self.b.add(sum_, fours)
            out.append(sum_)
        return self.b.shuffle_vector(*out, ir.Constant(VI, list(range(LANES))))

    # -- loops -----------------------------------------------------------------------------------

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        with self.b.if_then(condition):
            yield

    @contextmanager
    def loop(self, count: Value, carried: list[Value]) -> Iterator[tuple[Value, list[Value], list[Value]]]:
        """A loop that runs at least once: (number, what it carries, the list to put the next values in).

        After it, the list holds what the last turn put there.
        """
        before = self.b.block
        body = self.b.append_basic_block("body")
        done = self.b.append_basic_block("done")
        self.b.branch(body)
        self.b.position_at_end(body)
        number = self.b.phi(I64)
        number.add_incoming(self.number(0), before)
        held = [self.b.phi(each.type) for each in carried]
        for phi, start in zip(held, carried, strict=True):
            phi.add_incoming(start, before)
        following: list[Value] = []
        yield number, held, following
        after = self.at(number, 1)
        number.add_incoming(after, self.b.block)
        for phi, value in zip(held, following, strict=True):
            phi.add_incoming(value, self.b.block)
        self.b.cbranch(self.b.icmp_signed("<", after, count), body, done)
        self.b.position_at_end(done)


def native(write: Callable[..., None]) -> Any:
    """An operation for kernels out of `write(emitter, *numbers)`; a kernel gives it one tuple of integers."""

    def typed(_context: Any, numbers: Any) -> Any:
        def code(_ctx: Any, builder: ir.IRBuilder, _signature: Any, values: Any) -> Any:
            write(Emitter(builder), *(builder.extract_value(values[0], n) for n in range(len(numbers))))
            return ir.Constant(ir.IntType(8).as_pointer(), None)

        return types.void(types.UniTuple(types.int64, len(numbers))), code

    return intrinsic(typed)


def _by_address(_context: Any, address: Any, numbers: Any) -> Any:
    """Calls what `jit.apart` made."""
    count = len(numbers)

    def code(_ctx: Any, builder: ir.IRBuilder, _signature: Any, values: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [I64] * count)
        function = builder.inttoptr(values[0], kind.as_pointer())
        builder.call(function, [builder.extract_value(values[1], n) for n in range(count)])
        return ir.Constant(ir.IntType(8).as_pointer(), None)

    return types.void(types.int64, types.UniTuple(types.int64, count)), code


by_address = intrinsic(_by_address)
