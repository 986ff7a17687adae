"""A stage: layers `first` to `last` of any mlx-lm model, run by the model's own forward pass.

Two layers' classes are swapped and nothing else: layers before the stage give back what was received,
the stage's last layer stops the pass and hands over its output. Masks, scales, positions and cache
kinds are made by the model as ever; what it makes for layers that are not here is lazy and never
computed. Knows nothing of files, frames, requests or of who holds the caches.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import KVCache, make_prompt_cache

from exo_cli.engine.caches import in_bytes
from exo_cli.engine.cuts import Anatomy, swap_call
from exo_cli.engine.payload import Payload
from exo_cli.errors import BadData, Internal


class _StageDone(BaseException):
    """Leaves the model's forward pass in the middle; no handler in a model may take it for its own."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


class Position(KVCache):  # type: ignore[misc]
    """Counts a stage's tokens where none of its caches does; holds no keys.

    Some families ask an attention layer's cache for the position that they give to recurrent layers.
    """

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        self.offset += keys.shape[2]
        return keys, values


class Stage:
    """Takes the model over: its layers' classes are swapped for good.

    One thread builds it and runs it, since lazy arrays are bound to theirs.
    """

    def __init__(self, model: nn.Module, anatomy: Anatomy, first: int, last: int) -> None:
        anatomy.check_range(first, last)
        self.model = model
        self.anatomy = anatomy
        self.first, self.last = first, last
        self.receives: Payload | None = anatomy.payload_at(first) if first > 0 else None
        self.sends: Payload | None = anatomy.payload_at(last) if last < anatomy.n_layers else None
        self.owned = anatomy.caches(first, last)
        """The caches it keeps, by their place in the unsplit model's list."""
        self.kv_bits: int | None = None
        """Of a number in the caches that are made; None: as it is computed."""
        self._counts = self._needs_position()
        self._stands_in = self._substitutes()
        self._received: Any = None
        self._swap()

    def make_caches(self) -> list[Any]:
        """mlx-lm's own caches for one batch, in the order in which `forward` wants them."""
        full = make_prompt_cache(self.model)
        mine = [full[place] for place in self.owned]
        if self.kv_bits is not None:
            mine = [in_bytes(cache, self.kv_bits) for cache in mine]
        return [*mine, Position()] if self._counts else mine

    def forward(
        self, tokens: mx.array, payload: tuple[mx.array, ...] | None, caches: Sequence[Any]
    ) -> tuple[mx.array, ...] | mx.array:
        """One step: `tokens` [batch, n] at every stage. Gives the next stage's payload, or logits.

        `caches` are those of `make_caches`, or any that behave like them; they are updated in place.
        Nothing is evaluated.
        """
        if len(caches) != len(self.owned) + self._counts:
            raise Internal(f"{len(caches)} caches for a stage that keeps {len(self.owned) + self._counts}")
        if (payload is None) != (self.receives is None):
            raise BadData("a payload came to the first stage" if payload else "a step came without a payload")
        if payload is not None and self.receives is not None:
            self.receives.check(payload, *tokens.shape)
            self._received = self.receives.give(payload)
        try:
            out = self._run(tokens, caches)
        finally:
            self._received = None
        if self._counts:
            nothing = mx.zeros((tokens.shape[0], 1, tokens.shape[1], 0))
            caches[-1].update_and_fetch(nothing, nothing)
        return out

    def _run(self, tokens: mx.array, caches: Sequence[Any]) -> tuple[mx.array, ...] | mx.array:
        try:
            logits: mx.array = self.model(tokens, cache=self._all_caches(caches))
        except _StageDone as done:
            assert self.sends is not None
            return self.sends.take(done.output)
        return logits

    def _swap(self) -> None:
        stage = self

        def receive(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return stage._received

        layers = list(self.model.layers)
        for layer in layers[: self.first]:
            swap_call(layer, receive)
        if self.last == len(layers):
            return
        base = layers[self.last - 1].__class__

        def finish(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
            raise _StageDone(base.__call__(layer, *args, **kwargs))

        swap_call(layers[self.last - 1], finish)

    def _substitutes(self) -> list[int | None]:
        """For each of the model's caches, which of ours is given in its place.

        Models ask one cache of a kind, often the first, for the mask and position of all layers of that
        kind. Where no cache of the kind is ours, nothing made from it is computed here.
        """
        kinds = self.anatomy.cache_kinds
        of_kind: dict[str, int] = {}
        for index, place in enumerate(self.owned):
            of_kind.setdefault(kinds[place], index)
        found: list[int | None] = [of_kind.get(kind) for kind in kinds]
        given = {place for layer in self.anatomy.caches_of for place in layer}
        for place in set(range(len(kinds))) - given:
            found[place] = None  # the model writes to it beside the layers: never into one of ours
        for index, place in enumerate(self.owned):
            found[place] = index
        return found

    def _needs_position(self) -> bool:
        full = make_prompt_cache(self.model)
        counting = {place for place, cache in enumerate(full) if _offset(cache) is not None}
        return bool(counting) and not counting & set(self.owned)

    def _all_caches(self, caches: Sequence[Any]) -> list[Any]:
        if None not in self._stands_in:
            return [caches[index] for index in self._stands_in if index is not None]
        offset = next((found for cache in caches if (found := _offset(cache)) is not None), 0)
        full: list[Any] = make_prompt_cache(self.model)
        for place, index in enumerate(self._stands_in):
            full[place] = _at_offset(full[place], offset) if index is None else caches[index]
        return full


def _offset(cache: Any) -> Any:
    """How far a cache is; None for recurrent ones, which do not count."""
    for part in getattr(cache, "caches", None) or (cache,):
        if hasattr(part, "offset"):
            return part.offset
    return None


def _at_offset(cache: Any, offset: Any) -> Any:
    for part in getattr(cache, "caches", None) or (cache,):
        if hasattr(part, "offset"):
            part.offset = offset
    return cache
