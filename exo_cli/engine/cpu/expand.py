"""MLX's modules as matrices for the kernels: packed formats of small whole numbers, and plain ones.

Nothing is rounded: what a format stands for is held exactly, in 4 or 8 bits. Knows nothing of layers.
"""

from collections.abc import Sequence
from typing import Final

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from exo_cli.engine import on_disk
from exo_cli.engine.cpu.dots import BRAIN, HALF, SINGLE
from exo_cli.engine.cpu.layout import Floats, Matrix, Packed, Plain, Where, as_kind, kind_of, room, tiled
from exo_cli.engine.cpu.mxfp4 import Coded, tiled_codes
from exo_cli.engine.on_disk import OnDisk

KINDS: Final = {"F16": HALF, "BF16": BRAIN, "F32": SINGLE}
"""Numbers by the names that files have for them."""
AFFINE_BITS: Final = (2, 3, 4, 5, 6, 8)
GROUPS: Final = (32, 64, 128)


class NotNative(Exception):
    """A module that the kernels do not compute; says why."""


def floats(array: mx.array) -> Floats:
    """As numpy has them, not copied where they are float32."""
    return np.array(array.astype(mx.float32), copy=False)


def check(model: nn.Module) -> None:
    """Raises NotNative where `matrix_of` would, before anything is read."""
    for _, module in model.named_modules():
        if "scales" in module and "weight" in module:
            _check_format(module)


def _check_format(module: nn.Module) -> None:
    mode, bits, group = str(getattr(module, "mode", "affine")), int(module.bits), int(module.group_size)
    if mode not in ("affine", "mxfp4"):
        raise NotNative(f"weights in {mode}")
    if mode == "affine" and (bits not in AFFINE_BITS or group not in GROUPS):
        raise NotNative(f"affine weights of {bits} bits in groups of {group}")


def matrix_of(module: nn.Module) -> Packed | Plain | Coded:
    """A linear layer's or an embedding's matrix."""
    if (held := on_disk.of(module)) is not None:
        return _as_it_lies(held, module)
    if "scales" not in module:
        return _plain(module["weight"])
    _check_format(module)
    words: NDArray[np.uint32] = np.array(module["weight"], copy=False)
    if "biases" not in module:
        return Coded(words, np.array(module["scales"], copy=False))
    bits, group = int(module.bits), int(module.group_size)
    return Packed(words, floats(module["scales"]), floats(module["biases"]), bits, group)


def _as_it_lies(held: OnDisk, module: nn.Module) -> Packed | Plain:
    """What the file holds, where it is: nothing is read yet."""
    held.begin()
    weight = held["weight"]
    if "scales" not in module:
        kind = KINDS[weight.dtype]
        if kind == SINGLE:
            kind = kind_of(weight.numbers)
        numbers = weight.numbers if kind == KINDS[weight.dtype] else as_kind(weight.numbers, kind)
        return Plain(numbers, kind, held.path)
    _check_format(module)
    bits, group = int(module.bits), int(module.group_size)
    scales, biases = held["scales"], held["biases"]
    kind = KINDS[scales.dtype]
    return Packed(weight.numbers, scales.numbers, biases.numbers, bits, group, kind, held.path)


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


def joined(
    parts: Sequence[Packed | Plain | Coded],
    *,
    interleaved: bool = False,
    bias: Floats | None = None,
    workers: int = 1,
    where: Where = room,
) -> Matrix:
    """One matrix out of several, as `layout.tiled` does it; formats that differ meet in one of 8 bits."""
    coded = [part for part in parts if isinstance(part, Coded)]
    if len(coded) == len(parts):
        return tiled_codes(coded, interleaved=interleaved, bias=bias, workers=workers, where=where)
    others = [part.expanded() if isinstance(part, Coded) else part for part in parts]
    if len({type(part) for part in others}) != 1:
        raise NotNative("projections of which some are packed and some are not")
    return tiled(others, interleaved=interleaved, bias=bias, workers=workers, where=where)


def parts_of(modules: Sequence[nn.Module]) -> tuple[list[Packed | Plain | Coded], Floats | None]:
    """Linear layers' matrices, and the biases of all if one has them."""
    parts = [matrix_of(module) for module in modules]
    biases = [bias_of(module) for module in modules]
    if all(each is None for each in biases):
        return parts, None
    filled = [
        np.zeros(part.shape[0], np.float32) if each is None else each
        for part, each in zip(parts, biases, strict=True)
    ]
    return parts, np.concatenate(filled)


def one_matrix(modules: Sequence[nn.Module], workers: int = 1, *, interleaved: bool = False) -> Matrix:
    """Linear layers over the same inputs, with their biases."""
    parts, bias = parts_of(modules)
    made = joined(parts, interleaved=interleaved, bias=bias, workers=workers)
    for held in filter(None, map(on_disk.of, modules)):
        held.end()
    return made
