"""A good plan for many places, and how far from the best it can be at the most. Deterministic.

Sets are the first so many of a few rankings (the quickest, the roomiest, the nearest); the best of them is
bettered by exchanging, adding and dropping places, for a fixed number of tries. Knows nothing of what a plan
says in words.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from math import inf
from typing import Final

from exo_cli.planning.bounds import Fluid
from exo_cli.planning.exchange import Exchange
from exo_cli.planning.ordering import likely
from exo_cli.planning.problem import DEALS, Chain, Problem
from exo_cli.planning.search import SAME, Found, Search, cost_of, is_one_chain

_TRIES: Final = 60
"""Sets that are looked into for one chain, and as many moves."""
_WORK: Final = 24_000
"""Stages times cuts of all sets that are looked into: what a large plan may cost in time."""
_CLOSE: Final = 6
"""Sizes of sets that are all tried, from the smallest that has room; then every so many."""
_EVERY: Final = 4
"""Of so many places every order is looked at."""
_FEW: Final = 16
"""Places for which the bound is worth some time."""
_CHAINS: Final = (1, 2, 3, 4, 6, 8, 12)

Valued = tuple[float, Chain]


class _Wide(Search):
    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self._sets: dict[tuple[tuple[int, ...], int], Valued | None] = {}

    def best(self, places: tuple[int, ...], streams: int) -> Valued | None:
        return self.over(places, streams, inf)

    def over(self, places: tuple[int, ...], streams: int, below: float) -> Valued | None:
        """The best chain over likely orders of these places."""
        key = (places, streams)
        if key not in self._sets:
            terms = self.pace.terms(streams, len(places))
            orders = permutations(places) if len(places) <= _EVERY else likely(places, terms)
            self._sets[key] = self.chain(orders, places, streams, inf)
        found = self._sets[key]
        return found if found is not None and found[0] < below else None

    def lines(self) -> Iterator[list[int]]:
        """Those that have room for the whole model: the quickest, and the roomiest, first."""
        places = range(len(self.problem.cluster.places))
        alone = [(value[0], at) for at in places if (value := self.best((at,), 1)) is not None]
        for key in (lambda each: (each[0], each[1]), lambda each: (-self.rooms.capacity(each[1]), each[1])):
            line = [at for _, at in sorted(alone, key=key)]
            yield sorted(line, key=lambda at: at not in self.musts)

    def one(self, pool: Sequence[int], streams: int, tries: int = _TRIES) -> Valued | None:
        """A good chain out of a pool."""
        budget = _Budget(tries, _WORK * tries // _TRIES, len(self.problem.work.cuts))
        queue = sorted({(self.bound(each, streams), each) for each in self._candidates(pool, streams)})
        best: Valued | None = None
        for bound, places in queue:
            if bound == inf or (best is not None and bound >= best[0] * (1 - SAME)):
                break
            if not budget.spend(len(places)):
                break
            best = self.over(places, streams, inf if best is None else best[0]) or best
        return None if best is None else self._bettered(best, pool, streams, budget.again())

    def _candidates(self, pool: Sequence[int], streams: int) -> Iterator[tuple[int, ...]]:
        limits = self.problem.limits
        pinned = [at for at in sorted(self.musts) if at in pool]
        free = [at for at in pool if at not in self.musts]
        most = min(len(pool), limits.max_nodes or len(pool), len(self.problem.work.cuts) - 1)
        if limits.parallel == "replicas":
            most = 1
        for ranking in self._rankings(free):
            line = [*pinned, *ranking]
            for size in self._sizes(line, max(1, len(pinned), limits.min_nodes), most, streams):
                yield tuple(sorted(line[:size]))

    def _sizes(self, line: Sequence[int], least: int, most: int, streams: int) -> Iterator[int]:
        """From the first that has room: a few one by one, then in steps."""
        room, needed = 0.0, self.fluid(streams).least_mass
        first = 0
        for size, at in enumerate(line[:most], 1):
            room += self.rooms.capacity(at) + 1
            if size < least or room < needed:
                continue
            first = first or size
            if size - first < _CLOSE or size == most or (size - first) % _CLOSE == 0:
                yield size

    def _rankings(self, pool: Sequence[int]) -> Iterator[list[int]]:
        places = self.problem.cluster.places
        terms = self.pace.terms(1, 1)
        room = {at: self.rooms.capacity(at) for at in pool}
        fast = {at: terms.lines[at].until[-1] for at in pool}
        by_speed = sorted(pool, key=lambda at: (fast[at], -room[at], at))
        yield by_speed
        yield sorted(pool, key=lambda at: (-room[at], fast[at], at))
        yield sorted(pool, key=lambda at: (fast[at] / max(1, room[at]), at))
        near = terms.hops
        for start in by_speed[:2]:
            yield sorted(
                pool, key=lambda at: (near[start][at] + near[at][start], fast[at], places[at].name, at)
            )

    def _bettered(self, best: Valued, pool: Sequence[int], streams: int, budget: "_Budget") -> Valued:
        better: Valued | None = best
        while better is not None:
            best, better = better, None
            for places in self._moves(best[1], pool):
                if self.bound(places, streams) >= best[0] * (1 - SAME):
                    continue
                if not budget.spend(len(places)):
                    return best
                better = self.over(places, streams, best[0] * (1 - SAME))
                if better is not None:
                    break
        return best

    def _moves(self, chain: Chain, pool: Sequence[int]) -> Iterator[tuple[int, ...]]:
        used = set(chain.order)
        loose = sorted(used - self.musts)
        spare = [at for at in next(self._rankings(pool)) if at not in used][:8]
        limits = self.problem.limits
        if len(used) > max(1, limits.min_nodes):
            yield from (tuple(sorted(used - {gone})) for gone in loose)
        yield from (tuple(sorted(used - {gone} | {new})) for new in spare for gone in loose)
        if limits.parallel != "replicas" and len(used) < min(limits.max_nodes or len(pool), len(pool)):
            yield from (tuple(sorted(used | {new})) for new in spare)


class _Budget:
    """How much may still be looked into, counted and not timed."""

    def __init__(self, tries: int, work: int, cuts: int) -> None:
        self._whole = (tries, work)
        self._cuts = cuts
        self._tries, self._work = tries, work

    def spend(self, stages: int) -> bool:
        self._tries -= 1
        self._work -= stages * self._cuts
        # The first one is always looked into.
        return self._tries >= 0 and (self._work >= 0 or self._tries == self._whole[0] - 1)

    def again(self) -> "_Budget":
        return _Budget(*self._whole, self._cuts)


def solve(problem: Problem, starts: Sequence[Found] = ()) -> Found | None:
    """A good plan; None if none was found. `starts`: plans that are known."""
    search = _Wide(problem)
    pool = tuple(range(len(problem.cluster.places)))
    bound = at_best(search)
    counts = (1,) if is_one_chain(problem) else _CHAINS
    most = min(problem.streams, len(pool))
    made = (_several(search, pool, chains, bound) for chains in counts if chains <= most)
    found = [each for each in made if each is not None]
    found += [replace(start, bound=bound) for start in starts]
    if is_one_chain(problem):
        return found[0] if found else None
    for line in search.lines():
        copies = (_copies(search, line, count, bound) for count in range(1, min(most, DEALS, len(line)) + 1))
        found += [each for each in copies if each is not None]
    if not found:
        return None
    best = Exchange(search, search.best).better(found)
    return replace(best, bound=min(best.bound, best.cost))


def _several(search: _Wide, pool: tuple[int, ...], count: int, bound: float) -> Found | None:
    """So many chains, each made from what the ones before it have left."""
    problem = search.problem
    left, chains, values = list(pool), [], []
    for number in range(count):
        streams = (problem.streams + count - 1 - number) // count
        found = search.one(left, streams, _TRIES if count == 1 else max(6, _TRIES // 2 // count))
        if found is None:
            return None
        values.append(found[0])
        chains.append(found[1])
        left = [at for at in left if at not in found[1].order]
    if not _is_allowed(search, chains):
        return None
    streams_ = [chain.streams for chain in chains]
    return Found(tuple(chains), cost_of(values, streams_, problem), bound)


def _copies(search: _Wide, line: Sequence[int], count: int, bound: float) -> Found | None:
    """Whole copies on the first so many of a line: a request more goes to where it costs the least."""
    problem = search.problem
    taken = dict.fromkeys(line[:count], 1)
    for _ in range(problem.streams - count):
        more = [(value[0], at) for at, n in taken.items() if (value := search.best((at,), n + 1)) is not None]
        if not more:
            return None
        taken[min(more)[1]] += 1
    made = [value for at, n in sorted(taken.items()) if (value := search.best((at,), n)) is not None]
    chains = tuple(chain for _, chain in made)
    if len(chains) < count or not _is_allowed(search, chains):
        return None
    streams = [chain.streams for chain in chains]
    return Found(chains, cost_of([value for value, _ in made], streams, problem), bound)


def _is_allowed(search: Search, chains: Sequence[Chain]) -> bool:
    """Whether a plan may use just these places."""
    used = {at for chain in chains for at in chain.order}
    limits = search.problem.limits
    return search.musts <= used and limits.min_nodes <= len(used) <= (limits.max_nodes or len(used))


def at_best(search: Search) -> float:
    """What no plan over any of the places is better than."""
    problem = search.problem
    streams = problem.streams
    if is_one_chain(problem):
        return cost_of([_chain_at_best(search, streams)], [streams], problem)
    chains, flow = _most_chains(search), _flow(search, streams)
    if problem.objective == "throughput":
        if streams > DEALS or len(problem.cluster.places) > _FEW:
            return -min(flow, streams / _chain_at_best(search, 1))
        least = {n: _chain_at_best(search, n) for n in range(1, streams + 1)}
        return -min(flow, _dealt(least, streams, chains))
    # The slowest chain has at least the streams of an even share, and all of them together no more
    # than what the places can read.
    return max(_chain_at_best(search, -(-streams // chains)), streams / flow)


def _most_chains(search: Search) -> int:
    """As many as have room for the model, with a request each, in all places together."""
    places = range(len(search.problem.cluster.places))
    room = sum(search.rooms.capacity(at) for at in places) + len(places)
    fit = int(room // max(1.0, search.fluid(1).least_mass))
    return max(1, min(search.problem.streams, len(places), fit))


def _dealt(least: Mapping[int, float], streams: int, chains: int) -> float:
    """Tokens a second of the best deal to at most so many chains, each as quick as any can be."""
    best = [0.0] + [-inf] * streams
    for _ in range(chains):
        best = [
            max([best[n], *(best[n - own] + own / least[own] for own in least if own <= n)])
            for n in range(streams + 1)
        ]
    return best[streams]


def _chain_at_best(search: Search, streams: int) -> float:
    """Over every number of stages, with the nearest and quickest that there are."""
    problem = search.problem
    pool = tuple(range(len(problem.cluster.places)))
    fluid = search.fluid(streams)
    most = min(len(pool), problem.limits.max_nodes or len(pool), len(problem.work.cuts) - 1)
    best, rooms = inf, sorted((search.rooms.capacity(at) for at in pool), reverse=True)
    for stages in range(1, most + 1):
        if sum(rooms[:stages]) + stages < fluid.least_mass:
            continue
        terms = search.pace.terms(streams, stages)
        hop, back = 0.0, 0.0
        if stages > 1:
            hop = min(terms.hops[a][b] for a in pool for b in pool if a != b)
            back = min(terms.back[a][b] for a in pool for b in pool if a != b)
        best = min(best, fluid.any(pool, terms, stages, (stages - 1) * hop + back))
    return best


def _flow(search: Search, streams: int) -> float:
    """Tokens a second (or, balanced, their worth) if all places were always busy with full batches."""
    problem = search.problem
    terms = search.pace.terms(streams, 1)
    fluid: Fluid = search.fluid(1)
    pool = range(len(problem.cluster.places))
    return streams * sum(1 / each for each in fluid.alone(pool, terms))
