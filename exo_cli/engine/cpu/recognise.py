"""Which models the native pass computes, by what they are made of, and their weights in its layout.

A block is taken if its class comes from a family whose block is known and if it holds what that block holds:
two RMS norms, attention with rotary positions, a gated MLP with silu or a mixture that `mixtures` knows.
MLX's copy of a weight is let go when ours is made. Raises NotNative for everything else, before any weight
is touched.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import KVCache, RotatingKVCache
from mlx_lm.models.rope_utils import DynamicNTKScalingRoPE

from exo_cli.engine.cpu import mixtures
from exo_cli.engine.cpu.expand import NotNative, floats, one_matrix
from exo_cli.engine.cpu.layout import Floats
from exo_cli.engine.cpu.plan import Decoder, Experts, Gated, Layer, Shape
from exo_cli.engine.cpu.turns import Turns
from exo_cli.engine.slicing import Stage

FAMILIES: Final = frozenset({"llama", "qwen2", "qwen3", *mixtures.ROUTERS})
"""Modules of mlx-lm whose block is the one above; others reuse them (Mistral is a llama there)."""
_BLOCK: Final = frozenset({"self_attn", "input_layernorm", "post_attention_layernorm"})
_MLPS: Final = frozenset({"mlp", "block_sparse_moe"})
_ATTENTION: Final = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "rope"})
_NORMS: Final = frozenset({"q_norm", "k_norm"})
_MLP: Final = frozenset({"gate_proj", "up_proj", "down_proj"})


def check(stage: Stage) -> None:
    """Raises NotNative unless every layer of the stage is known."""
    module = _family(stage)
    if module not in FAMILIES:
        raise NotNative(f"models of the family {module}")
    for cut in (stage.receives, stage.sends):
        if cut is not None and (len(cut.sent) != 1 or cut.sent[0].rest != (_width(stage),)):
            raise NotNative("what crosses this cut")
    layers = _layers(stage)
    for layer in layers:
        _check_layer(layer, module)
    if len({replace(_shape(layer), hidden=0) for layer in layers}) != 1:
        raise NotNative("layers of different shapes")
    _windows(stage)


def _family(stage: Stage) -> str:
    return type(stage.model).__module__.rpartition(".")[2]


def _windows(stage: Stage) -> list[int]:
    """By layer, how far it looks back; what its cache holds says so. 0: over everything."""
    caches = stage.make_caches()
    if len(caches) != len(_layers(stage)):
        raise NotNative("layers that have no cache, or several")
    found = []
    for cache in caches:
        if type(cache) is KVCache:
            found.append(0)
        elif type(cache) is RotatingKVCache and not cache.keep:
            found.append(int(cache.max_size))
        else:
            raise NotNative(f"caches of the kind {type(cache).__name__}")
    return found


def _layers(stage: Stage) -> list[Any]:
    return list(stage.model.layers)[stage.first : stage.last]


def _width(stage: Stage) -> int:
    return int(_layers(stage)[0].input_layernorm.weight.shape[0])


def head_width(stage: Stage) -> int:
    """How many numbers a key has."""
    return _shape(_layers(stage)[0]).head_width


def _mlp(layer: Any) -> Any:
    return layer[next(iter(layer.keys() & _MLPS))]


def _check_layer(layer: nn.Module, family: str) -> None:
    children = {name for name, part in layer.children().items() if part}
    attention = layer.get("self_attn")
    if children - _MLPS != _BLOCK or len(children & _MLPS) != 1 or attention is None:
        raise NotNative("blocks with other parts")
    parts = {name for name, part in attention.children().items() if isinstance(part, nn.Module)}
    if parts - {"rope"} - _NORMS != _ATTENTION - {"rope"} or parts & _NORMS not in (frozenset(), _NORMS):
        raise NotNative("attention with other parts")
    mlp = _mlp(layer)
    mixture = mixtures.mixture_of(mlp, family)
    gated = mlp if mixture is None else mixture.experts
    if mixture is None and {name for name, part in mlp.children().items() if part} != _MLP:
        raise NotNative("an MLP with other parts")
    norms = [layer.input_layernorm, layer.post_attention_layernorm]
    norms += [attention[name] for name in sorted(parts & _NORMS)]
    if not all(type(norm) is nn.RMSNorm for norm in norms):
        raise NotNative("norms of another kind")
    if type(attention.rope) is DynamicNTKScalingRoPE:
        raise NotNative("rotary positions that depend on the length")
    shape = _shape(layer)
    if shape.head_width % 16 or shape.width % 32 or shape.hidden % 16 or shape.heads % shape.kv_heads:
        raise NotNative(f"heads of {shape.head_width}, a width of {shape.width}")
    for names, whole in ((("q_proj", "k_proj", "v_proj"), attention), (("gate_proj", "up_proj"), gated)):
        if len({"scales" in whole[name] for name in names}) != 1:
            raise NotNative("projections of which some are packed and some are not")
    if shape.hidden % _activation_group(gated.down_proj):
        raise NotNative(f"a hidden width of {shape.hidden}")


def _activation_group(module: nn.Module) -> int:
    return min(64, int(module.group_size)) if "scales" in module else 16


def _first_of(module: Any, *names: str) -> Any:
    return next(getattr(module, name) for name in names if hasattr(module, name))


def _shape(layer: Any) -> Shape:
    attention = layer.self_attn
    heads = int(_first_of(attention, "n_heads", "num_heads", "num_attention_heads"))
    head_norm = attention.get("q_norm")
    eps = {float(layer.input_layernorm.eps), float(layer.post_attention_layernorm.eps)}
    if len(eps) != 1:
        raise NotNative("norms with different epsilons")
    mlp = _mlp(layer)
    gated = next((part for part in mlp.children().values() if "gate_proj" in part), mlp)
    return Shape(
        width=int(layer.input_layernorm.weight.shape[0]),
        heads=heads,
        kv_heads=int(_first_of(attention, "n_kv_heads", "num_key_value_heads")),
        head_width=_outputs(attention.q_proj) // heads,
        hidden=_outputs(gated.gate_proj),
        eps=eps.pop(),
        eps_head=float(head_norm.eps) if head_norm is not None else 0.0,
        scale=float(_first_of(attention, "scale", "sm_scale")),
    )


def _outputs(module: nn.Module) -> int:
    return int(module.weight.shape[-2])


def decoder(
    stage: Stage, progress: Callable[[int, int], None] = lambda done, total: None, workers: int = 1
) -> Decoder:
    """The stage's weights as the kernels want them, by so many threads. MLX's own are gone afterwards."""
    check(stage)
    layers = _layers(stage)
    shape = _shape(layers[0])
    turns = _turns(layers[0].self_attn.rope, shape.head_width)
    made = []
    for number, (layer, window) in enumerate(zip(layers, _windows(stage), strict=True)):
        made.append(_layer(layer, _family(stage), window, workers))
        _forget(layer)
        progress(number + 1, len(layers))
    model = stage.model
    first, last = stage.first == 0, stage.last == stage.anatomy.n_layers
    tied = "lm_head" not in model
    embedding = head = norm = None
    if first or (last and tied):
        embedding = one_matrix([model.model.embed_tokens], workers)
        _forget(model.model.embed_tokens)
    if last:
        head = embedding if tied else one_matrix([model.lm_head], workers)
        if not tied:
            _forget(model.lm_head)
        norm = _copied(model.model.norm.weight)
    eps = float(model.model.norm.eps)
    mx.clear_cache()
    return Decoder(shape, made, turns, embedding if first else None, head, norm, eps)


def _gated(mlp: Any, family: str, workers: int) -> Gated | Experts:
    mixture = mixtures.mixture_of(mlp, family)
    if mixture is not None:
        return mixtures.experts(mixture, workers)
    return Gated(
        one_matrix([mlp.gate_proj, mlp.up_proj], workers, interleaved=True),
        one_matrix([mlp.down_proj], workers),
    )


def _layer(layer: Any, family: str, window: int, workers: int) -> Layer:
    attention = layer.self_attn
    head_norms = [
        _copied(attention[name].weight) if name in attention else None for name in ("q_norm", "k_norm")
    ]
    return Layer(
        norm_in=_copied(layer.input_layernorm.weight),
        norm_post=_copied(layer.post_attention_layernorm.weight),
        qkv=one_matrix([attention.q_proj, attention.k_proj, attention.v_proj], workers),
        out=one_matrix([attention.o_proj], workers),
        mlp=_gated(_mlp(layer), family, workers),
        norm_query=head_norms[0],
        norm_key=head_norms[1],
        window=window,
        sinks=_copied(attention.sinks) if "sinks" in attention else None,
    )


def _copied(array: mx.array) -> Floats:
    return floats(array).copy()


def _forget(module: nn.Module) -> None:
    """MLX's weights of a module, and so their memory."""
    for part in module.modules():
        for name in ("weight", "scales", "biases", "bias"):
            if isinstance(part.get(name), mx.array):
                part[name] = mx.zeros(0)


def _turns(rope: Any, head_width: int) -> Turns:
    """Asked of the model's own rotation: what it makes of ones and zeros."""
    paired = bool(getattr(rope, "traditional", False))
    width = int(getattr(rope, "dims", None) or rope.dim)
    half = width // 2
    ones = np.zeros(head_width, np.float32)
    ones[slice(0, width, 2) if paired else slice(0, half)] = 1.0

    def made(first: int, last: int) -> Floats:
        asked = mx.broadcast_to(mx.array(ones), (1, 1, last - first, head_width))
        out = floats(rope(asked, offset=first))[0, 0, :, :width]
        cosines, sines = (out[:, 0::2], out[:, 1::2]) if paired else (out[:, :half], out[:, half:])
        return np.concatenate([cosines, sines], axis=1)

    return Turns(half, paired, made)
