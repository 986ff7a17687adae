"""Several chains made better by small changes: a place or a request goes from one chain to another.

From every plan that it is given, the first change that helps is taken, until none does or a fixed number of
sets was looked into; so the result is the same every time. Knows nothing of how the first plans were found.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import inf
from typing import Final

from exo_cli.planning.problem import Chain
from exo_cli.planning.search import SAME, Found, Search, cost_of

WORK: Final = 60_000
"""Stages times cuts of all sets that are looked into, for all plans together."""

_FEW: Final = 10
"""Places with which every way to split a chain is looked at."""

Part = tuple[tuple[int, ...], int]
"""Places, in the order of their numbers, and how many requests at once."""
Best = Callable[[tuple[int, ...], int], tuple[float, Chain] | None]
"""The best chain over these places that is found, with its value."""


@dataclass(frozen=True, slots=True)
class _State:
    parts: tuple[Part, ...]
    cost: float
    total: float
    """Of all chains' values: where the slowest chain decides, what is better besides."""


class Exchange:
    """For one search. `best` remembers what it found."""

    def __init__(self, search: Search, best: Best) -> None:
        self._search = search
        self._problem = search.problem
        self._best = best
        self._seen: set[Part] = set()
        self._work = WORK
        self._pool = range(len(search.problem.cluster.places))

    def better(self, found: Sequence[Found]) -> Found:
        """The best plan that any of these leads to, the most promising first."""
        best = min(found, key=lambda each: each.cost)
        for start in sorted(found, key=lambda each: each.cost):
            parts = tuple(sorted((tuple(sorted(chain.order)), chain.streams) for chain in start.chains))
            values = self._values(parts) or [start.cost]
            state = self._climbed(_State(parts, start.cost, sum(values)))
            if state.cost < best.cost - abs(best.cost) * SAME:
                chains = [self._best(*part) for part in state.parts]
                best = Found(tuple(each[1] for each in chains if each is not None), state.cost, best.bound)
        return best

    def _climbed(self, state: _State) -> _State:
        better: _State | None = state
        while better is not None and self._work > 0:
            state = better
            better = next(self._steps(state), None)
        return state

    def _steps(self, state: _State) -> Iterator[_State]:
        below = state.cost - abs(state.cost) * SAME
        tried = {state.parts}
        for parts in self._changes(state.parts):
            changed = tuple(sorted(parts))
            if changed in tried or not self._allowed(changed):
                continue
            tried.add(changed)
            streams = [n for _, n in changed]
            least = [self._search.bound(*part) for part in changed]
            if inf in least or cost_of(least, streams, self._problem) > state.cost:
                continue
            values = self._values(changed)
            if values is None:
                continue
            cost, total = cost_of(values, streams, self._problem), sum(values)
            if cost < below or (cost <= state.cost and total < state.total * (1 - SAME)):
                yield _State(changed, cost, total)
            if self._work <= 0:
                return

    def _values(self, parts: Sequence[Part]) -> list[float] | None:
        values = []
        for part in parts:
            if part not in self._seen:
                self._seen.add(part)
                self._work -= len(part[0]) * len(self._problem.work.cuts)
            found = self._best(*part)
            if found is None:
                return None
            values.append(found[0])
        return values

    def _allowed(self, parts: Sequence[Part]) -> bool:
        used = {place for places, _ in parts for place in places}
        limits = self._problem.limits
        if limits.parallel == "replicas" and any(len(places) > 1 for places, _ in parts):
            return False
        return (
            self._search.musts <= used
            and len(used) >= limits.min_nodes
            and (limits.max_nodes is None or len(used) <= limits.max_nodes)
        )

    def _changes(self, parts: tuple[Part, ...]) -> Iterator[list[Part]]:
        """Everything that is one step away."""
        used = {place for places, _ in parts for place in places}
        spare = [place for place in self._pool if place not in used]
        for number, (places, streams) in enumerate(parts):
            others = [part for at, part in enumerate(parts) if at != number]
            for gone in places:
                left = _without(places, gone)
                if left:
                    yield [*others, (left, streams)]
                for new in spare:
                    yield [*others, (_with(left, new), streams)]
                if left and streams > 1:
                    for n in range(1, streams):
                        yield [*others, (left, streams - n), ((gone,), n)]
            for new in spare:
                yield [*others, (_with(places, new), streams)]
                for n in range(1, streams):
                    yield [*others, (places, streams - n), ((new,), n)]
        if len(self._pool) <= _FEW:
            for number, part in enumerate(parts):
                others = [each for at, each in enumerate(parts) if at != number]
                yield from ([*others, *pair] for pair in _split(part, spare))
        for a, b in combinations(range(len(parts)), 2):
            rest = [part for at, part in enumerate(parts) if at not in (a, b)]
            yield from ([*rest, *pair] for pair in _between(parts[a], parts[b]))


def _split(part: Part, spare: Sequence[int]) -> Iterator[list[Part]]:
    """A chain as two, each with a place more or none."""
    places, streams = part
    first = places[0]
    for size in range(1, len(places)):
        for chosen in combinations(places[1:], size - 1):
            left = (first, *chosen)
            right = tuple(place for place in places if place not in left)
            for more in [(), *((place,) for place in spare)]:
                for also in [(), *((place,) for place in spare if place not in more)]:
                    for n in range(1, streams):
                        yield [(_with(left, *more), n), (_with(right, *also), streams - n)]


def _between(a: Part, b: Part) -> Iterator[list[Part]]:
    """Two chains that share their requests or places otherwise, or become one."""
    yield [(_with(a[0], *b[0]), a[1] + b[1])]
    yield [(a[0], a[1] + b[1])]
    yield [(b[0], a[1] + b[1])]
    for one, other in ((a, b), (b, a)):
        if one[1] > 1:
            yield [(one[0], one[1] - 1), (other[0], other[1] + 1)]
        for moved in one[0]:
            left = _without(one[0], moved)
            if left:
                yield [(left, one[1]), (_with(other[0], moved), other[1])]
    for mine in a[0]:
        for theirs in b[0]:
            yield [
                (_with(_without(a[0], mine), theirs), a[1]),
                (_with(_without(b[0], theirs), mine), b[1]),
            ]


def _with(places: Sequence[int], *new: int) -> tuple[int, ...]:
    return tuple(sorted([*places, *new]))


def _without(places: Sequence[int], gone: int) -> tuple[int, ...]:
    return tuple(place for place in places if place != gone)
