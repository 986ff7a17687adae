"""Two plans compared, in the order in which people ask: what, where, how fast. Knows nothing of files."""

from collections.abc import Iterator

from exo_cli.planning.words import gigabytes, layers, per_second
from exo_cli.schemas.plan import Plan, RankMemory
from exo_cli.schemas.planning import Difference


def differences(a: Plan, b: Plan) -> tuple[Difference, ...]:
    """Everything that is not the same."""
    left, right = _table(a), _table(b)
    # In the order of the first plan, then what only the second one has.
    return tuple(
        Difference(what=what, a=left.get(what), b=right.get(what))
        for what in dict.fromkeys([*left, *right])
        if left.get(what) != right.get(what)
    )


def _table(plan: Plan) -> dict[str, str]:
    return dict(_lines(plan))


def _lines(plan: Plan) -> Iterator[tuple[str, str]]:
    yield "model", plan.model.name
    yield "version", plan.model.digest[:12] or "unknown"
    yield "context", str(plan.context)
    yield "requests at once", str(plan.concurrency)
    yield "numbers between stages", plan.dtype
    yield "objective", plan.objective or "not said"
    yield "chains", str(len(plan.replicas))
    for number, replica in enumerate(plan.replicas, 1):
        chain = f"chain {number}, " if len(plan.replicas) > 1 else ""
        for stage in replica.stages:
            for rank in stage.ranks:
                name = rank.name or rank.node
                yield f"{chain}{name}: layers", layers(*stage.layers)
                yield f"{chain}{name}: memory", gigabytes(_needed(rank.memory))
        order = " > ".join(stage.ranks[0].name or stage.ranks[0].node for stage in replica.stages)
        yield f"{chain}order", order
    if plan.forecast is not None:
        yield "first token", f"{plan.forecast.ttft_ms:.0f} ms"
        yield "one request", per_second(plan.forecast.decode_tokens_per_s)
        yield "together", per_second(plan.forecast.total_tokens_per_s)
    yield "what binds", plan.binding or "not said"


def _needed(memory: RankMemory) -> int:
    return memory.weights_bytes + memory.kv_bytes + memory.buffers_bytes + memory.base_bytes
