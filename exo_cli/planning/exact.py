"""The best plan there is, for a few kinds of places: every set, every order, the best cuts, bounds first.

Places that could change roles are one kind, of which only the number counts. A set whose bound is no better
than what was found is not looked into, nor is an order. Knows nothing of what a plan says in words.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise, product
from math import factorial, inf, prod
from typing import Final

from exo_cli.planning.cluster import classes
from exo_cli.planning.ordering import likely
from exo_cli.planning.problem import Chain, Problem
from exo_cli.planning.search import SAME, Found, Search, cost_of, is_one_chain

MAX_ORDERS: Final = 2_000
"""Of all sets together; six different places have 1956."""
MAX_KINDS: Final = 4_096
MAX_TRIED: Final = 6_000
"""Orders in all that a search with more than that tries; of further sets only the likely ones."""

Counts = tuple[int, ...]
Part = tuple[Counts, int]


def kinds(problem: Problem) -> list[list[int]]:
    """The places, those together that could change roles."""
    pinned = {place for place, _, _ in problem.limits.pins} | set(problem.limits.musts)
    found: dict[int, list[int]] = {}
    for at, first in enumerate(classes(problem.cluster)):
        found.setdefault(at if at in pinned or first in pinned else first, []).append(at)
    return list(found.values())


def has_few_sets(problem: Problem) -> bool:
    """Whether every set can be weighed, if not every order."""
    return prod(len(kind) + 1 for kind in kinds(problem)) <= MAX_KINDS


def is_small(problem: Problem) -> bool:
    """Whether everything can be looked at."""
    if not has_few_sets(problem):
        return False
    sizes = [len(kind) for kind in kinds(problem)]
    return sum(_orders_of(counts) for counts in product(*(range(size + 1) for size in sizes))) <= MAX_ORDERS


def _orders_of(counts: Counts) -> int:
    return factorial(sum(counts)) // prod(factorial(each) for each in counts)


def orders(kinds: Sequence[Sequence[int]], counts: Counts) -> Iterator[tuple[int, ...]]:
    """Every order of so many places of each kind, those of one kind in their own order."""
    left, line = list(counts), list[int]()

    def walk() -> Iterator[tuple[int, ...]]:
        if not any(left):
            yield tuple(line)
            return
        for number, kind in enumerate(kinds):
            if left[number]:
                line.append(kind[counts[number] - left[number]])
                left[number] -= 1
                yield from walk()
                left[number] += 1
                line.pop()

    return walk()


class Exact(Search):
    """Over numbers of each kind."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.kinds = kinds(problem)
        self._chains: dict[Part, tuple[float, Chain]] = {}
        self._at_least: dict[Part, float] = {}

    def places(self, counts: Counts) -> tuple[int, ...]:
        return tuple(sorted(at for kind, n in zip(self.kinds, counts, strict=True) for at in kind[:n]))

    def at_least(self, counts: Counts, streams: int) -> float:
        """The best value, if it is known; else what is known that it cannot be below."""
        known = self._chains.get((counts, streams))
        if known is not None:
            return known[0]
        if (counts, streams) not in self._at_least:
            self._at_least[counts, streams] = self.bound(self.places(counts), streams)
        return self._at_least[counts, streams]

    def best(self, counts: Counts, streams: int, below: float = inf) -> tuple[float, Chain] | None:
        """The best chain, if its value is below a bound."""
        key = (counts, streams)
        if key not in self._chains:
            if self.at_least(counts, streams) >= below:
                return None
            found = self.chain(orders(self.kinds, counts), self.places(counts), streams, below)
            if found is None:
                self._at_least[key] = below
                return None
            self._chains[key] = found
        known = self._chains[key]
        return known if known[0] < below else None

    def sets(self) -> list[Counts]:
        sizes = [range(len(kind) + 1) for kind in self.kinds]
        alone = self.problem.limits.parallel == "replicas"
        return [counts for counts in product(*sizes) if any(counts) and (not alone or sum(counts) == 1)]

    def allowed(self, counts: Counts) -> bool:
        """Whether a plan may use just so many."""
        limits, n = self.problem.limits, sum(counts)
        wanted = all(counts[at] for at, kind in enumerate(self.kinds) if kind[0] in self.musts)
        return wanted and n >= limits.min_nodes and (limits.max_nodes is None or n <= limits.max_nodes)


def solve(problem: Problem) -> Found | None:
    """The best plan; None if nothing fits. Where `is_small` says no: one good chain, and its bound."""
    search = Exact(problem)
    return _one_chain(search) if is_one_chain(problem) else _replicas(search)


def _one_chain(search: Exact) -> Found | None:
    streams = search.problem.streams
    sets = [counts for counts in search.sets() if search.allowed(counts)]
    # Of what is equally good the fewest places, and of those the first.
    queue = sorted(
        ((search.at_least(counts, streams), sum(counts), counts) for counts in sets),
        key=lambda each: (each[0], each[1], [-n for n in each[2]]),
    )
    best: tuple[float, Chain] | None = None
    left, unsure = MAX_TRIED, inf
    for bound, _, counts in queue:
        if bound == inf or (best is not None and bound >= best[0] * (1 - SAME)):
            break
        below = inf if best is None else best[0]
        if _orders_of(counts) > left:
            unsure = min(unsure, bound)
            places = search.places(counts)
            lines = likely(places, search.pace.terms(streams, len(places)))
            best = search.chain(lines, places, streams, below) or best
        else:
            left -= _orders_of(counts)
            best = search.best(counts, streams, below) or best
    if best is None:
        return None
    cost = cost_of([best[0]], [streams], search.problem)
    return Found((best[1],), cost, min(cost, cost_of([unsure], [streams], search.problem)))


def _replicas(search: Exact) -> Found | None:
    """Every way to share places and requests among chains, the most promising first."""
    best: Found | None = None
    ways = sorted(
        _shares(search), key=lambda each: (each[0], each[1], [([-n for n in c], n_) for c, n_ in each[2]])
    )
    for bound, _, parts in ways:
        if best is not None and bound >= best.cost - abs(best.cost) * SAME:
            break
        found = _together(search, parts, inf if best is None else best.cost - abs(best.cost) * SAME)
        if found is not None:
            best = found
    return best


def _together(search: Exact, parts: Sequence[Part], below: float) -> Found | None:
    """Chains for these parts, if they are worth more than what there is already."""
    values = [search.at_least(*part) for part in parts]
    streams = [n for _, n in parts]
    chains = []
    for number, (counts, n) in enumerate(parts):
        if cost_of(values, streams, search.problem) >= below:
            return None
        found = search.best(counts, n, _needed(values, streams, number, below, search.problem))
        if found is None:
            return None
        values[number] = found[0]
        chains.append(found[1])
    cost = cost_of(values, streams, search.problem)
    return Found(tuple(_apart(search, parts, chains)), cost, cost) if cost < below else None


def _needed(
    values: Sequence[float], streams: Sequence[int], number: int, below: float, problem: Problem
) -> float:
    """What one chain's value has to be below, the others being as good as they can be."""
    if problem.objective != "throughput" or below == inf:
        return below
    others = sum(n / each for at, (n, each) in enumerate(zip(streams, values, strict=True)) if at != number)
    missing = -below - others
    # A little wider than it has to be: the sum decides, and it is rounded.
    return streams[number] / missing * (1 + SAME) if missing > 0 else inf


def _shares(search: Exact) -> Iterator[tuple[float, int, tuple[Part, ...]]]:
    """Ways to share: what they cannot be better than, the number of places, the parts."""
    problem = search.problem
    deals = {n: list(_deals(problem, n)) for n in range(1, len(problem.cluster.places) + 1)}
    for sets in _divided(search):
        used = tuple(map(sum, zip(*sets, strict=True)))
        if not search.allowed(used):
            continue
        for streams in deals[len(sets)]:
            parts = tuple(zip(sets, streams, strict=True))
            if any(a[0] == b[0] and a[1] < b[1] for a, b in pairwise(parts)):
                continue  # the same with its chains the other way round
            values = [search.at_least(*part) for part in parts]
            cost = cost_of(values, streams, problem)
            if inf not in values:
                yield cost, sum(used), parts


def _divided(search: Exact) -> Iterator[tuple[Counts, ...]]:
    """Some or all places in sets, at most one for each portion of the requests."""
    sets = search.sets()
    most = -(-search.problem.streams // search.problem.portion)

    def walk(start: int, left: Counts, taken: tuple[Counts, ...]) -> Iterator[tuple[Counts, ...]]:
        for number in range(start, len(sets)):
            counts = sets[number]
            if all(n <= have for n, have in zip(counts, left, strict=True)):
                now = (*taken, counts)
                yield now
                if len(now) < most:
                    after = tuple(have - n for n, have in zip(counts, left, strict=True))
                    yield from walk(number, after, now)

    return walk(0, tuple(map(len, search.kinds)), ())


def _deals(problem: Problem, chains: int) -> Iterator[tuple[int, ...]]:
    """The requests in so many parts of whole portions; the last one may lack something."""
    portion = problem.portion
    portions = -(-problem.streams // portion)
    for ends in combinations(range(1, portions), chains - 1):
        bounds = [0, *(end * portion for end in ends), problem.streams]
        yield tuple(b - a for a, b in pairwise(bounds))


def _apart(search: Exact, parts: Sequence[Part], chains: Sequence[Chain]) -> Iterator[Chain]:
    """The same chains on places of their own: each was made for the first ones of every kind."""
    used = [0] * len(search.kinds)
    for (counts, _), chain in zip(parts, chains, strict=True):
        moved = {}
        for number, (kind, n) in enumerate(zip(search.kinds, counts, strict=True)):
            for offset in range(n):
                moved[kind[offset]] = kind[used[number] + offset]
            used[number] += n
        yield Chain(tuple(moved[at] for at in chain.order), chain.bounds, chain.streams)
