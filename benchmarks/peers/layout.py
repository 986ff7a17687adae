"""How llama.cpp lays out what mlx-lm lays out otherwise: rotated heads, frequencies, packed weights.

Numpy alone. Knows nothing of files.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def rope_factors(config: dict[str, Any]) -> Floats | None:
    """What llama.cpp divides the frequencies by, for Llama 3's way to long contexts."""
    scaling = config.get("rope_scaling")
    if scaling is None:
        return None
    if scaling.get("rope_type") != "llama3":
        raise SystemExit(f"rope_scaling {scaling.get('rope_type')} has no way to GGUF here")
    width = head_width(config)
    frequencies = config["rope_theta"] ** -(np.arange(0, width, 2, dtype=np.float64) / width)
    lengths = 2 * math.pi / frequencies
    trained, factor = scaling["original_max_position_embeddings"], scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    smooth = np.clip((trained / lengths - low) / (high - low), 0.0, 1.0)
    factors = 1 / ((1 - smooth) / factor + smooth)
    return np.asarray(factors, np.float32)


def expanded(packed: NDArray[np.uint32], scales: Floats, biases: Floats, bits: int) -> Floats:
    """MLX's affine format as floats: `scale * q + bias`, the first weight in the lowest bits."""
    if 32 % bits:
        raise SystemExit(f"{bits}-bit weights have no way to GGUF here")
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    whole = (packed[..., None] >> shifts) & np.uint32(2**bits - 1)
    rows = packed.shape[0]
    grouped = whole.reshape(rows, scales.shape[-1], -1).astype(np.float32)
    return np.asarray((grouped * scales[..., None] + biases[..., None]).reshape(rows, -1), np.float32)


def permuted(values: Floats, heads: int) -> Floats:
    """From halves to pairs: llama.cpp turns neighbours of a head where mlx-lm turns its two halves."""
    split = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(values.shape))


def head_width(config: dict[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
