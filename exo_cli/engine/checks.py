"""What config.json asks for against what the files hold, before anything is computed with it.

mlx-lm believes both; a figure that lies makes it fail with a riddle, or MLX divide by nothing. Knows
nothing of files: tensors are looked at by their names, dtypes and shapes alone.
"""

from collections.abc import Mapping
from typing import Any, Final

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from exo_cli.engine import formats
from exo_cli.errors import BadData
from exo_cli.models.safetensors import shown

GROUP_SIZES: Final = (16, 32, 64, 128)
PACKED_BITS: Final = (2, 3, 4, 5, 6, 8)
MODES: Final = ("affine", "mxfp4", "mxfp8", "nvfp4")
"""MLX's own figures. It divides by them before it checks them, so they are checked here."""

_NOT_TOGETHER: Final = "Fetch the model again; config.json and the weights do not belong together."


def check_quantization(config: Mapping[str, Any]) -> None:
    """What config.json says of group sizes, bits and modes, for everything and path by path."""
    settings = config.get("quantization")
    if settings is not None:
        if not isinstance(settings, Mapping):
            raise BadData("config.json: quantization is not an object")
        for each in (settings, *(inner for inner in settings.values() if isinstance(inner, Mapping))):
            _check_figures(each, "quantization")
    nested = config.get("text_config")
    for holder in (config, nested if isinstance(nested, Mapping) else {}):
        other = holder.get("quantization_config")
        if isinstance(other, Mapping) and other.get("quant_method") in ("awq", "gptq", "modelopt"):
            inner = other.get("quantization")
            _check_figures(inner if isinstance(inner, Mapping) else other, "quantization_config")


def _check_figures(settings: Mapping[str, Any], where: str) -> None:
    for key, allowed in (("group_size", GROUP_SIZES), ("bits", PACKED_BITS), ("mode", MODES)):
        value = settings.get(key)
        if value is not None and (isinstance(value, bool | float) or value not in allowed):
            raise BadData(f"config.json: {where} has {key} {shown(value)}; MLX knows {allowed}")


def check_packed(model: nn.Module, given: Mapping[str, mx.array]) -> None:
    """Packed weights and their scales must be of a group size and of bits that exist."""
    asked = dict(tree_flatten(model.parameters()))
    for name, scales in given.items():
        weight = name.removesuffix("scales") + "weight"
        if not name.endswith(".scales") or weight not in asked or weight not in given:
            continue
        width, packed, groups = (
            array.shape[-1] if array.shape else 0 for array in (asked[weight], given[weight], scales)
        )
        sizes = (16, 32) if scales.dtype == mx.uint8 else (32, 64, 128)
        fits = width and groups and width % groups == 0 and width // groups in sizes
        if not fits or packed * 32 % width or packed * 32 // width not in PACKED_BITS:
            raise BadData(
                f"{weight} is packed as {list(given[weight].shape)} with scales {list(scales.shape)}, "
                f"but config.json makes it {width} wide",
                hint=_NOT_TOGETHER,
            )


def check_weights(model: nn.Module, given: Mapping[str, mx.array]) -> None:
    """What the files hold against what config.json asks for."""
    asked = dict(tree_flatten(model.parameters()))
    for path, array in asked.items():
        found = given.get(path)
        if found is None:
            raise BadData(
                f"the files have no tensor for {path}, which config.json asks for",
                hint=_NOT_TOGETHER,
            )
        if found.shape != array.shape:
            raise BadData(
                f"the tensor for {path} is {list(found.shape)}, but config.json makes it {list(array.shape)}",
                hint=_NOT_TOGETHER,
            )
        fractions = mx.issubdtype(array.dtype, mx.floating)
        if not (mx.issubdtype(found.dtype, mx.floating) if fractions else found.dtype == array.dtype):
            raise BadData(f"the tensor for {path} is of {found.dtype} where {array.dtype} is due")
    extra = sorted(set(given) - set(asked))
    if extra:
        raise BadData(
            f"the files hold {len(extra)} tensors that this family does not have, first {shown(extra[0])}",
            hint=_NOT_TOGETHER,
        )


def check_formats(model: nn.Module, mine: frozenset[str]) -> None:
    """Packed weights that this machine would not compute, or compute wrongly."""
    packed = {formats.name_of(module) for path, module in model.named_modules() if f"{path}.weight" in mine}
    for name, group in sorted(each for each in packed if each is not None):
        trouble = formats.trouble(name, group)
        if trouble is not None:
            raise BadData(
                f"this machine does not compute {name} weights in groups of {group}: {trouble}",
                hint="Take the model in another format, or run it on other nodes.",
            )
