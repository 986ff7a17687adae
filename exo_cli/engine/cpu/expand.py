"""MLX's modules as matrices for the kernels: packed formats of small whole numbers, and plain ones.

Nothing is rounded: what a format stands for is held exactly, in 4 or 8 bits. Knows nothing of layers.
"""

from typing import Final

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from exo_cli.engine.cpu.dots import BRAIN, HALF, SINGLE
from exo_cli.engine.cpu.layout import Floats, Packed, Plain, as_kind, kind_of

AFFINE_BITS: Final = (2, 3, 4, 5, 6, 8)
GROUPS: Final = (32, 64, 128)
_E2M1: Final = np.array([0, 1, 2, 3, 4, 6, 8, 12], np.int8)
"""Twice what the four bits of mxfp4 stand for, without the sign."""
_MIDDLE: Final = 12


class NotNative(Exception):
    """A module that the kernels do not compute; says why."""


def floats(array: mx.array) -> Floats:
    """As numpy has them, not copied where they are float32."""
    return np.array(array.astype(mx.float32), copy=False)


def matrix_of(module: nn.Module) -> Packed | Plain:
    """A linear layer's or an embedding's matrix."""
    if "scales" not in module:
        return _plain(module["weight"])
    mode = str(getattr(module, "mode", "affine"))
    bits, group = int(module.bits), int(module.group_size)
    words: NDArray[np.uint32] = np.array(module["weight"], copy=False)
    if mode == "affine":
        if bits not in AFFINE_BITS or group not in GROUPS:
            raise NotNative(f"affine weights of {bits} bits in groups of {group}")
        return Packed(words, floats(module["scales"]), floats(module["biases"]), bits, group)
    if mode == "mxfp4":
        return _mxfp4(words, np.array(module["scales"], copy=False))
    raise NotNative(f"weights in {mode}")


def bias_of(module: nn.Module) -> Floats | None:
    return floats(module["bias"]) if "bias" in module else None


def _plain(weight: mx.array) -> Plain:
    if weight.dtype == mx.bfloat16:
        return Plain(np.array(weight.view(mx.uint16), copy=False), BRAIN)
    if weight.dtype == mx.float16:
        return Plain(np.array(weight.view(mx.uint16), copy=False), HALF)
    if weight.dtype != mx.float32:
        raise NotNative(f"weights of {weight.dtype}")
    numbers = floats(weight)
    kind = kind_of(numbers)
    return Plain(as_kind(numbers, kind) if kind != SINGLE else numbers, kind)


def _mxfp4(words: NDArray[np.uint32], exponents: NDArray[np.uint8]) -> Packed:
    """Numbers from -12 to 12, kept 12 higher, and half the scale."""
    pairs = words.view(np.uint8)
    table = np.concatenate([_MIDDLE + _E2M1, _MIDDLE - _E2M1]).astype(np.uint8)
    codes = np.empty((pairs.shape[0], 2 * pairs.shape[1]), np.uint8)
    codes[:, 0::2], codes[:, 1::2] = table[pairs & 15], table[pairs >> 4]
    scales = np.ldexp(np.float32(1), exponents.astype(np.int32) - 128).astype(np.float32)
    return Packed(codes.view(np.uint32), scales, -_MIDDLE * scales, 8, 32)
