"""A model as work: what each layer weighs, reads, keeps and computes; and where it may be cut.

Made from a geometry and a packing. All bytes are those in an engine's memory. Knows nothing of machines,
of time, or of how a model is found.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from exo_cli.models.geometry import Geometry, geometry, text_config
from exo_cli.models.parts import Cache, Weights
from exo_cli.planning.packing import Packing, packing

KV_STEP: Final = 256
"""Engines' caches grow by so many positions at a time."""
FLOAT32_BYTES: Final = 4
_SCALE_BYTES: Final = 1 / 8
"""In caches of fewer bits, a number's share of what scales it: 8 bytes for 64 (mlx-lm), 4 for 32 (ours)."""


_NONE: Final = Cache()


@dataclass(frozen=True, slots=True)
class Part:
    """A layer, an embedding or a head."""

    weights_bytes: int
    read_bytes: float
    """Of the weights, what every step reads, however many requests there are."""
    routed_bytes: float = 0.0
    """Of experts: a row reads `routed_share` of them, and rows seldom the same ones."""
    routed_share: float = 1.0
    flop: float = 0.0
    """A row's."""
    attention_flop: float = 0.0
    """A row's, for each position that it looks back at."""
    cache: Cache = _NONE
    whole_bytes: int = 0
    """Of the weights, what every rank of a tensor-parallel group has whole: norms, biases, routers."""

    def step_bytes(self, rows: int) -> float:
        """What a step of so many rows reads of the weights."""
        return self.read_bytes + self.routed_bytes * (1.0 - (1.0 - self.routed_share) ** rows)

    def seen(self, position: int) -> int:
        """How many positions a row at `position` looks back at."""
        return position if self.cache.window is None else min(position, self.cache.window)

    def cached_bytes(self, position: int, item_bytes: float) -> float:
        """What a row reads of the cache."""
        return float(self.cache.items_per_token * self.seen(position) * item_bytes) + _state(self.cache)

    def kv_bytes(self, context: int, item_bytes: float) -> int:
        """What a request of so many positions is promised."""
        cap = None if self.cache.window is None else self.cache.window + KV_STEP
        kept = context if cap is None else min(context, cap)
        steps = -(-kept // KV_STEP) * KV_STEP if self.cache.items_per_token else 0
        return int(self.cache.items_per_token * steps * item_bytes) + _state(self.cache)


def _state(cache: Cache) -> int:
    return (cache.state_items + cache.float32_items) * FLOAT32_BYTES


@dataclass(frozen=True, slots=True)
class Work:
    """A model to be placed."""

    layers: tuple[Part, ...]
    embedding: Part
    """On the first stage; a row of it is read, which costs nothing."""
    head: Part
    """On the last stage, with what stands around it; its weights are the embedding's where it is tied."""
    tied: bool
    cuts: tuple[int, ...]
    """Where a stage may begin or end, 0 and the number of layers included."""
    width: int
    """How many numbers a position sends from stage to stage."""
    wire_item_bytes: int
    kv_item_bytes: float
    """Of a number in a cache, with its share of what scales it."""
    format: str
    """What rates for such weights go by."""
    longest: int
    """The longest context that the model knows."""
    units: int = 1
    """Into how many parts tensor parallelism can share its layers: key and value heads, or heads where
    there is one latent cache."""
    kv_bits: Literal[8] | None = None
    """Of a number in the caches; None: as it is computed."""
    latent: bool = False
    """Whether every rank would keep the whole cache."""

    @property
    def weights_bytes(self) -> int:
        return self.stage_weights_bytes(0, len(self.layers))

    def stage_weights_bytes(self, first: int, last: int) -> int:
        """Of layers `first` to `last`, the latter excluded, with what belongs to the ends."""
        total = sum(layer.weights_bytes for layer in self.layers[first:last])
        if first == 0:
            total += self.embedding.weights_bytes
        if last == len(self.layers):
            total += self.head.weights_bytes
            if self.tied and first != 0:
                total += self.embedding.weights_bytes
        return total

    def stage_kv_bytes(self, first: int, last: int, context: int) -> int:
        """What one request of that context is promised in these layers."""
        return sum(layer.kv_bytes(context, self.kv_item_bytes) for layer in self.layers[first:last])

    def row_bytes(self) -> int:
        """What a position takes on the wire."""
        return self.width * self.wire_item_bytes

    def with_kv_bits(self, bits: Literal[8] | None) -> "Work":
        """The same with caches of so many bits."""
        if bits is None:
            return self
        return replace(self, kv_bits=bits, kv_item_bytes=bits / 8 + _SCALE_BYTES)


def work_of(
    config: Mapping[str, Any],
    *,
    repository: str = "",
    item_bytes: int = FLOAT32_BYTES,
    cuts: Sequence[int] | None = None,
) -> Work:
    """From a config.json. `item_bytes`: in what engines compute and keep caches (`exact`: float32)."""
    plain = text_config(config)
    packed = packing(config, repository=repository, item_bytes=item_bytes)
    return _work(geometry(config), packed, plain, item_bytes, cuts)


def work_of_sizes(
    layers: Sequence[int],
    *,
    first: int,
    last: int,
    kv_bytes_per_token: int,
    width: int,
    longest: int,
    format: str = "float32",
) -> Work:
    """Of a family whose geometry is not known: bytes in memory by layer, and at both ends.

    Every weight is taken to be read at every step, and to be about five bits: a mixture of experts is
    quicker than that.
    """
    cache = Cache(items_per_token=-(-kv_bytes_per_token // FLOAT32_BYTES))

    def part(size: int, kept: Cache = _NONE) -> Part:
        return Part(size, float(size), flop=2.0 * size * 8 / 5, cache=kept)

    return Work(
        layers=tuple(part(size, cache) for size in layers),
        embedding=part(first),
        head=part(last),
        tied=False,
        cuts=tuple(range(len(layers) + 1)),
        width=width,
        wire_item_bytes=FLOAT32_BYTES,
        kv_item_bytes=FLOAT32_BYTES,
        format=format,
        longest=longest,
    )


def _work(
    found: Geometry, packed: Packing, config: Mapping[str, Any], item_bytes: int, cuts: Sequence[int] | None
) -> Work:
    heads = int(config.get("num_attention_heads") or 1)
    latent = any("kv_a_proj" in name for layer in found.layers[:1] for name in layer.weights)
    kv_heads = 1 if latent else int(config.get("num_key_value_heads") or heads)
    # Two products for each number that the cache has and each query that reads it; a latent cache's
    # number serves as key and as value.
    a_number = (4.0 if latent else 2.0) * heads / kv_heads
    layers = tuple(
        _part(f"layers.{number}.", layer.weights, packed, cache=layer.cache, a_number=a_number)
        for number, layer in enumerate(found.layers)
    )
    ends = _part("", found.ends, packed)
    embedding = _part("", found.embedding, packed)
    head = ends
    if found.is_tied:
        read, flop = ends.read_bytes + embedding.read_bytes, ends.flop + embedding.flop
        head = replace(ends, read_bytes=read, flop=flop)
    count = len(layers)
    allowed = tuple(sorted({0, count, *(range(1, count) if cuts is None else cuts)}))
    return Work(
        layers=layers,
        embedding=embedding,
        head=head,
        tied=found.is_tied,
        cuts=allowed,
        width=next(iter(found.embedding.values())).shape[-1],
        wire_item_bytes=item_bytes,
        kv_item_bytes=item_bytes,
        format=packed.format,
        longest=int(config.get("max_position_embeddings") or 4096),
        units=heads if latent else kv_heads,
        latent=latent,
    )


def _part(
    prefix: str, weights: Weights, packed: Packing, *, cache: Cache = _NONE, a_number: float = 0.0
) -> Part:
    whole, routed, everywhere, flop, share = 0, 0, 0, 0.0, 1.0
    for name, weight in weights.items():
        size = packed.bytes_of(prefix + name, weight)
        whole += size
        if weight.experts > 1:
            routed += size
            share = weight.used / weight.experts
        if weight.is_matrix:
            flop += 2.0 * weight.active_items
        if not weight.is_matrix or weight.always_8_bits:
            everywhere += size
    return Part(
        weights_bytes=whole,
        read_bytes=float(whole - routed),
        routed_bytes=float(routed),
        routed_share=share,
        flop=flop,
        attention_flop=a_number * cache.items_per_token,
        cache=cache,
        whole_bytes=everywhere,
    )
