"""A plan that exists, on a cluster that changed: whether it still stands, and whether another is better.

Knows nothing of where plans are kept.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from exo_cli.planning.forecast import forecast
from exo_cli.planning.problem import Chain, Problem, needed_bytes
from exo_cli.planning.search import Search, cost_of
from exo_cli.planning.words import gigabytes, per_second
from exo_cli.schemas.plan import Plan

WORTH_MOVING: Final = 0.05
"""A plan that is better by less stays: loading costs more than it brings, and figures waver."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How an old plan does now."""

    fault: str | None
    """Why it cannot be carried out any more."""
    cost: float | None
    tokens_per_s: float | None


def standing(problem: Problem, plan: Plan) -> Standing:
    """The same layers on the same nodes, with what is known now."""
    number = {place.id: at for at, place in enumerate(problem.cluster.places)}
    gone = dict(problem.cluster.left_out)
    for replica in plan.replicas:
        for stage in replica.stages:
            rank = stage.ranks[0]
            if rank.node not in number:
                name = rank.name or rank.node
                return Standing(f"{name} {gone.get(name, 'is not there')}", None, None)
    chains = [
        Chain(
            tuple(number[stage.ranks[0].node] for stage in replica.stages),
            (0, *(stage.layers[1] for stage in replica.stages)),
            replica.concurrency or plan.concurrency,
        )
        for replica in plan.replicas
    ]
    fault = next(_faults(problem, chains), None)
    if fault is not None:
        return Standing(fault, None, None)
    search = Search(problem, {at for chain in chains for at in chain.order})
    cost = cost_of([search.value(chain) for chain in chains], [chain.streams for chain in chains], problem)
    return Standing(None, cost, forecast(problem, chains).total_tokens_per_s)


def _faults(problem: Problem, chains: Sequence[Chain]) -> Iterator[str]:
    places, used = problem.cluster.places, sorted({at for chain in chains for at in chain.order})
    alone = problem.on(used)
    for chain in chains:
        for at, (first, last) in zip(chain.order, chain.ranges, strict=True):
            memory = alone.memory(used.index(at), first, last, chain.streams)
            missing = needed_bytes(memory) - memory.limit_bytes
            if missing > 0:
                yield f"{places[at].name} lacks {gigabytes(missing)}"
        for a, b in zip(chain.order, (*chain.order[1:], chain.order[0]), strict=True):
            way = problem.cluster.ways[a][b]
            if not way.open:
                yield f"{places[a].name} does not reach {places[b].name} ({way.closed})"


def why_move(problem: Problem, old: Plan, new: Plan) -> str | None:
    """Why one would go over to the new plan; None where one would not."""
    now = standing(problem, old)
    if now.fault is not None:
        return now.fault
    then = standing(problem, new)
    assert now.cost is not None and then.cost is not None  # noqa: PT018
    if then.cost >= now.cost - abs(now.cost) * WORTH_MOVING:
        return None
    assert now.tokens_per_s is not None and then.tokens_per_s is not None  # noqa: PT018
    share = abs(now.cost - then.cost) / abs(now.cost)
    speeds = f"{per_second(now.tokens_per_s)} now, {per_second(then.tokens_per_s)} then"
    return f"another split is better by {share:.0%} ({speeds})"
