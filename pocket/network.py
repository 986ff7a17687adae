"""The network, as mlx-lm's llama computes it, with weights that may be rounded to 4 bits while it learns.

Knows nothing of data or of optimizing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from pocket.rounding import BITS, GROUP


@dataclass(frozen=True, slots=True)
class Shape:
    """How large it is."""

    hidden: int = 256
    inner: int = 768
    layers: int = 6
    heads: int = 4
    vocabulary: int = 2048
    context: int = 1024
    theta: float = 10_000.0
    epsilon: float = 1e-5

    @property
    def head(self) -> int:
        return self.hidden // self.heads


def rounded(weight: Tensor) -> Tensor:
    """What 4 bits keep of a weight, with the gradient passed through: mx.quantize, in torch."""
    with torch.no_grad():
        groups = weight.reshape(-1, GROUP)
        steps = 2**BITS - 1
        low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
        negative = low.abs() > high.abs()
        scale = ((high - low) / steps).clamp_min(1e-7)
        scale = torch.where(negative, scale, -scale)
        edge = torch.where(negative, low, high)
        zero = torch.round(edge / scale)
        scale = torch.where(zero != 0, edge / zero, scale)
        bias = torch.where(zero != 0, edge, torch.zeros_like(edge))
        codes = torch.round((groups - bias) / scale).clamp(0, steps)
        kept = (codes * scale.half().float() + bias.half().float()).reshape(weight.shape)
    return weight + (kept - weight).detach()


class _Linear(nn.Linear):
    rounding = False

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, rounded(self.weight) if self.rounding else self.weight)


class _Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        d, f = shape.hidden, shape.inner
        self.shape = shape
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (_Linear(d, d, bias=False) for _ in range(4))
        self.gate_proj, self.up_proj = _Linear(d, f, bias=False), _Linear(d, f, bias=False)
        self.down_proj = _Linear(f, d, bias=False)
        self.input_layernorm = nn.RMSNorm(d, eps=shape.epsilon)
        self.post_attention_layernorm = nn.RMSNorm(d, eps=shape.epsilon)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, keep: Tensor | None, keep_more: Tensor | None
    ) -> Tensor:
        b, t, d = x.shape
        h = self.input_layernorm(x)
        q, k, v = (
            p(h).view(b, t, self.shape.heads, self.shape.head).transpose(1, 2)
            for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = _turned(q, cos, sin).to(v.dtype), _turned(k, cos, sin).to(v.dtype)
        # Rows are short: spelled out, this is several times faster than the fused kernel for CPUs.
        scores = (q @ k.transpose(-1, -2)).float() * self.shape.head**-0.5
        y = scores.masked_fill(~mask, -1e9).softmax(-1).to(v.dtype) @ v
        x = x + _kept(self.o_proj(y.transpose(1, 2).reshape(b, t, d)), keep)
        h = self.post_attention_layernorm(x)
        return x + _kept(self.down_proj(F.silu(self.gate_proj(h)) * self.up_proj(h)), keep_more)


def _kept(x: Tensor, keep: Tensor | None) -> Tensor:
    return x if keep is None else x * keep


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


class Network(nn.Module):
    """Ids to logits, and to a guess of the intent where an answer begins (for training alone)."""

    def __init__(self, shape: Shape, intents: int) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(_Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden, eps=shape.epsilon)
        # Two layers before the end: what is known there, the next tokens can still use.
        self.intent_norm = nn.RMSNorm(shape.hidden, eps=shape.epsilon)
        self.intent = nn.Linear(shape.hidden, intents)
        self.rounding = False
        frequencies = shape.theta ** (-torch.arange(0, shape.head, 2) / shape.head)
        angles = torch.arange(shape.context)[:, None] * frequencies
        angles = torch.cat((angles, angles), -1)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.apply(self._initial)
        for name, weight in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.normal_(weight, std=0.04 / (2 * shape.layers) ** 0.5)

    @staticmethod
    def _initial(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.04)

    def round_weights(self, on: bool = True) -> None:
        """From now on compute with what 4 bits keep."""
        self.rounding = on
        for module in self.modules():
            if isinstance(module, _Linear):
                module.rounding = on

    def forward(
        self,
        ids: Tensor,
        position: Tensor,
        document: Tensor,
        said_at: Tensor,
        asked_at: Tensor,
        keep: Sequence[Tensor] = (),
    ) -> tuple[Tensor, Tensor]:
        """Logits at the places `said_at` and intents at `asked_at`, counted over all rows.

        `keep` holds a factor for each value between the layers: dropout, drawn by the caller.
        """
        table = rounded(self.embed_tokens.weight) if self.rounding else self.embed_tokens.weight
        kept: Iterator[Tensor | None] = iter(keep) if keep else repeat(None)
        x = _kept(F.embedding(ids, table), next(kept))
        cos, sin = (getattr(self, name)[position][:, None] for name in ("cos", "sin"))
        t = ids.shape[1]
        causal = torch.ones(t, t, dtype=torch.bool, device=ids.device).tril()
        mask = (document[:, None, :, None] == document[:, None, None, :]) & causal
        intents = None
        for n, layer in enumerate(self.layers):
            x = layer(x, cos, sin, mask, next(kept), next(kept))
            if n == self.shape.layers - 3:
                intents = self.intent(self.intent_norm(x.flatten(0, 1)[asked_at]))
        x = self.norm(x).flatten(0, 1)
        return F.linear(x[said_at], table), intents

    def named_for_mlx(self) -> dict[str, Any]:
        """The weights under the names of a llama model, as float32 arrays."""
        found = {"model.embed_tokens.weight": self.embed_tokens.weight, "model.norm.weight": self.norm.weight}
        for n, layer in enumerate(self.layers):
            for name, weight in layer.named_parameters():
                part = name.split(".")[0]
                kind = "" if "norm" in part else "self_attn." if part[0] in "qkvo" else "mlp."
                found[f"model.layers.{n}.{kind}{name}"] = weight
        return {name: weight.detach().float().numpy() for name, weight in found.items()}
