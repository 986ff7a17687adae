"""Several requests in one step while each keeps a KV cache of its own.

A model sees one cache per layer; here that is a view over the requests' caches. New keys and values
are written into each request's own buffers, and attention runs row by row over them, so that no
request's KV is copied, padded or moved when another one joins or leaves, and every row computes what
it would compute alone. Small recurrent states are gathered and put back.

Decoding steps only: one token a row. Knows nothing of where caches come from. A model that does
something else with what `update_and_fetch` returns fails here with TypeError; `can_share` finds out.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

import mlx.core as mx
from mlx_lm.models import base
from mlx_lm.models.cache import ArraysCache, CacheList, KVCache, RotatingKVCache

_ATTENTION: Final = "scaled_dot_product_attention"


class Ragged:
    """One array a row, of different lengths. Only attention knows what to do with it."""

    __slots__ = ("rows",)

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows


class KVRows:
    """The KV caches of one layer, a request each."""

    def __init__(self, caches: Sequence[Any]) -> None:
        self._caches = caches

    @property
    def offset(self) -> mx.array:
        return mx.array([cache.offset for cache in self._caches], dtype=mx.int32)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Ragged, Ragged]:
        fetched = [
            cache.update_and_fetch(keys[row : row + 1], values[row : row + 1])
            for row, cache in enumerate(self._caches)
        ]
        return Ragged([each[0] for each in fetched]), Ragged([each[1] for each in fetched])

    def make_mask(self, n: int, **options: Any) -> Ragged:
        return Ragged([cache.make_mask(n, **options) for cache in self._caches])


class StateRows:
    """The recurrent states of one layer: small, of one shape, gathered for the step."""

    def __init__(self, caches: Sequence[ArraysCache]) -> None:
        self._caches = caches
        self.left_padding = None
        self.lengths = None

    def __getitem__(self, index: int) -> mx.array | None:
        states = [cache[index] for cache in self._caches]
        if any(state is None for state in states):
            # A request that starts with a decoding step has no state yet; `Step` never builds one.
            raise TypeError("a row has no recurrent state yet")
        return mx.concatenate(states)

    def __setitem__(self, index: int, value: mx.array) -> None:
        for row, cache in enumerate(self._caches):
            cache[index] = value[row : row + 1]

    def advance(self, n: int) -> None:
        for cache in self._caches:
            cache.advance(n)

    def make_mask(self, n: int) -> None:
        return None


def together(caches: Sequence[Any]) -> Any:
    """One cache that stands for those of several requests; TypeError where that cannot be."""
    first = caches[0]
    if isinstance(first, KVCache | RotatingKVCache):
        return KVRows(caches)
    if isinstance(first, ArraysCache):
        return StateRows(caches)
    if isinstance(first, CacheList):
        return CacheList(*(together([cache[part] for cache in caches]) for part in range(len(first.caches))))
    raise TypeError(f"{type(first).__name__} cannot be shared by several requests")


def attend_by_row(model_module: str) -> None:
    """Let the attention of a model's module take ragged rows; plain arrays go the way they went."""
    module = sys.modules[model_module]
    original = getattr(module, _ATTENTION, None)
    if original is base.scaled_dot_product_attention:
        setattr(module, _ATTENTION, _by_row(original))


def _by_row(original: Callable[..., mx.array]) -> Callable[..., mx.array]:
    def attention(
        queries: mx.array, keys: Any, values: Any, cache: Any, scale: float, mask: Any, sinks: Any = None
    ) -> mx.array:
        if not isinstance(keys, Ragged):
            return original(queries, keys, values, cache=cache, scale=scale, mask=mask, sinks=sinks)
        masks = mask.rows if isinstance(mask, Ragged) else [mask] * len(keys.rows)
        return mx.concatenate(
            [
                original(
                    queries[row : row + 1], key, value, cache=None, scale=scale, mask=masks[row], sinks=sinks
                )
                for row, (key, value) in enumerate(zip(keys.rows, values.rows, strict=True))
            ]
        )

    return attention
