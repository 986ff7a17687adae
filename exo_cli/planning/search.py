"""What every way to search needs: bounds of sets, the best chain over given orders, what plans are worth.

Knows nothing of which sets and orders to look at.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final

from exo_cli.planning.bounds import Fluid
from exo_cli.planning.cutting import Cut, Least, Member, best_cut, evenest, hops, value
from exo_cli.planning.pace import Pace, Terms
from exo_cli.planning.problem import Chain, Problem
from exo_cli.planning.rooms import Rooms

SAME: Final = 1e-9
"""Two values that differ by less than this share are the same."""


@dataclass(frozen=True, slots=True)
class Found:
    """A plan, and what it is worth: seconds to be small, or tokens a second with a minus."""

    chains: tuple[Chain, ...]
    cost: float
    bound: float
    """No plan has a smaller cost."""

    @property
    def used(self) -> frozenset[int]:
        return frozenset(place for chain in self.chains for place in chain.order)


class Search:
    """Chains over sets of places, each looked for once."""

    def __init__(self, problem: Problem, used: Collection[int] | None = None) -> None:
        self.problem = problem
        self.pace = Pace(problem, used)
        self.rooms = Rooms(problem)
        self.pins = _pins(problem)
        self.musts = frozenset(self.pins) | frozenset(problem.limits.musts)
        self._fluids: dict[int, Fluid] = {}
        self._bounds: dict[tuple[tuple[int, ...], int], float] = {}
        self._least: dict[tuple[tuple[int, ...], int], Least] = {}

    def fluid(self, streams: int) -> Fluid:
        if streams not in self._fluids:
            self._fluids[streams] = Fluid(self.problem, self.rooms, streams)
        return self._fluids[streams]

    def least(self, places: tuple[int, ...], streams: int) -> Least:
        key = (places, streams)
        if key not in self._least:
            terms = self.pace.terms(streams, len(places))
            self._least[key] = self.fluid(streams).least(places, terms)
        return self._least[key]

    def bound(self, places: tuple[int, ...], streams: int) -> float:
        """No chain over these places has a smaller value."""
        key = (places, streams)
        if key not in self._bounds:
            least = self.least(places, streams)
            terms = self.pace.terms(streams, len(places))
            way = _least_way(places, terms) if least.total < inf else 0.0
            self._bounds[key] = self.fluid(streams).joint(places, terms, least, way)
        return self._bounds[key]

    def members(self, order: Sequence[int], streams: int, terms: Terms) -> list[Member]:
        return [Member(terms.lines[at], self.rooms.room(at, streams), self.pins.get(at)) for at in order]

    def chain(
        self, orders: Iterator[tuple[int, ...]], places: tuple[int, ...], streams: int, below: float = inf
    ) -> tuple[float, Chain] | None:
        """The best over these orders of the same places, if its value is below a bound."""
        terms = self.pace.terms(streams, len(places))
        least = self.least(places, streams)
        if least.total == inf:
            return None
        known, least_way = self.bound(places, streams), _least_way(places, terms)
        queue = []
        for order in orders:
            way = hops(order, terms)
            bound = terms.value(least.total + way.total, max(least.most, way.busy))
            # In a train every detour adds to the value; else only to the total.
            bound = max(bound, known + (way.total - least_way if terms.train else 0.0))
            if bound < below:
                queue.append((bound, order, way))
        queue.sort(key=lambda each: (each[0], each[1]))
        best, at_best = None, below
        for bound, order, way in queue:
            if bound >= at_best * (1 - SAME):
                break
            cut = best_cut(self.members(order, streams, terms), way, terms, at_best, least)
            if cut is not None:
                best, at_best = (order, cut), value(cut, way, terms)
        if best is None:
            return None
        order, cut = best
        return at_best, self.made(order, cut, streams)

    def made(self, order: tuple[int, ...], cut: Cut, streams: int) -> Chain:
        """With the cuts that share the work most evenly among equals."""
        terms = self.pace.terms(streams, len(order))
        even = evenest(self.members(order, streams, terms), hops(order, terms), terms, cut)
        return Chain(order, tuple(self.problem.work.cuts[at] for at in even.at), streams)

    def value(self, chain: Chain) -> float:
        """What a chain is worth, whoever made it."""
        terms = self.pace.terms(chain.streams, len(chain.order))
        cuts = [self.problem.work.cuts.index(at) for at in chain.bounds]
        took = [
            terms.lines[place].stage_s(a, b) for place, a, b in zip(chain.order, cuts, cuts[1:], strict=False)
        ]
        way = hops(chain.order, terms)
        return terms.value(sum(took) + way.total, max(*took, way.busy) if len(took) > 1 else took[0])


def _least_way(places: Sequence[int], terms: Terms) -> float:
    """No order of these has shorter hops."""
    if len(places) == 1:
        return 0.0
    ways = [min(terms.hops[a][b] for b in places if b != a) for a in places]
    back = min(terms.back[a][b] for a in places for b in places if a != b)
    return sum(sorted(ways)[:-1]) + back


def _pins(problem: Problem) -> dict[int, tuple[int, int]]:
    at = {layer: number for number, layer in enumerate(problem.work.cuts)}
    return {place: (at[first], at[last]) for place, first, last in problem.limits.pins}


def cost_of(values: Sequence[float], streams: Sequence[int], problem: Problem) -> float:
    """What several chains are worth together; the smaller the better."""
    if problem.objective == "throughput":
        return -sum(n / each for n, each in zip(streams, values, strict=True))
    return max(values)


def is_one_chain(problem: Problem) -> bool:
    """Whether a plan has one chain whatever there is: nothing else was asked for, or would help."""
    return problem.streams == 1 or problem.limits.parallel == "pipeline" or problem.objective == "first-token"
