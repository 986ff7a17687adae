"""A good plan for many places, and how far from the best it can be at the most. Deterministic.

Sets are the first so many of a few rankings (the quickest, the roomiest, the nearest); the best of them is
bettered by exchanging, adding and dropping places, for a fixed number of tries. Knows nothing of what a plan
says in words.
"""

from collections.abc import Iterator, Sequence
from math import inf
from typing import Final

from exo_cli.planning.bounds import Fluid
from exo_cli.planning.ordering import likely
from exo_cli.planning.problem import Chain, Problem
from exo_cli.planning.search import SAME, Found, Search, cost_of, is_one_chain

_TRIES: Final = 60
"""Sets that are looked into for one chain, and as many moves."""
_WORK: Final = 24_000
"""Stages times cuts of all sets that are looked into: what a large plan may cost in time."""
_CLOSE: Final = 6
"""Sizes of sets that are all tried, from the smallest that has room; then every so many."""
_CHAINS: Final = (1, 2, 3, 4, 6, 8, 12)

Valued = tuple[float, Chain]


class _Wide(Search):
    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self._sets: dict[tuple[tuple[int, ...], int], Valued | None] = {}

    def over(self, places: tuple[int, ...], streams: int, below: float) -> Valued | None:
        """The best chain over likely orders of these places."""
        key = (places, streams)
        if key not in self._sets:
            terms = self.pace.terms(streams, len(places))
            self._sets[key] = self.chain(likely(places, terms), places, streams, inf)
        found = self._sets[key]
        return found if found is not None and found[0] < below else None

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


def solve(problem: Problem) -> Found | None:
    """A good plan; None if none was found."""
    search = _Wide(problem)
    pool = tuple(range(len(problem.cluster.places)))
    best: Found | None = None
    bound = at_best(search)
    for chains in (1,) if is_one_chain(problem) else _CHAINS:
        if chains > min(problem.streams, len(pool)):
            break
        found = _several(search, pool, chains, bound)
        if found is not None and (best is None or found.cost < best.cost - abs(best.cost) * SAME):
            best = found
    return best


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
    used = sum(len(chain.order) for chain in chains)
    limits = problem.limits
    wanted = search.musts <= {at for chain in chains for at in chain.order}
    if not wanted or used < limits.min_nodes or used > (limits.max_nodes or used):
        return None
    streams_ = [chain.streams for chain in chains]
    return Found(tuple(chains), cost_of(values, streams_, problem), bound)


def at_best(search: Search) -> float:
    """What no plan over any of the places is better than."""
    problem = search.problem
    if is_one_chain(problem):
        return cost_of([_chain_at_best(search, problem.streams)], [problem.streams], problem)
    if problem.objective == "throughput":
        return -min(_flow(search, problem.streams), problem.streams / _chain_at_best(search, 1))
    # The slowest chain has at least the streams of an even share, and all of them together no more
    # than what the places can read.
    chains = min(problem.streams, len(problem.cluster.places))
    return max(
        _chain_at_best(search, -(-problem.streams // chains)),
        problem.streams / _flow(search, problem.streams),
    )


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
        least = fluid.some(pool, terms)
        fixed = min(line.fixed_s for line in terms.lines)
        hop, back = 0.0, 0.0
        if stages > 1:
            hop = min(terms.hops[a][b] for a in pool for b in pool if a != b)
            back = min(terms.back[a][b] for a in pool for b in pool if a != b)
        total = least.total + stages * fixed + (stages - 1) * hop + back
        best = min(best, terms.value(total, least.most + fixed))
    return best


def _flow(search: Search, streams: int) -> float:
    """Tokens a second (or, balanced, their worth) if all places were always busy with full batches."""
    problem = search.problem
    terms = search.pace.terms(streams, 1)
    fluid: Fluid = search.fluid(1)
    pool = range(len(problem.cluster.places))
    return streams * sum(1 / each for each in fluid.alone(pool, terms))
