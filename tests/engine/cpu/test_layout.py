"""What is repacked stands for the same numbers, bit for bit."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from exo_cli.engine.cpu import expand
from exo_cli.engine.cpu.dots import BRAIN, HALF, POWERS, SINGLE
from exo_cli.engine.cpu.layout import Packed, kind_of
from exo_cli.engine.cpu.mxfp4 import Coded
from tests.support.kernels import row_of

OUTPUTS, INPUTS = 70, 128


def module(mode: str, bits: int, group: int, dtype: mx.Dtype, seed: int = 1) -> nn.Module:
    linear = nn.Linear(INPUTS, OUTPUTS, bias=False)
    linear.weight = mx.random.normal((OUTPUTS, INPUTS), key=mx.random.key(seed)).astype(dtype)
    return linear.to_quantized(group_size=group, bits=bits, mode=mode) if bits else linear


def expected(made: nn.Module) -> np.ndarray:
    if "scales" not in made:
        return np.array(made.weight.astype(mx.float32))
    how = {"group_size": made.group_size, "bits": made.bits, "mode": made.mode}
    # In float32, as `exact` computes: MLX would round the product to the scales' own type.
    scales = made.scales.astype(mx.float32) if "biases" in made else made.scales
    biases = made.biases.astype(mx.float32) if "biases" in made else None
    return np.array(mx.dequantize(made.weight, scales, biases, **how).astype(mx.float32))


FORMATS = [
    *(("affine", bits, group) for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 128)),
    ("mxfp4", 4, 32),
    ("affine", 0, 0),
]


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=["f32", "f16", "bf16"])
@pytest.mark.parametrize(("mode", "bits", "group"), FORMATS)
def test_every_format_is_held_exactly(mode: str, bits: int, group: int, dtype: mx.Dtype) -> None:
    made = module(mode, bits, group, dtype)
    matrix = expand.joined([expand.matrix_of(made)])
    assert matrix.bits == {0: 8 * made.weight.itemsize, 2: 4, 3: 4, 4: 4}.get(bits, 8)
    right = expected(made)
    for row in (0, 15, 16, 31, 32, OUTPUTS - 1):
        found = row_of(matrix, row)
        if bits and dtype == mx.float32:
            # Scales of any float32: the sum of a product is rounded once by us and by MLX twice.
            assert np.allclose(found, right[row], rtol=1e-6, atol=1e-6)
        else:
            assert np.array_equal(found, right[row]), (mode, bits, group)


def test_scales_are_kept_in_sixteen_bits_where_they_fit() -> None:
    kinds = [
        expand.joined([expand.matrix_of(module("affine", 4, 64, dtype))]).kind
        for dtype in (mx.bfloat16, mx.float16, mx.float32)
    ]
    assert kinds == [BRAIN, HALF, SINGLE]
    assert kind_of(np.array([1e-9], np.float32)) == SINGLE


def test_several_matrices_become_one_and_sixteens_of_two_take_turns() -> None:
    parts = [expand.matrix_of(module("affine", 4, 64, mx.bfloat16, seed)) for seed in (1, 2)]
    below, woven = expand.joined(parts), expand.joined([_cut(part, 64) for part in parts], interleaved=True)
    assert (below.outputs, woven.outputs) == (2 * OUTPUTS, 128)
    second = expand.joined(parts[1:])
    assert np.array_equal(row_of(below, OUTPUTS + 5), row_of(second, 5))
    for place in (0, 3, 17, 63):
        tile, lane = divmod(place, 16)
        assert np.array_equal(row_of(woven, 32 * tile + lane), row_of(below, place))
        assert np.array_equal(row_of(woven, 32 * tile + 16 + lane), row_of(second, place))


def _cut(part: object, outputs: int) -> Packed:
    assert isinstance(part, Packed)
    scales, biases = part.scales[:outputs], part.biases[:outputs]
    return Packed(part.words[:outputs], scales, biases, part.bits, part.group)


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_several_threads_repack_to_the_same_bytes(bits: int) -> None:
    linear = nn.Linear(64, 1500, bias=False).to_quantized(group_size=32, bits=bits)
    part = expand.matrix_of(linear)
    assert expand.joined([part], workers=4).tiles.tobytes() == expand.joined([part]).tiles.tobytes()


def test_formats_of_different_widths_meet_in_the_wider_one() -> None:
    four, eight = (expand.matrix_of(module("affine", bits, 64, mx.bfloat16)) for bits in (4, 8))
    both = expand.joined([four, eight])
    assert both.bits == 8
    assert np.array_equal(row_of(both, 3), row_of(expand.joined([four]), 3))
    assert np.array_equal(row_of(both, OUTPUTS + 3), row_of(expand.joined([eight]), 3))


def test_mxfp4_beside_another_format_stands_for_the_same_numbers() -> None:
    four, other = module("mxfp4", 4, 32, mx.bfloat16), module("affine", 8, 32, mx.bfloat16, 2)
    coded = expand.matrix_of(four)
    alone, both = expand.joined([coded]), expand.joined([coded, expand.matrix_of(other)])
    assert (alone.bits, alone.kind, both.bits) == (4, POWERS, 8)
    for row in (0, 31, 32, OUTPUTS - 1):
        assert np.array_equal(row_of(both, row), row_of(alone, row))
    assert np.array_equal(row_of(both, OUTPUTS + 5), expected(other)[5])


@pytest.mark.parametrize("groups", [1, 2, 5])
def test_mxfp4_takes_four_bits_and_a_byte_a_group_in_pairs_of_groups(groups: int) -> None:
    linear = nn.Linear(32 * groups, 40, bias=False).to_quantized(group_size=32, bits=4, mode="mxfp4")
    matrix = expand.joined([expand.matrix_of(linear)])
    assert matrix.nbytes == 2 * 32 * -(-groups // 2) * (2 + 32)
    assert np.array_equal(row_of(matrix, 39), expected(linear)[39])
    woven = expand.joined([_rows(expand.matrix_of(linear), 32)] * 2, interleaved=True)
    assert np.array_equal(row_of(woven, 32 + 16 + 5), row_of(matrix, 16 + 5))


def _rows(part: object, count: int) -> Coded:
    assert isinstance(part, Coded)
    return Coded(part.words[:count], part.powers[:count])


def test_what_the_kernels_do_not_hold_is_named() -> None:
    with pytest.raises(expand.NotNative, match="nvfp4"):
        expand.matrix_of(module("nvfp4", 4, 16, mx.float32))
