"""How fast chains should be: first token, one request alone, all of them, and where each stage's time goes.

The same cost model that the search uses, put the other way round. Knows nothing of how the chains were found.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from exo_cli.planning.cluster import Basis, Cluster, weakest
from exo_cli.planning.cutting import hops
from exo_cli.planning.pace import Pace, Terms, groups
from exo_cli.planning.problem import Chain, Problem
from exo_cli.schemas.plan import Forecast, StageForecast


@dataclass(frozen=True, slots=True)
class Speed:
    """Of one chain, in seconds."""

    first_token_s: float
    alone_s: float
    """A token of a request that is alone."""
    step_s: float
    """A token of each of the requests."""


def speed(problem: Problem, pace: Pace, chain: Chain) -> Speed:
    stages = len(chain.order)
    return Speed(
        first_token_s=_value(problem, pace.first_token(), chain),
        alone_s=_value(problem, pace.alone(), chain),
        step_s=_value(problem, pace.decode(*groups(chain.streams, stages)), chain),
    )


def forecast(problem: Problem, chains: Sequence[Chain]) -> Forecast:
    """Of the whole plan."""
    pace = Pace(problem, {at for chain in chains for at in chain.order})
    speeds = [speed(problem, pace, chain) for chain in chains]
    return Forecast(
        ttft_ms=_ms(max(each.first_token_s for each in speeds)),
        decode_tokens_per_s=_figure(1 / max(each.alone_s for each in speeds)),
        total_tokens_per_s=_figure(
            sum(chain.streams / each.step_s for chain, each in zip(chains, speeds, strict=True))
        ),
        stages=tuple(
            stage
            for chain, each in zip(chains, speeds, strict=True)
            for stage in _stages(problem, pace, chain, each.step_s)
        ),
        prompt_tokens=problem.prompt,
        basis=weakest(_bases(problem.cluster, chains)),
    )


def _bases(cluster: Cluster, chains: Sequence[Chain]) -> Iterator[Basis]:
    for chain in chains:
        yield from (cluster.places[at].basis for at in chain.order)
        yield from (cluster.ways[a][b].basis for a, b in _ring(chain))


def _ring(chain: Chain) -> list[tuple[int, int]]:
    """The ways that a chain uses, the one back to the first stage last; none where it has one stage."""
    if len(chain.order) == 1:
        return []
    return [*pairwise(chain.order), (chain.order[-1], chain.order[0])]


def stage_s(problem: Problem, terms: Terms, chain: Chain) -> list[float]:
    """How long each stage takes for a step."""
    number = {layer: cut for cut, layer in enumerate(problem.work.cuts)}
    return [
        terms.lines[place].stage_s(number[first], number[last])
        for place, (first, last) in zip(chain.order, chain.ranges, strict=True)
    ]


def _value(problem: Problem, terms: Terms, chain: Chain) -> float:
    took = stage_s(problem, terms, chain)
    way = hops(chain.order, terms)
    return terms.value(sum(took) + way.total, max(*took, way.busy))


def _stages(problem: Problem, pace: Pace, chain: Chain, step_s: float) -> list[StageForecast]:
    count, rows = groups(chain.streams, len(chain.order))
    terms = pace.decode(count, rows)
    ways = [terms.hops[a][b] for a, b in _ring(chain)[:-1]]
    ways += [terms.back[chain.order[-1]][chain.order[0]]] if ways else [0.0]
    took = stage_s(problem, terms, chain)
    return [
        StageForecast(compute_ms=_ms(t), wire_ms=_ms(wire), wait_ms=_ms(max(0.0, step_s / count - t)))
        for t, wire in zip(took, ways, strict=True)
    ]


def without_limits(problem: Problem) -> Problem:
    """The same with as much memory as anybody could want, to see what memory costs."""
    places = tuple(replace(place, cap_bytes=1 << 60, free_bytes=1 << 62) for place in problem.cluster.places)
    return replace(problem, cluster=replace(problem.cluster, places=places))


def _ms(seconds: float) -> float:
    return _figure(seconds * 1000)


def _figure(value: float) -> float:
    """Six digits: more would be noise in a file."""
    return float(f"{value:.6g}")
