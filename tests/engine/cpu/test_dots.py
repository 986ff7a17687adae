"""Rows times packed weights: against float64, alone and among others, with every way to add products."""

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from exo_cli.engine.cpu import expand
from exo_cli.engine.cpu.emit import BYTES, I32, VI, Emitter, Value, native
from exo_cli.engine.cpu.features import Dot
from exo_cli.engine.cpu.jit import HERE, inner
from exo_cli.engine.cpu.layout import Matrix
from tests.support.kernels import meant, multiplied, packed, row_of

MXFP4 = (4, 0)
FORMATS = [(4, 32), (4, 64), (4, 128), (8, 32), (8, 64), MXFP4, (0, 0)]


def matrix(
    bits: int, group: int, outputs: int, inputs: int, seed: int = 1, dtype: mx.Dtype = mx.bfloat16
) -> Matrix:
    linear = nn.Linear(inputs, outputs, bias=False)
    linear.weight = mx.random.normal((outputs, inputs), key=mx.random.key(seed)).astype(dtype)
    if (bits, group) == MXFP4:
        made = linear.to_quantized(group_size=32, bits=4, mode="mxfp4")
    else:
        made = linear.to_quantized(group_size=group, bits=bits) if bits else linear
    return expand.joined([expand.matrix_of(made)])


def whole(made: Matrix) -> NDArray[np.float64]:
    return np.stack([row_of(made, row) for row in range(made.outputs)]).astype(np.float64)


@settings(max_examples=40)
@given(
    form=st.sampled_from(FORMATS),
    dtype=st.sampled_from([mx.float32, mx.float16, mx.bfloat16]),
    outputs=st.integers(1, 100),
    groups=st.integers(1, 6),
    rows=st.integers(1, 15),
    seed=st.integers(0, 99),
)
def test_a_product_is_that_of_the_packed_numbers(
    form: tuple[int, int], dtype: mx.Dtype, outputs: int, groups: int, rows: int, seed: int
) -> None:
    """Once rows are packed nothing is lost but float32's own rounding, a few times a group."""
    bits, group = form
    inputs = groups * max(group, 32)
    made = matrix(bits, group, outputs, inputs, seed, dtype)
    x = np.random.default_rng(seed).normal(size=(rows, inputs)).astype(np.float32)
    records = packed(x, made)
    weights, numbers = whole(made), meant(records, made)
    bound = 4e-7 * (2 * groups if bits else inputs) * (np.abs(numbers) @ np.abs(weights).T + 1)
    assert (np.abs(multiplied(records, made) - numbers @ weights.T) <= 3 * bound).all()


@settings(max_examples=30)
@given(form=st.sampled_from(FORMATS), spread=st.floats(-3, 3), seed=st.integers(0, 99))
def test_packing_a_row_costs_half_a_step_of_its_group(
    form: tuple[int, int], spread: float, seed: int
) -> None:
    made = matrix(*form, 1, 256)
    x = (np.random.default_rng(seed).normal(size=(3, 256)) * np.exp(spread)).astype(np.float32)
    x[1, :128] = 0
    off = np.abs(meant(packed(x, made), made) - x)
    if made.group == 0:
        assert not off.any()
        return
    largest = np.abs(x).reshape(3, -1, made.group).max(axis=2)
    step = np.repeat(largest / 127, made.group, axis=1)
    assert (off <= 0.5001 * step).all()
    assert not off[1, :128].any()


@settings(max_examples=30)
@given(
    form=st.sampled_from(FORMATS), rows=st.integers(1, 14), at_once=st.integers(1, 14), seed=st.integers(0, 9)
)
def test_a_row_is_the_same_alone_and_among_others(
    form: tuple[int, int], rows: int, at_once: int, seed: int
) -> None:
    made = matrix(*form, 64, 256)
    records = packed(np.random.default_rng(seed).normal(size=(rows, 256)).astype(np.float32), made)
    assert multiplied(records, made).tobytes() == multiplied(records, made, at_once=at_once).tobytes()


def _meaning(dot: Dot) -> Callable[[int, int], None]:
    def write(e: Emitter, codes: Value, out: Value) -> None:
        own = Emitter(e.b, dot)
        own.store(own.e2m1(own.load(BYTES, codes)), out, 1)

    operation = native(write)

    @inner
    def mean(codes: int, out: int) -> None:
        operation((codes, out))

    found: Callable[[int, int], None] = mean
    return found


NEEDS = {"vnni512": "avx512vnni", "vnni256": "avxvnni", "avx2": "avx2", "generic": ""}


def skip_without(dot: Dot) -> None:
    needs = NEEDS[dot]
    if needs and needs not in HERE.flags:
        pytest.skip(f"this processor has no {needs}")


@pytest.mark.parametrize("dot", NEEDS)
def test_every_processor_reads_the_same_numbers_of_four_bits(dot: Dot) -> None:
    skip_without(dot)
    codes, out = np.arange(64, dtype=np.uint8) % 16, np.zeros(64, np.uint8)
    _meaning(dot)(codes.ctypes.data, out.ctypes.data)
    right = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    assert np.array_equal(out[:16] / 2 - 6, [*right, *-right])
    assert np.array_equal(out.reshape(4, 16), np.tile(out[:16], (4, 1)))


def _adding(dot: Dot, small: bool) -> Callable[[int, int, int], None]:
    def write(e: Emitter, weights: Value, numbers: Value, sums: Value) -> None:
        own = Emitter(e.b, dot)
        before = own.load(VI, sums, 4)
        four = own.load(I32, numbers, 4)
        own.store(own.add_products(before, own.load(BYTES, weights), four, small=small), sums, 4)

    operation = native(write)

    @inner
    def add(weights: int, numbers: int, sums: int) -> None:
        operation((weights, numbers, sums))

    found: Callable[[int, int, int], None] = add
    return found


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("dot", NEEDS)
def test_every_processor_adds_the_same_products(dot: Dot, small: bool) -> None:
    skip_without(dot)
    add = _adding(dot, small)
    chance = np.random.default_rng(3)
    for extreme in (False, True):
        weights = chance.integers(0, 129 if small else 256, 64).astype(np.uint8)
        numbers = chance.integers(-127, 128, 4).astype(np.int8)
        if extreme:
            weights[:] = 128 if small else 255
            numbers[:] = (-127, -127, -127, -128)
        sums = chance.integers(-(1 << 20), 1 << 20, 16).astype(np.int32)
        right = sums + (weights.reshape(16, 4).astype(np.int32) * numbers.astype(np.int32)).sum(axis=1)
        add(weights.ctypes.data, numbers.ctypes.data, sums.ctypes.data)
        assert np.array_equal(sums, right)
