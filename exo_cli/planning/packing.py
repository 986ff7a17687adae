"""How a model's tensors lie in an engine's memory: which are packed, at how many bits, beside what.

Read off the `quantization` block of config.json, or off the name of a repository where there is none.
Knows nothing of layers and of machines.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from exo_cli.errors import BadData
from exo_cli.models.parts import Weight

_BYTE_SCALES: Final = {"mxfp4": (32, 4), "mxfp8": (32, 8), "nvfp4": (16, 4)}
"""Modes whose groups have one scale of a byte, in one size and one number of bits."""
_AFFINE_BITS: Final = (2, 3, 4, 5, 6, 8)
_GROUPS: Final = (16, 32, 64, 128)
_BITS_IN_NAME: Final = re.compile(r"(?:^|[-_.])(2|3|4|5|6|8)bit(?:$|[-_.])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Scheme:
    """One way to pack a matrix."""

    bits: int
    group: int
    mode: str = "affine"

    @property
    def name(self) -> str:
        return f"affine{self.bits}" if self.mode == "affine" else self.mode

    def bytes_of(self, items: int, item_bytes: int) -> int:
        """Packed integers and what scales them."""
        scales = items // self.group * (2 * item_bytes if self.mode == "affine" else 1)
        return items * self.bits // 8 + scales


@dataclass(frozen=True, slots=True)
class Packing:
    """How each tensor is kept; `scheme` None: as plain numbers of `item_bytes`."""

    scheme: Scheme | None
    item_bytes: int
    """Of everything that is not packed, scales and biases of affine groups included."""
    experts: Scheme | None = None
    """Of stacked experts, where they are packed otherwise than the rest."""
    paths: Mapping[str, Scheme | None] = field(default_factory=dict)
    """Single modules that config.json names; None is not packed."""

    @property
    def format(self) -> str:
        """The name that rates go by: the format of most of the bytes."""
        scheme = self.experts or self.scheme
        if scheme is not None:
            return scheme.name
        return "float32" if self.item_bytes == 4 else "bfloat16"

    def bytes_of(self, name: str, weight: Weight) -> int:
        """`name` as models.geometry has it: `layers.3.mlp.gate_proj.weight`."""
        scheme = self._scheme(name, weight)
        if scheme is None or weight.shape[-1] % scheme.group:
            return weight.items * self.item_bytes
        return scheme.bytes_of(weight.items, self.item_bytes)

    def _scheme(self, name: str, weight: Weight) -> Scheme | None:
        if not weight.is_matrix:
            return None
        module = name.removesuffix(".weight")
        if module in self.paths:
            return self.paths[module]
        if self.scheme is None:
            return None
        if weight.experts > 1 and self.experts is not None:
            return self.experts
        return Scheme(8, 64) if weight.always_8_bits else self.scheme


def packing(config: Mapping[str, Any], *, repository: str = "", item_bytes: int) -> Packing:
    """What config.json says; where it says nothing, what the repository's name does."""
    block = config.get("quantization") or config.get("quantization_config")
    if isinstance(block, Mapping):
        whole = _scheme(block)
        paths = {_plain(path): _one(said) for path, said in block.items() if isinstance(said, Mapping | bool)}
        return Packing(whole, item_bytes, paths=paths)
    if re.search(r"mxfp4[-_]q8", repository, re.IGNORECASE):
        return Packing(Scheme(8, 64), item_bytes, experts=Scheme(4, 32, "mxfp4"))
    found = _BITS_IN_NAME.search(repository)
    return Packing(Scheme(int(found[1]), 64) if found else None, item_bytes)


def _one(said: Mapping[str, Any] | bool) -> Scheme | None:
    return _scheme(said) if isinstance(said, Mapping) else None


def _scheme(block: Mapping[str, Any]) -> Scheme:
    mode = str(block.get("mode") or "affine")
    if mode in _BYTE_SCALES:
        return Scheme(_BYTE_SCALES[mode][1], _BYTE_SCALES[mode][0], mode)
    bits, group = block.get("bits"), block.get("group_size", 64)
    if mode != "affine" or bits not in _AFFINE_BITS or group not in _GROUPS:
        raise BadData(
            f"how the model is quantized is not known here: mode {mode[:40]}, bits {bits!r:.20}, "
            f"groups of {group!r:.20}",
            hint="exo plans models that mlx-lm converted: affine bits, mxfp4, mxfp8 or nvfp4.",
        )
    return Scheme(int(bits), int(group))


def _plain(path: str) -> str:
    """mlx-lm's name of a module without what wraps the layers."""
    return path.removeprefix("language_model.").removeprefix("model.")
