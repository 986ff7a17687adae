"""A plan as tab-separated rows, for awk and sort: a row for each stage. Knows nothing of layout."""

from collections.abc import Iterable

from exo_cli.plain import visible
from exo_cli.schemas.plan import Plan, StageForecast

HEADER = (
    "replica",
    "stage",
    "node",
    "node_id",
    "first_layer",
    "end_layer",
    "weights_bytes",
    "kv_bytes",
    "buffers_bytes",
    "base_bytes",
    "limit_bytes",
    "compute_ms",
    "wire_ms",
    "wait_ms",
)


def rows(plan: Plan) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The header and the rows."""
    told: Iterable[StageForecast] = () if plan.forecast is None else plan.forecast.stages
    speeds = iter(told)
    found = []
    for number, replica in enumerate(plan.replicas):
        for at, stage in enumerate(replica.stages):
            speed = next(speeds, None)
            for rank in stage.ranks:
                memory = rank.memory
                found.append(
                    (
                        str(number),
                        str(at),
                        visible(rank.name or ""),
                        visible(rank.node),
                        *map(str, stage.layers),
                        str(memory.weights_bytes),
                        str(memory.kv_bytes),
                        str(memory.buffers_bytes),
                        str(memory.base_bytes),
                        str(memory.limit_bytes),
                        *(
                            ("", "", "")
                            if speed is None
                            else (f"{speed.compute_ms:g}", f"{speed.wire_ms:g}", f"{speed.wait_ms:g}")
                        ),
                    )
                )
    return HEADER, found
