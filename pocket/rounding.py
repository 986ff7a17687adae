"""Weights in 4 bits as MLX lays them out: groups of 64, each with a scale and a bias in half precision.

The same arithmetic as `mx.quantize(w, group_size=64, bits=4)` on float32 weights, with scales and
biases rounded to half precision afterwards. Knows nothing of networks.
"""

from typing import Any, Final

import numpy as np

GROUP: Final = 64
BITS: Final = 4

Array = np.ndarray[Any, Any]


def quantized(weight: Array) -> tuple[Array, Array, Array]:
    """Packed codes (eight a word, the first lowest), scales, biases."""
    groups = weight.astype(np.float32).reshape(-1, GROUP)
    steps = np.float32(2**BITS - 1)
    low, high = groups.min(1, keepdims=True), groups.max(1, keepdims=True)
    negative = np.abs(low) > np.abs(high)
    scale = np.maximum((high - low) / steps, np.float32(1e-7))
    scale = np.where(negative, scale, -scale)
    edge = np.where(negative, low, high)
    zero = np.round(edge / scale)
    scale = np.where(zero != 0, edge / np.where(zero != 0, zero, 1), scale)
    bias = np.where(zero != 0, edge, np.float32(0))
    codes = np.clip(np.round((groups - bias) / scale), 0, steps).astype(np.uint32)
    rows = weight.shape[0]
    words = codes.reshape(rows, -1, 32 // BITS) << (np.arange(32 // BITS, dtype=np.uint32) * BITS)
    packed = np.bitwise_or.reduce(words, axis=-1).astype(np.uint32)
    half = (part.reshape(rows, -1).astype(np.float16) for part in (scale, bias))
    return packed, *half


def restored(packed: Array, scales: Array, biases: Array) -> Array:
    """What the four bits kept, as float32."""
    shifts = np.arange(32 // BITS, dtype=np.uint32) * BITS
    codes = (packed[..., None] >> shifts) & np.uint32(2**BITS - 1)
    groups = codes.reshape(packed.shape[0], -1, GROUP).astype(np.float32)
    kept = groups * scales.astype(np.float32)[..., None] + biases.astype(np.float32)[..., None]
    return np.asarray(kept.reshape(packed.shape[0], -1))
