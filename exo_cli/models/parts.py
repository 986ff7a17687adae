"""The parts that layers are made of, as tensors with shapes: matrices, norms, experts, caches.

Pure arithmetic. Knows nothing of families; those put the parts together.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]
Weights = dict[str, "Weight"]


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor. Of `experts` that it stacks, a token reads `used`."""

    shape: tuple[int, ...]
    is_matrix: bool = False
    """Whether a quantized model has it quantized."""
    always_8_bits: bool = False
    """mlx-lm keeps some routers at 8 bits in groups of 64, whatever the rest has."""
    experts: int = 1
    used: int = 1

    @property
    def items(self) -> int:
        return math.prod(self.shape)

    @property
    def active_items(self) -> int:
        return self.items * self.used // self.experts


@dataclass(frozen=True, slots=True)
class Cache:
    """What a layer keeps of a request: so many items a token up to a window, and a state of fixed size."""

    items_per_token: int = 0
    window: int | None = None
    state_items: int = 0
    float32_items: int = 0
    """State that is kept in float32 whatever the rest is in."""

    def bytes_at(self, tokens: int, item_bytes: int) -> int:
        kept = tokens if self.window is None else min(tokens, self.window)
        return (self.items_per_token * kept + self.state_items) * item_bytes + self.float32_items * 4


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's tensors by their names within it, and its cache."""

    weights: Weights
    cache: Cache


@dataclass(frozen=True, slots=True)
class Model:
    """A whole model in parts."""

    embedding: Weights
    layers: tuple[Layer, ...]
    ends: Weights
    further: tuple[Layer, ...] = ()


def linear(name: str, out: int, into: int, *, bias: bool = False, always_8_bits: bool = False) -> Weights:
    """A matrix, and its bias if it has one."""
    found = {f"{name}.weight": Weight((out, into), is_matrix=True, always_8_bits=always_8_bits)}
    if bias:
        found[f"{name}.bias"] = Weight((out,))
    return found


def vector(name: str, width: int) -> Weights:
    return {name: Weight((width,))}


def norms(width: int, *names: str) -> Weights:
    return {f"{name}.weight": Weight((width,)) for name in names}


def gated_mlp(prefix: str, hidden: int, inner: int, *, bias: bool = False) -> Weights:
    """gate, up and down."""
    return {
        **linear(f"{prefix}.gate_proj", inner, hidden, bias=bias),
        **linear(f"{prefix}.up_proj", inner, hidden, bias=bias),
        **linear(f"{prefix}.down_proj", hidden, inner, bias=bias),
    }


def expert_mlp(
    prefix: str, hidden: int, inner: int, experts: int, used: int, *, bias: bool = False
) -> Weights:
    """The same for many experts, each of the three stacked in one tensor."""
    if not 0 < used <= experts:
        raise ValueError(f"{used} of {experts} experts")
    found: Weights = {}
    for name, out, into in (("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner)):
        shape = (experts, out, into)
        found[f"{prefix}.{name}_proj.weight"] = Weight(shape, is_matrix=True, experts=experts, used=used)
        if bias:
            found[f"{prefix}.{name}_proj.bias"] = Weight(shape[:2], experts=experts, used=used)
    return found


def attention(
    hidden: int,
    heads: int,
    kv_heads: int,
    head: int,
    *,
    bias: bool = False,
    out_bias: bool | None = None,
    qk_norm: bool = False,
    gated: bool = False,
) -> Weights:
    """Grouped-query attention. `gated` queries are twice as wide: one half is a gate on the output."""
    found = {
        **linear("self_attn.q_proj", heads * head * (2 if gated else 1), hidden, bias=bias),
        **linear("self_attn.k_proj", kv_heads * head, hidden, bias=bias),
        **linear("self_attn.v_proj", kv_heads * head, hidden, bias=bias),
        **linear("self_attn.o_proj", hidden, heads * head, bias=bias if out_bias is None else out_bias),
    }
    return found | (norms(head, "self_attn.q_norm", "self_attn.k_norm") if qk_norm else {})
