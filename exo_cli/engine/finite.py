"""Damage that shows in the numbers themselves: infinities and not-a-numbers among a stage's weights.

No checkpoint that works has any, and one of them makes every token wrong. Bits that flip to other finite
numbers cannot be seen here: files are compared with their checksums when they are fetched. Knows nothing of
files.
"""

from collections.abc import Iterable, Mapping
from typing import Final

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from exo_cli.errors import BadData

_NOT_A_NUMBER: Final = {"mxfp4": (0xFF,), "mxfp8": (0xFF,), "nvfp4": (0x7F, 0xFF)}
"""Of the byte scales of each mode."""


def check_finite(paths: Iterable[str], weights: Mapping[str, mx.array], model: nn.Module) -> None:
    """Refuse evaluated weights with numbers that are none."""
    modes = {
        f"{path}.scales": mode
        for path, module in model.named_modules()
        if (mode := getattr(module, "mode", None)) in _NOT_A_NUMBER
    }
    for path in paths:
        array = weights[path]
        if mx.issubdtype(array.dtype, mx.floating):
            good = _finite(array)
        elif path in modes and array.dtype == mx.uint8:
            good = not np.isin(np.array(array, copy=False), _NOT_A_NUMBER[modes[path]]).any()
        else:
            continue
        if not good:
            raise not_finite(path)


def not_finite(path: str) -> BadData:
    return BadData(
        f"the weights of {path} hold infinities or not-a-numbers",
        hint="Fetch the model again; a file was damaged on its way, or was never right.",
    )


def _finite(array: mx.array) -> bool:
    if array.dtype == mx.float32 and mx.default_device() == mx.Device(mx.cpu, 0):
        # Without a copy, and ten times faster than MLX does it on a CPU.
        return bool(np.isfinite(np.array(array, copy=False)).all())
    return bool(mx.isfinite(array).all().item())
