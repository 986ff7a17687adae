"""A request's caches on one stage: their kinds, what they cost, cutting back, keeping a prefix for later.

Knows mlx-lm's kinds of caches and nothing of requests, frames or sampling.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlx_lm.models.cache import ArraysCache, CacheList, KVCache, QuantizedKVCache, RotatingKVCache

from exo_cli.errors import BadData

STEP = 256
"""mlx-lm's caches grow by so many positions at a time."""


@dataclass(slots=True)
class Held:
    """The caches of one request."""

    caches: list[Any]
    position: int = 0
    ids: list[int] = field(default_factory=list)
    """The tokens at the positions that are computed: penalties look back at them."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one cache takes: by position up to a cap, and once."""

    per_token: int
    cap: int | None
    fixed: int

    def bytes(self, tokens: int) -> int:
        counted = tokens if self.cap is None else min(tokens, self.cap)
        return self.fixed + self.per_token * (-(-counted // STEP) * STEP)


def parts(caches: Sequence[Any]) -> Iterator[Any]:
    """The caches themselves, out of lists of them."""
    for cache in caches:
        if isinstance(cache, CacheList):
            yield from parts(cache.caches)
        else:
            yield cache


def in_bytes(cache: Any, bits: int) -> Any:
    """As mlx-lm has it: a cache that keeps so many bits a number, instead of this one, which is empty."""
    if isinstance(cache, CacheList):
        return CacheList(*(in_bytes(each, bits) for each in cache.caches))
    if type(cache) is KVCache:
        return QuantizedKVCache(bits=bits)
    if isinstance(cache, ArraysCache):
        return cache  # a state holds no keys
    raise not_in_bytes(bits, f"it has caches of the kind {type(cache).__name__}")


def not_in_bytes(bits: int, why: str) -> BadData:
    return BadData(f"{bits}-bit caches are not for this model: {why}", hint="Leave --kv-bits out.")


def costs(used: Sequence[Any]) -> tuple[Cost, ...]:
    """What caches of these kinds take; `used` have gone through a step, so that their shapes are known."""
    return tuple(_cost(cache) for cache in parts(used))


def _cost(cache: Any) -> Cost:
    if isinstance(cache, KVCache | RotatingKVCache):
        if cache.keys is None:
            return Cost(0, None, 0)
        a_token = sum(
            each.shape[0] * each.shape[1] * each.shape[3] * each.itemsize
            for each in (cache.keys, cache.values)
        )
        cap = cache.max_size + STEP if isinstance(cache, RotatingKVCache) else None
        return Cost(a_token, cap, 0)
    if isinstance(cache, QuantizedKVCache):
        if cache.keys is None:
            return Cost(0, None, 0)
        kept = (*cache.keys, *cache.values)
        return Cost(
            sum(each.shape[0] * each.shape[1] * each.shape[3] * each.itemsize for each in kept), None, 0
        )
    if isinstance(cache, ArraysCache):
        return Cost(0, None, cache.nbytes)
    # An unknown kind is taken to grow with every position.
    return Cost(cache.nbytes, None, 0)


def total(each: Sequence[Cost], tokens: int) -> int:
    return sum(cost.bytes(tokens) for cost in each)


def rewind(held: Held, position: int) -> bool:
    """Cut the caches back to `position`; False where that cannot be, and then nothing is changed."""
    surplus = held.position - position
    if surplus == 0:
        return True
    if surplus < 0 or not all(cache.is_trimmable() for cache in held.caches):
        return False
    for cache in held.caches:
        cache.trim(surplus)
    held.position = position
    del held.ids[position:]
    return True


def common(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    n = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        n += 1
    return n


@dataclass(slots=True)
class _Entry:
    ids: tuple[int, ...]
    held: Held
    bytes: int


@dataclass(slots=True)
class Prefixes:
    """Caches of ended turns, for prompts that begin with the same tokens; the least recent go first."""

    budget_bytes: int
    _entries: list[_Entry] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self._entries)

    def keep(self, ids: Sequence[int], held: Held, size: int) -> None:
        """Keep what an ended turn has computed; it replaces a shorter one that it begins with."""
        key = tuple(ids[: held.position])
        if len(key) < held.position or size > self.budget_bytes:
            return
        self._entries = [entry for entry in self._entries if common(entry.ids, key) < len(entry.ids)]
        self._entries.append(_Entry(key, held, size))
        while self.bytes > self.budget_bytes:
            self._entries.pop(0)

    def take(self, prompt: Sequence[int]) -> Held | None:
        """The caches that spare most of this prompt, cut to what it shares; they leave the store."""
        best, most = None, 0
        for entry in self._entries:
            n = min(common(entry.ids, prompt), len(prompt) - 1)
            whole = n == len(entry.ids)
            if n > most and (whole or all(cache.is_trimmable() for cache in entry.held.caches)):
                best, most = entry, n
        if best is None:
            return None
        self._entries.remove(best)
        return best.held if rewind(best.held, most) else None
