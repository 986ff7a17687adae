"""What else there was: other plans, the best of their kind, and what each node is worth.

Every figure comes from a search of its own. Knows nothing of why the chosen plan was chosen.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from exo_cli.planning import solver
from exo_cli.planning.forecast import forecast
from exo_cli.planning.problem import Chain, Problem
from exo_cli.planning.search import Found
from exo_cli.planning.words import layers
from exo_cli.schemas.plan import Alternative, Worth

_ALTERNATIVES: Final = 3


def layout(problem: Problem, chains: Sequence[Chain]) -> str:
    """`a 0-11, b 12-31`, chains apart by a semicolon."""
    names = [place.name for place in problem.cluster.places]
    return "; ".join(
        ", ".join(
            f"{names[at]} {layers(*range_)}" for at, range_ in zip(chain.order, chain.ranges, strict=True)
        )
        for chain in chains
    )


def worth(problem: Problem, found: Found, with_all: float) -> Iterator[Worth]:
    for at, place in enumerate(problem.cluster.places):
        if at in found.used:
            left = [other for other in range(len(problem.cluster.places)) if other != at]
            less = _without(problem, at, left)
            without = None if less is None else _total(less[0], less[1])
            yield Worth(name=place.name, used=True, with_tokens_per_s=with_all, without_tokens_per_s=without)
        else:
            limits = replace(problem.limits, musts=(*problem.limits.musts, at))
            more = solver.solve(replace(problem, limits=limits))
            with_it = None if more is None else _total(problem, more)
            yield Worth(name=place.name, used=False, with_tokens_per_s=with_it, without_tokens_per_s=with_all)


def _without(problem: Problem, gone: int, left: list[int]) -> tuple[Problem, Found] | None:
    pins = [pin for pin in problem.limits.pins if pin[0] != gone]
    number = {at: new for new, at in enumerate(left)}
    limits = replace(
        problem.limits,
        pins=tuple((number[at], first, last) for at, first, last in pins),
        musts=tuple(number[at] for at in problem.limits.musts if at != gone),
        min_nodes=min(problem.limits.min_nodes, max(1, len(left))),
    )
    smaller = replace(problem, cluster=problem.cluster.only(left), limits=limits)
    found = solver.solve(smaller) if left else None
    return None if found is None else (smaller, found)


def _total(problem: Problem, found: Found) -> float:
    return forecast(problem, found.chains).total_tokens_per_s


def alternatives(problem: Problem, chosen: Found) -> list[Alternative]:
    """The best plans over other numbers of nodes, and of the other kinds; the better first."""
    limits = problem.limits
    tried = [
        replace(limits, min_nodes=n, max_nodes=n)
        for n in range(limits.min_nodes, (limits.max_nodes or len(problem.cluster.places)) + 1)
        if n != len(chosen.used)
    ]
    if limits.parallel is None and problem.streams > 1:
        tried += [replace(limits, parallel="pipeline"), replace(limits, parallel="replicas")]
    found: dict[str, tuple[float, Found]] = {}
    for each in tried:
        other = solver.solve(replace(problem, limits=each))
        if other is not None and other.chains != chosen.chains:
            found.setdefault(layout(problem, other.chains), (other.cost, other))
    best = sorted(found.items(), key=lambda item: (item[1][0], item[0]))[:_ALTERNATIVES]
    told = [(said, forecast(problem, other.chains)) for said, (_, other) in best]
    return [
        Alternative(
            layout=said,
            ttft_ms=speed.ttft_ms,
            decode_tokens_per_s=speed.decode_tokens_per_s,
            total_tokens_per_s=speed.total_tokens_per_s,
        )
        for said, speed in told
    ]
