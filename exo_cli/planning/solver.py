"""The search that a problem's size calls for; and nodes that share a machine's memory.

Knows nothing of what a plan says in words.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, product
from typing import Final

from exo_cli.planning import exact, wide
from exo_cli.planning.problem import Chain, Problem
from exo_cli.planning.search import SAME, Found, is_one_chain

_MAX_VARIANTS: Final = 40


def solve(problem: Problem) -> Found | None:
    """The best plan that is found; None if nothing fits."""
    best: Found | None = None
    for keep in _variants(problem):
        found = _moved(_solve(_only(problem, keep)), keep)
        if found is None:
            continue
        bound = found.bound if best is None else min(best.bound, found.bound)
        if best is None or found.cost < best.cost - abs(best.cost) * SAME:
            best = found
        best = replace(best, bound=bound)
    return best


def _solve(problem: Problem) -> Found | None:
    if exact.is_small(problem):
        return exact.solve(problem)
    if is_one_chain(problem) and exact.has_few_sets(problem):
        return exact.solve(problem)
    if problem.limits.parallel != "replicas" and exact.has_few_sets(problem):
        # One chain is looked for in all sets; what is known of several begins with it.
        chain = exact.solve(replace(problem, limits=replace(problem.limits, parallel="pipeline")))
        return wide.solve(problem, [] if chain is None else [chain])
    return wide.solve(problem)


def _variants(problem: Problem) -> Iterator[tuple[int, ...]]:
    """Which places to look at. Those of one machine share what it has, so fewer of them have more each."""
    places = problem.cluster.places
    hosts = Counter(place.host for place in places if place.backend != "cuda")
    pinned = {place for place, _, _ in problem.limits.pins} | set(problem.limits.musts)
    groups = [
        [at for at, place in enumerate(places) if place.host == host and place.backend != "cuda"]
        for host, n in sorted(hosts.items())
        if n > 1
    ]
    crowded = {at for group in groups for at in group}
    free = [at for at in range(len(places)) if at not in crowded]
    # All of them, one alone, two, ...: with many on one machine not every set is looked at.
    choices = [
        [some for n in (len(group), *range(1, len(group))) for some in combinations(group, n)]
        for group in groups
    ]
    count = 0
    for taken in product(*choices):
        keep = tuple(sorted([*free, *(at for some in taken for at in some)]))
        if pinned <= set(keep):
            yield keep
            count += 1
        if count == _MAX_VARIANTS:
            return


def _only(problem: Problem, keep: tuple[int, ...]) -> Problem:
    if len(keep) == len(problem.cluster.places):
        return problem
    number = {at: new for new, at in enumerate(keep)}
    pins = tuple((number[at], first, last) for at, first, last in problem.limits.pins)
    limits = replace(problem.limits, pins=pins, musts=tuple(number[at] for at in problem.limits.musts))
    return replace(problem, cluster=problem.cluster.only(keep), limits=limits)


def _moved(found: Found | None, keep: tuple[int, ...]) -> Found | None:
    """The same with the places' numbers in the whole cluster."""
    if found is None:
        return None
    chains = tuple(
        Chain(tuple(keep[at] for at in chain.order), chain.bounds, chain.streams) for chain in found.chains
    )
    return replace(found, chains=chains)
