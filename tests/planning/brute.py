"""Plans by trying everything: shares only the geometry, the accounting and the costs with the planner.

Values are computed here from single stages and single hops, for every set of places that takes part, every
way to deal them and the requests to chains, every order and every cut.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, permutations
from math import inf

from exo_cli.planning.pace import Pace, groups
from exo_cli.planning.problem import Chain, Problem, needed_bytes


def fits(problem: Problem, chain: Chain, used: frozenset[int]) -> bool:
    """Nodes of one machine share what it has, as far as they take part."""
    taking = sorted(used)
    alone = replace(problem, cluster=problem.cluster.only(taking))
    return all(
        needed_bytes(memory) <= memory.limit_bytes
        for place, (a, b) in zip(chain.order, chain.ranges, strict=True)
        for memory in [alone.memory(taking.index(place), a, b, chain.streams)]
    )


def value(problem: Problem, pace: Pace, chain: Chain) -> float:
    """Seconds: what one chain is worth for the problem's objective."""
    stages = len(chain.order)
    terms = pace.terms(chain.streams, stages)
    cuts = problem.work.cuts
    took = []
    for place, (a, b) in zip(chain.order, chain.ranges, strict=True):
        line = terms.lines[place]
        once = line.fixed_s + (line.head_s if b == cuts[-1] else 0.0)
        took.append(line.until[cuts.index(b)] - line.until[cuts.index(a)] + once)
    on_the_way, busy = 0.0, 0.0
    if stages > 1:
        for a, b in zip(chain.order, chain.order[1:], strict=False):
            on_the_way += terms.hops[a][b]
            busy = max(busy, terms.busy[a][b])
        on_the_way += terms.back[chain.order[-1]][chain.order[0]]
    total, most = sum(took) + on_the_way, max(*took, busy)
    if problem.objective == "first-token":
        pieces = -(-problem.prompt // min(problem.prompt, problem.known.chunk_tokens))
        return total + (pieces - 1) * most
    return max(total, groups(chain.streams, stages)[0] * most)


def cost(problem: Problem, pace: Pace, chains: tuple[Chain, ...]) -> float:
    values = [value(problem, pace, chain) for chain in chains]
    if problem.objective == "throughput":
        return -sum(chain.streams / each for chain, each in zip(chains, values, strict=True))
    return max(values)


def chains_over(problem: Problem, places: tuple[int, ...], streams: int) -> Iterator[Chain]:
    inner = problem.work.cuts[1:-1]
    last = problem.work.cuts[-1]
    for order in permutations(places):
        for cuts in combinations(inner, len(order) - 1):
            yield Chain(order, (0, *cuts, last), streams)


def best(problem: Problem) -> float | None:
    """The smallest cost of any plan; None if there is none."""
    limits = problem.limits
    pins = {place: (a, b) for place, a, b in limits.pins}
    count = len(problem.cluster.places)
    known: dict[tuple[tuple[int, ...], int, frozenset[int]], float] = {}
    hosts = [place.host for place in problem.cluster.places]
    crowded = {at for at, host in enumerate(hosts) if hosts.count(host) > 1}

    paces: dict[frozenset[int], Pace] = {}

    def best_chain(places: tuple[int, ...], streams: int, used: frozenset[int]) -> float:
        key = (places, streams, used & crowded)
        if key not in known:
            if key[2] not in paces:
                paces[key[2]] = Pace(problem, used)
            known[key] = min(
                (
                    value(problem, paces[key[2]], chain)
                    for chain in chains_over(problem, places, streams)
                    if all(
                        pins.get(place, layers) == layers
                        for place, layers in zip(chain.order, chain.ranges, strict=True)
                    )
                    and fits(problem, chain, used)
                ),
                default=inf,
            )
        return known[key]

    many = problem.streams > 1 and limits.parallel != "pipeline" and problem.objective != "first-token"
    found = inf
    for sets in _dealt(tuple(range(count)), problem.streams if many else 1):
        taking = frozenset(place for places in sets for place in places)
        used = len(taking)
        if used < limits.min_nodes or used > (limits.max_nodes or count):
            continue
        if not {*pins, *limits.musts} <= taking:
            continue
        if limits.parallel == "replicas" and any(len(places) > 1 for places in sets):
            continue
        for streams in _sums(problem.streams, len(sets)):
            values = [best_chain(places, n, taking) for places, n in zip(sets, streams, strict=True)]
            if inf in values:
                continue
            if problem.objective == "throughput":
                each = -sum(n / took for n, took in zip(streams, values, strict=True))
            else:
                each = max(values)
            found = min(found, each)
    return None if found == inf else found


def _dealt(places: tuple[int, ...], most: int) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Some of the places in at most so many sets."""
    if not places or most == 0:
        return
    first, rest = places[0], places[1:]
    yield from _dealt(rest, most)
    for n in range(len(rest) + 1):
        for others in combinations(rest, n):
            own = (first, *others)
            yield (own,)
            left = tuple(place for place in rest if place not in others)
            for more in _dealt(left, most - 1):
                yield (own, *more)


def _sums(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    if parts == 1:
        if total >= 1:
            yield (total,)
        return
    for first in range(1, total):
        for rest in _sums(total - first, parts - 1):
            yield (first, *rest)
