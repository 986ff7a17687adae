"""Clusters that others have published results for, as the planner sees them; and what it predicts.

Three constants are set once for all rows, from four of the figures: the share of a maker's bandwidth that an
engine reaches and what a layer costs beside it (from the one-node figures of the first two programs), and
what a hop costs beside its link (from the first one's two and three nodes). Whoever set them had read every
figure of the collection. The predictions are a committed file of their own; published.py compares. Absolute
figures are another program's: what is predicted are ratios within a row.
"""

import json
import sys
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, Final

from exo_cli.models.catalogue import find
from exo_cli.planning import hardware
from exo_cli.planning.cluster import Cluster, Place, Way
from exo_cli.planning.constants import Constants
from exo_cli.planning.forecast import forecast
from exo_cli.planning.problem import Chain, Problem
from exo_cli.planning.tensor import Group, step_s
from exo_cli.planning.work import Work, work_of

HERE: Final = Path(__file__).parent
PREDICTIONS: Final = HERE / "results" / "published_predictions.json"
CONSTANTS: Final = Constants(decode_share=0.75, layer_s=0.00014, hop_s=0.001)
TCP: Final = Way(0.0003, 1.1e9, "table")
"""Between Macs: about 300 us one way, 10 Gbit/s."""
RDMA: Final = Way(0.0000255, 8e9, "table")


@dataclass(frozen=True, slots=True)
class Case:
    """One published figure, as a ratio to another one of its row."""

    name: str
    what: str
    predicted: float
    note: str = ""


def work(name: str, bits: int) -> Work:
    row = find(name)
    assert row is not None
    return work_of(row.config, repository=f"{row.name}-{bits}bit", item_bytes=2)


def problem(model: Work, chip: str, nodes: int, way: Way, streams: int = 1) -> Problem:
    known = hardware.chip(chip)
    assert known is not None
    share = CONSTANTS.decode_share
    places = tuple(
        Place(
            id=f"n{at}",
            name=f"n{at}",
            host=f"n{at}",
            backend="metal",
            cap_bytes=1 << 50,
            free_bytes=1 << 50,
            bytes_per_s=known.bytes_per_s * share,
            flop_per_s=known.flop_per_s * CONSTANTS.prefill_share,
            basis="table",
        )
        for at in range(nodes)
    )
    here = Way(0.0, inf, "table")
    ways = tuple(tuple(here if a == b else way for b in range(nodes)) for a in range(nodes))
    return Problem(model, Cluster(places, ways, ()), 4096, streams, known=CONSTANTS, objective="latency")


def pipeline(model: Work, chip: str, nodes: int, way: Way = TCP, streams: int = 1) -> float:
    """Tokens a second, layers shared evenly."""
    made = problem(model, chip, nodes, way, streams)
    count = len(model.layers)
    bounds = tuple(round(count * at / nodes) for at in range(nodes + 1))
    told = forecast(made, [Chain(tuple(range(nodes)), bounds, streams)])
    return told.total_tokens_per_s


def tensor(model: Work, chip: str, nodes: int, way: Way = RDMA) -> float:
    made = problem(model, chip, nodes, way)
    shared = Group(tuple(range(nodes)), (1,) * nodes)
    return 1 / step_s(made, shared, 0, len(model.layers), 1, made.position)


def cases() -> list[Case]:
    """In the order of research/published.md."""
    small, large = work("llama-3.2-3b", 4), work("qwen3-235b-a22b", 8)
    dense, sparse = work("llama-3.3-70b", 4), work("deepseek-v3", 4)
    eight = work("llama-3.3-70b", 8)
    # A request at a time is what that program computes; many keep all its stages busy, one each.
    one = pipeline(small, "m4 pro", 1)
    # In llama.cpp each boundary is two transfers, by way of the driver: as a way of twice the latency.
    star = Way(TCP.latency_s * 2 + CONSTANTS.hop_s, TCP.bytes_per_s / 2, "table")
    return [
        Case("llama-3b-2-nodes", "2 nodes to 1, one request", pipeline(small, "m4 pro", 2) / one),
        Case("llama-3b-3-nodes", "3 nodes to 1, one request", pipeline(small, "m4 pro", 3) / one),
        Case("llama-3b-2-nodes-many", "2 nodes to 1, many", pipeline(small, "m4 pro", 2, streams=2) / one),
        Case("llama-3b-3-nodes-many", "3 nodes to 1, many", pipeline(small, "m4 pro", 3, streams=3) / one),
        Case(
            "qwen3-235b-tensor-4",
            "4 nodes to 1, tensor parallel over RDMA",
            tensor(large, "m3 ultra", 4) / tensor(large, "m3 ultra", 1),
        ),
        Case(
            "qwen3-235b-rpc-4",
            "4 nodes to 1, llama.cpp RPC over TCP",
            pipeline(large, "m3 ultra", 4, star) / pipeline(large, "m3 ultra", 1),
        ),
        Case(
            "deepseek-to-llama-70b",
            "DeepSeek V3 to Llama 3.3 70B, both on 8 nodes",
            pipeline(sparse, "m4 pro", 8) / pipeline(dense, "m4 pro", 8),
        ),
        Case(
            "tensor-2",
            "2 nodes to 1, tensor parallel",
            tensor(eight, "m3 ultra", 2) / tensor(eight, "m3 ultra", 1),
            "the model is not said: Llama 3.3 70B at 8 bits is taken",
        ),
        Case(
            "tensor-4",
            "4 nodes to 1, tensor parallel",
            tensor(eight, "m3 ultra", 4) / tensor(eight, "m3 ultra", 1),
            "the model is not said: Llama 3.3 70B at 8 bits is taken",
        ),
    ]


def document() -> dict[str, Any]:
    return {
        "schema": "exo.benchmark-published-predictions/1",
        "constants": {
            "decode_share": CONSTANTS.decode_share,
            "layer_s": CONSTANTS.layer_s,
            "hop_s": CONSTANTS.hop_s,
        },
        "left_out": {
            "time to first token, 8 nodes": "the prompt's length is not published",
            "prefill on one machine, decode on another": "not something that plans offer",
        },
        "predictions": [
            {
                "name": case.name,
                "what": case.what,
                "ratio": round(case.predicted, 3),
                "note": case.note or None,
            }
            for case in cases()
        ],
    }


def main() -> int:
    PREDICTIONS.write_text(json.dumps(document(), indent=2) + "\n", encoding="utf-8")
    for case in cases():
        print(f"{case.predicted:6.3f}  {case.what} ({case.name})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
