"""Which weight formats MLX computes on this machine: tried on a small matrix, and compared.

The same trial answers Describe (`abilities`) and guards a load. A format is what mlx-lm calls it: a dtype,
`affine` with its bits, or a mode; with "experts" for the operations that choose among matrices. Knows
nothing of models.
"""

from typing import Any, Final, cast

import mlx.core as mx
import mlx.nn as nn

DENSE: Final = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
AFFINE_BITS: Final = (2, 3, 4, 5, 6, 8)
MODES: Final = {"mxfp4": (32, 4), "mxfp8": (32, 8), "nvfp4": (16, 4)}
"""Modes that come in one group size and one number of bits."""
EXPERTS: Final = " experts"
_ROWS, _WIDTH, _GROUP = 8, 256, 64
_TOLERANCE: Final = {"float32": 1e-2, "float16": 5e-2, "bfloat16": 2e-1}
"""Of a sum of 256 products of numbers around 0.05 and 1; what is computed wrongly is off by about 1."""


def known() -> tuple[str, ...]:
    """Every format there is a trial for."""
    plain = (*DENSE, *(f"affine{bits}" for bits in AFFINE_BITS), *MODES)
    return (*plain, *(f"{each}{EXPERTS}" for each in plain))


def name_of(module: nn.Module) -> tuple[str, int] | None:
    """A packed layer's format and group size; None for one that is not packed."""
    bits, group = getattr(module, "bits", None), getattr(module, "group_size", None)
    if not isinstance(bits, int) or not isinstance(group, int):
        return None
    mode = str(getattr(module, "mode", "affine"))
    experts = EXPERTS if "Switch" in type(module).__name__ else ""
    return (f"affine{bits}" if mode == "affine" else mode) + experts, group


def trouble(name: str, group: int = _GROUP) -> str | None:
    """Why it cannot be computed here with float32 activations, or with its own if it is a dtype."""
    plain = name.removesuffix(EXPERTS)
    experts = plain != name
    dtype = DENSE.get(plain, mx.float32)
    weight = mx.random.normal((2, _ROWS, _WIDTH), key=mx.random.key(1)) * 0.05
    x = mx.random.normal((1, _WIDTH), key=mx.random.key(2)).astype(dtype)
    try:
        if plain in DENSE:
            weight = weight.astype(dtype)
            found = _dense(x, weight, experts)
        else:
            found, weight = _packed(x, weight, plain, group, experts)
        right = x.astype(mx.float32) @ weight[1].astype(mx.float32).T
        off = cast(float, mx.abs(found.astype(mx.float32) - right).max().item())
    except (RuntimeError, ValueError, TypeError) as error:
        return " ".join(str(error).split())[:200] or type(error).__name__
    bound = _TOLERANCE.get(plain, _TOLERANCE["float32"])
    return None if off <= bound else f"its result was off by {off:.2g}"


def _dense(x: mx.array, weight: mx.array, experts: bool) -> mx.array:
    if not experts:
        return x @ weight[1].T
    return mx.gather_mm(x[None], weight.swapaxes(-1, -2), rhs_indices=mx.array([1]))[0]


def _packed(
    x: mx.array, weight: mx.array, plain: str, group: int, experts: bool
) -> tuple[mx.array, mx.array]:
    """The product, and the matrices that the packed ones stand for."""
    mode = plain if plain in MODES else "affine"
    group, bits = MODES.get(plain, (group, int(plain.removeprefix("affine")) if mode == "affine" else 0))
    how: dict[str, Any] = {"group_size": group, "bits": bits, "mode": mode}
    parts = mx.quantize(weight, **how)
    whole = mx.dequantize(*parts, **how).astype(mx.float32)
    if experts:
        chosen = mx.array([1])
        return mx.gather_qmm(x[None], *parts, rhs_indices=chosen, transpose=True, **how)[0], whole
    weights, scales, *biases = (each[1] for each in parts)
    bias = biases[0] if biases else None
    return mx.quantized_matmul(x, weights, scales, bias, transpose=True, **how), whole
