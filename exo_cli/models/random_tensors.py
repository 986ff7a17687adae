"""The tensors of a model with random weights: names, shapes, dtypes and how each is to be filled.

Worked out from config.json alone: the geometry says what matrices there are, the `quantization` block how
they are packed, and a few rules about names how large their numbers should be, so that activations and
logits stay of a trained model's size. Packed matrices are random integers with fitting scales; nothing is
ever quantized. Knows nothing of files, and makes no numbers itself (random_values does).
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from exo_cli.errors import BadData
from exo_cli.models.families import FAMILIES
from exo_cli.models.geometry import geometry, text_config
from exo_cli.models.parts import Config, Weight
from exo_cli.models.safetensors import shown

VERSION: Final = 1
"""What a seed stands for changes with this."""
AFFINE_BITS: Final = (2, 3, 4, 5, 6, 8)
AFFINE_GROUPS: Final = (32, 64, 128)
MXFP4_GROUP: Final = 32
DTYPES: Final = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
"""config.json's names for the dtype of what is not packed."""
DEFAULT_DTYPE: Final = "bfloat16"

_MXFP4_SPREAD: Final = math.sqrt(8.5625)
"""Of the sixteen numbers that four bits stand for in mxfp4, each as often as the others."""
_EMBEDDING: Final = "embed_tokens.weight"
_QUERIES: Final = ("q_proj.weight", "q_b_proj.weight", "q_norm.weight")
_QUERY_GAIN: Final = 2.0
"""Sharper than chance, or attention over a long context would be a mean that says nothing."""
_LOGITS: Final = 2.0
"""How large logits are, about."""
_GEMMA_EMBEDDING: Final = 0.25
"""Gemma multiplies its embedding by the root of its width: a full one would make every token say itself."""
_VECTORS: Final = {
    "e_score_correction_bias": (-0.01, 0.01),
    "sinks": (-1.0, 1.0),
    "dt_bias": (-4.0, -1.0),
    "A_log": (0.0, 2.5),
    "bias": (-0.05, 0.05),
}
"""By the last part of the name: between which numbers they lie."""
_NORM_SPREAD: Final = 0.1


@dataclass(frozen=True, slots=True)
class Bits:
    """Packed integers: every bit by chance."""


@dataclass(frozen=True, slots=True)
class Uniform:
    """Fractions, evenly between two numbers."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Offsets:
    """What makes packed integers even around nothing: the scales of another tensor, times a factor."""

    scales: str
    drawn: Uniform
    factor: float


@dataclass(frozen=True, slots=True)
class Exponents:
    """Bytes that are powers of two: `low`, and one more for `share` of 256."""

    low: int
    share: int


Recipe = Bits | Uniform | Offsets | Exponents


@dataclass(frozen=True, slots=True)
class RandomTensor:
    """One tensor of the files; `dtype` by the name that safetensors has for it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    recipe: Recipe


@dataclass(frozen=True, slots=True)
class _Packing:
    """How a matrix is packed."""

    bits: int
    group: int
    mode: str


def tensors(config: Config) -> Iterator[RandomTensor]:
    """Every tensor that mlx-lm's own conversion would write, from the embedding to the head."""
    family = config.get("model_type")
    if family not in FAMILIES:
        raise BadData(
            f"no random weights can be made for the model family {shown(family)}",
            hint=f"Known are {', '.join(sorted(FAMILIES))}.",
        )
    found = geometry(config)
    if not found.layers:
        raise BadData("config.json makes a model without layers")
    dtype = dtype_of(config)
    block = config.get("quantization")
    if block is not None and not isinstance(block, Mapping):
        raise BadData("config.json: quantization is not an object")
    for short, weight in found.weights():
        name = full_name(short, config)
        packing = None if block is None else _packing(block, name.removesuffix(".weight"), weight)
        if packing is None:
            yield RandomTensor(name, dtype, weight.shape, _dense(short, weight, str(family)))
        else:
            yield from _packed(name, dtype, weight, packing, _spread(short, weight, str(family)))


def full_name(short: str, config: Config) -> str:
    """mlx-lm's whole name for a tensor that the geometry calls so."""
    outer = "language_model." if config["model_type"] == "gemma3" else ""
    return f"{outer}{short}" if short.startswith("lm_head.") else f"{outer}model.{short}"


def dtype_of(config: Config) -> str:
    """What is not packed is kept in this dtype."""
    inner = text_config(config)
    said = inner.get("torch_dtype") or inner.get("dtype") or DEFAULT_DTYPE
    dtype = DTYPES.get(said) if isinstance(said, str) else None
    if dtype is None:
        raise BadData(f"config.json has the dtype {shown(said)}", hint=f"Known are {', '.join(DTYPES)}.")
    return dtype


# ------------------------------------------------------------------------- packing


def _packing(block: Mapping[str, Any], path: str, weight: Weight) -> _Packing | None:
    """What `quantization` says of a matrix: for its path, else for all that can be divided."""
    if not weight.is_matrix:
        return None
    own = block.get(path)
    if own is False:
        return None
    named = isinstance(own, Mapping)
    packing = _figures(own if isinstance(own, Mapping) else block)
    width = weight.shape[-1]
    if width % packing.group:
        if named:
            raise BadData(f"config.json packs {shown(path)} in groups of {packing.group}; it is {width} wide")
        return None
    return packing


def _figures(settings: Mapping[str, Any]) -> _Packing:
    mode, bits, group = settings.get("mode", "affine"), settings.get("bits"), settings.get("group_size")
    if mode == "mxfp4" and (bits, group) == (4, MXFP4_GROUP):
        return _Packing(4, MXFP4_GROUP, "mxfp4")
    numbers = type(bits) is int and type(group) is int
    if mode != "affine" or not numbers or bits not in AFFINE_BITS or group not in AFFINE_GROUPS:
        raise BadData(
            f"no random weights are made with {shown(bits)} bits in groups of {shown(group)} ({shown(mode)})",
            hint=f"Affine has {_listed(AFFINE_BITS)} bits in groups of {_listed(AFFINE_GROUPS)}; "
            f"mxfp4 has 4 in groups of {MXFP4_GROUP}.",
        )
    return _Packing(bits, group, "affine")


def _packed(
    name: str, dtype: str, weight: Weight, packing: _Packing, spread: float
) -> Iterator[RandomTensor]:
    *rows, width = weight.shape
    path = name.removesuffix(".weight")
    yield RandomTensor(name, "U32", (*rows, width * packing.bits // 32), Bits())
    groups = (*rows, width // packing.group)
    if packing.mode == "mxfp4":
        yield RandomTensor(f"{path}.scales", "U8", groups, _exponents(spread / _MXFP4_SPREAD))
        return
    most = 2**packing.bits - 1
    # The spread of whole numbers from 0 to `most`, each as often as the others.
    scale = spread / math.sqrt(most * (most + 2) / 12)
    drawn = Uniform(0.75 * scale, 1.25 * scale)
    yield RandomTensor(f"{path}.scales", dtype, groups, drawn)
    yield RandomTensor(f"{path}.biases", dtype, groups, Offsets(f"{path}.scales", drawn, -most / 2))


def _exponents(scale: float) -> Exponents:
    """Two neighbouring powers of two whose squares are `scale` squared on the average."""
    mantissa, exponent = math.frexp(scale)
    # Between 2 ** (exponent - 1) and its double; 127 stands for 2 ** 0.
    share = ((2 * mantissa) ** 2 - 1) / 3
    return Exponents(exponent - 1 + 127, round(256 * share))


# -------------------------------------------------------------------------- sizes


def _dense(short: str, weight: Weight, family: str) -> Uniform:
    """Of what is not packed."""
    *_, module, last = short.rsplit(".", 2)
    if last in _VECTORS:
        return Uniform(*_VECTORS[last])
    if module.endswith("norm"):
        middle = _norm(short, family)
        return Uniform(middle - _NORM_SPREAD, middle + _NORM_SPREAD)
    half = _spread(short, weight, family) * math.sqrt(3)
    return Uniform(-half, half)


def _norm(short: str, family: str) -> float:
    """What a norm multiplies with; Gemma adds one to what is kept."""
    gemma = family.startswith("gemma")
    factor = _QUERY_GAIN if short.endswith(_QUERIES) else 1.0
    if short == "norm.weight":
        factor = _LOGITS / (_GEMMA_EMBEDDING if gemma else 1.0)
    return factor - (1.0 if gemma else 0.0)


def _spread(short: str, weight: Weight, family: str) -> float:
    """A matrix's standard deviation: what comes out is as large as what goes in."""
    into = weight.shape[-1] if weight.shape[-1] > 1 else weight.shape[-2]
    gain = _QUERY_GAIN if short.endswith(_QUERIES) else 1.0
    if short == _EMBEDDING and family.startswith("gemma"):
        gain = _GEMMA_EMBEDDING
    return gain / math.sqrt(into)


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))
