"""What the converter rearranges, against what MLX and mlx-lm compute."""

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.rope_utils import Llama3RoPE

from benchmarks.peers.layout import expanded, permuted, rope_factors

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_permuted_heads_turn_by_pairs_as_the_originals_turn_by_halves() -> None:
    heads, width, hidden = 3, 8, 16
    weight = np.random.default_rng(1).standard_normal((heads * width, hidden)).astype(np.float32)
    hidden_state = np.random.default_rng(2).standard_normal((5, hidden)).astype(np.float32)

    def turned(matrix: np.ndarray, *, by_pairs: bool) -> np.ndarray:
        rows = (hidden_state @ matrix.T).reshape(5, heads, width).swapaxes(0, 1)
        found = mx.fast.rope(mx.array(rows), width, traditional=by_pairs, base=10000.0, scale=1.0, offset=3)
        return np.array(found)

    halves = turned(weight, by_pairs=False)
    pairs = turned(permuted(weight, heads), by_pairs=True)
    back = np.concatenate([pairs[..., 0::2], pairs[..., 1::2]], axis=-1)
    np.testing.assert_allclose(back, halves, atol=1e-5)
    assert not np.allclose(turned(weight, by_pairs=True), halves)


@pytest.mark.parametrize("bits", [4, 8])
def test_expanded_is_what_mlx_dequantizes(bits: int) -> None:
    weight = mx.random.normal((6, 128), key=mx.random.key(3))
    packed, scales, biases = mx.quantize(weight, group_size=64, bits=bits)
    found = expanded(np.array(packed), np.array(scales), np.array(biases), bits)
    again = np.array(mx.dequantize(packed, scales, biases, group_size=64, bits=bits))
    np.testing.assert_allclose(found, again, atol=1e-6)


def test_bits_that_do_not_fill_a_word_are_refused() -> None:
    with pytest.raises(SystemExit, match="3-bit"):
        expanded(np.zeros((1, 6), np.uint32), np.ones((1, 1), np.float32), np.ones((1, 1), np.float32), 3)


def test_factors_are_those_of_mlx_lm() -> None:
    config = {"rope_theta": 500_000.0, "head_dim": 64, "rope_scaling": LLAMA3}
    theirs = Llama3RoPE(64, 131_072, False, 500_000.0, LLAMA3)
    plain = 500_000.0 ** (np.arange(0, 64, 2) / 64)
    factors = rope_factors(config)
    assert factors is not None
    np.testing.assert_allclose(plain * factors, np.array(theirs._freqs), rtol=1e-5)


def test_no_scaling_needs_no_factors() -> None:
    assert rope_factors({"rope_theta": 10000.0, "head_dim": 64, "rope_scaling": None}) is None


def test_a_scaling_that_is_not_known_is_refused() -> None:
    with pytest.raises(SystemExit, match="yarn"):
        rope_factors({"rope_theta": 10000.0, "head_dim": 64, "rope_scaling": {"rope_type": "yarn"}})
