"""The numbers themselves: the same everywhere and in any order, of the size that was asked for, in pieces."""

import hashlib
import math
import tracemalloc

import mlx.core as mx
import numpy as np
import pytest

from exo_cli.models import random_values
from exo_cli.models.random_tensors import Bits, Exponents, Offsets, RandomTensor, Recipe, Uniform
from exo_cli.models.random_values import pieces

WIDE = Uniform(-0.3, 0.5)


def whole(
    dtype: str, recipe: Recipe, *, shape: tuple[int, ...] = (300, 301), name: str = "a", seed: int = 1
) -> np.ndarray:
    found = np.concatenate(list(pieces(RandomTensor(name, dtype, shape, recipe), seed)))
    assert found.size == math.prod(shape)
    return found


def as_floats(items: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "BF16":
        return (items.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return items.view(np.float16 if dtype == "F16" else np.float32).astype(np.float64)


# A seed means the same weights on every machine and with every numpy: whoever changes these numbers has
# to change VERSION, or nodes of two versions would make two halves of two models.
KNOWN = {
    ("U32", Bits()): "89dccd58fa92229e",
    ("U8", Exponents(118, 77)): "cc661b457387950d",
    ("BF16", WIDE): "2d50246644e3e4d2",
    ("F16", WIDE): "c03ed2e88576296c",
    ("F32", WIDE): "b6eda0fbdfebac22",
    ("BF16", Offsets("s", WIDE, -7.5)): "58ecd3df5610e428",
    ("F16", Offsets("s", WIDE, -7.5)): "afbbd5304b1d87df",
    ("F32", Offsets("s", WIDE, -7.5)): "08f051b2206800fb",
}


@pytest.mark.parametrize(("dtype", "recipe"), KNOWN)
def test_a_seed_and_a_name_are_the_same_numbers_for_ever(dtype: str, recipe: Recipe) -> None:
    found = hashlib.sha256(whole(dtype, recipe).tobytes()).hexdigest()[:16]
    assert found == KNOWN[dtype, recipe]


def test_names_and_seeds_have_numbers_of_their_own() -> None:
    seen = {whole("U32", Bits(), name=name, seed=seed).tobytes() for name in "ab" for seed in (1, 2)}
    assert len(seen) == 4


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_fractions_lie_where_they_shall(dtype: str) -> None:
    found = as_floats(whole(dtype, WIDE), dtype)
    assert found.min() >= -0.301
    assert found.max() <= 0.502
    assert abs(found.mean() - 0.1) < 0.01
    assert abs(found.std() - 0.8 / math.sqrt(12)) < 0.005


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_offsets_are_those_of_the_scales_as_they_are_kept(dtype: str) -> None:
    scales = as_floats(whole(dtype, WIDE, name="s"), dtype)
    offsets = as_floats(whole(dtype, Offsets("s", WIDE, -7.5), name="b"), dtype)
    digits = {"BF16": 2**-8, "F16": 2**-10, "F32": 2**-23}[dtype]
    np.testing.assert_allclose(offsets, -7.5 * scales, rtol=digits, atol=1e-7)


def test_rounding_to_bfloat16_is_to_the_nearest_and_to_even() -> None:
    exact = as_floats(whole("F32", WIDE, shape=(1000,)), "F32").astype(np.float32)
    ours = random_values._rounded(exact, "BF16")
    assert np.array_equal(ours, np.array(mx.array(exact).astype(mx.bfloat16).view(mx.uint16)))
    halves = np.array([0x3F808000, 0x3F818000], np.uint32).view(np.float32)
    assert random_values._rounded(halves, "BF16").tolist() == [0x3F80, 0x3F82]


@pytest.mark.parametrize("share", [0, 77, 255])
def test_exponents_are_two_neighbours(share: int) -> None:
    found = whole("U8", Exponents(118, share))
    assert set(found.tolist()) <= {118, 119}
    assert abs((found == 119).mean() - share / 256) < 0.01


def test_only_a_piece_is_in_memory() -> None:
    large = RandomTensor("a", "BF16", (64, 1 << 18), WIDE)
    tracemalloc.start()
    try:
        for _ in pieces(large, 1):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 << 20  # of 32 MiB
