"""A layer's mixture of experts: whether the kernels compute it, and its weights in their layout.

A mixture is known if it is a router and one SwitchGLU of mlx-lm's, and chooses experts as the families below
do. Knows nothing of attention or of other layers.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any, Final

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.gpt_oss import SwigluOAI
from mlx_lm.models.switch_layers import SwiGLU, SwitchGLU

from exo_cli.engine.cpu.expand import NotNative, joined, one_matrix, parts_of
from exo_cli.engine.cpu.layout import Bytes, room
from exo_cli.engine.cpu.plan import Experts, Gated
from exo_cli.engine.cpu.rows import LIMIT, STEEP

ROUTERS: Final = {"qwen3_moe": "gate", "mixtral": "gate", "gpt_oss": "router"}
"""Modules of mlx-lm whose mixtures are known, and how they call what chooses."""
_NAMES: Final = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class Mixture:
    """Its parts, as mlx-lm has them."""

    router: nn.Module
    experts: Any
    top: int
    shares: bool

    @property
    def hidden(self) -> int:
        return int(self.experts.gate_proj.weight.shape[1])

    @property
    def count(self) -> int:
        return int(self.experts.gate_proj.weight.shape[0])

    @property
    def clamped(self) -> bool:
        return type(self.experts.activation) is SwigluOAI


def mixture_of(mlp: Any, family: str) -> Mixture | None:
    """None where it is no mixture; raises NotNative for one that is not known."""
    found = [name for name, part in mlp.children().items() if type(part) is SwitchGLU]
    if not found:
        return None
    router = mlp.get(ROUTERS.get(family, ""))
    parts = [part for part in mlp.children().values() if part]
    shared = getattr(mlp, "sharding_group", None) is not None
    if router is None or len(found) != 1 or len(parts) != 2 or shared:
        raise NotNative("a mixture with other parts")
    top = int(getattr(mlp, "top_k", 0) or mlp.num_experts_per_tok)
    made = Mixture(router, mlp[found[0]], top, shares=not getattr(mlp, "norm_topk_prob", True))
    _check(made)
    return made


def _check(found: Mixture) -> None:
    switch = found.experts
    activation = switch.activation
    if found.clamped:
        known = (activation._alpha, activation._limit) == (STEEP, LIMIT)
    else:
        known = type(activation) is SwiGLU
    if not known:
        raise NotNative("experts with another function")
    if len({"scales" in switch[name] for name in _NAMES[:2]}) != 1:
        raise NotNative("experts of which some are packed and some are not")
    if not 0 < found.top <= found.count:
        raise NotNative(f"{found.top} of {found.count} experts")


def experts(found: Mixture, workers: int) -> Experts:
    """Its weights for the kernels: the router's in floats, the experts' as they are packed."""
    router = nn.Module()
    router.weight = _in_floats(found.router)
    if "bias" in found.router:
        router.bias = found.router["bias"]
    places = [_Places(found.count) for _ in range(2)]

    # MLX's arrays belong to this thread: only what stands for them goes to the others.
    gathered = []
    for number in range(found.count):
        gate, up, down = (_one(found.experts[name], number) for name in _NAMES)
        gathered.append((parts_of([gate, up]), parts_of([down])))

    def made(one: Any) -> Gated:
        (gate_up, bias), (down, bias_down) = one
        return Gated(
            joined(gate_up, interleaved=True, bias=bias, where=places[0].next),
            joined(down, bias=bias_down, where=places[1].next),
        )

    with ThreadPoolExecutor(workers) as pool:
        each = list(pool.map(made, gathered))
    return Experts(one_matrix([router]), each, found.top, found.shares, found.clamped)


def _in_floats(module: nn.Module) -> mx.array:
    """A matrix's numbers."""
    weight: mx.array = module["weight"]
    if "scales" not in module:
        return weight
    affine = "biases" in module
    return mx.dequantize(
        weight,
        module["scales"].astype(mx.float32) if affine else module["scales"],
        module["biases"].astype(mx.float32) if affine else None,
        group_size=module.group_size,
        bits=module.bits,
        mode=getattr(module, "mode", "affine"),
    ).astype(mx.float32)


def _one(module: Any, number: int) -> nn.Module:
    """One expert's layer, of those that lie in one array."""
    one = nn.Module()
    for name in ("weight", "scales", "biases", "bias"):
        if isinstance(module.get(name), mx.array):
            one[name] = module[name][number : number + 1].squeeze(0)
    for name in ("bits", "group_size", "mode"):
        if hasattr(module, name):
            setattr(one, name, getattr(module, name))
    return one


class _Places:
    """One room for all experts of a layer, a matrix behind the other, so that large pages hold several."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._lock = Lock()
        self._room: Bytes | None = None
        self._used = 0

    def next(self, size: int) -> Bytes:
        with self._lock:
            if self._room is None:
                self._room = room(self._count * size)
            start = self._used
            if start + size > len(self._room):
                # Another size than the first one's: scales that need more bits.
                return room(size)
            self._used += size
            return self._room[start : start + size]
