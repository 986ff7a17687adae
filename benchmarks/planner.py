"""How long a plan takes to find, at 3, 6, 8, 10 and 128 nodes; and how far from the best it can be.

Clusters made at random with a fixed seed: nodes that all differ in memory and speed, links that all differ,
and eight that are alike. The median of five runs in one process; the search alone, without alternatives and
what each node is worth. Exit code 80 says that a promised time was missed.
"""

import json
import random
import statistics
import sys
import time
from math import inf
from pathlib import Path
from typing import Any, Final

from benchmarks.machine import machine
from exo_cli.models.catalogue import find
from exo_cli.planning import solver
from exo_cli.planning.cluster import Cluster, Place, Way
from exo_cli.planning.problem import Objective, Problem
from exo_cli.planning.work import work_of

HERE: Final = Path(__file__).parent
RUNS: Final = 5
GB: Final = 1e9
CASES: Final = (
    # Nodes, alike, model, memory in GB, the promise in seconds.
    (3, False, "llama-3.3-70b", (20, 64), 5.0),
    (6, False, "llama-3.3-70b", (20, 64), 5.0),
    (6, False, "qwen3-30b-a3b", (20, 64), 5.0),
    (8, True, "llama-3.3-70b", (20, 64), 5.0),
    (8, False, "llama-3.3-70b", (8, 30), None),
    (10, False, "llama-3.3-70b", (8, 30), None),
    (128, False, "llama-3.3-70b", (8, 30), 2.0),
    (128, False, "kimi-k2", (30, 64), 2.0),
)
ASKED: Final[tuple[tuple[Objective, int], ...]] = (
    ("latency", 1),
    ("balanced", 1),
    ("first-token", 1),
    ("throughput", 8),
)


def problem(
    nodes: int, alike: bool, model: str, memory: tuple[float, float], objective: Objective, streams: int
) -> Problem:
    chance = random.Random(nodes)
    row = find(model)
    assert row is not None

    def place(number: int) -> Place:
        size = int(chance.uniform(*memory) * GB)
        speed, flop = chance.uniform(80 * GB, 500 * GB), chance.uniform(4e12, 30e12)
        name = f"n{number}"
        return Place(name, name, name, "metal", size, size, speed, flop, "measured")

    first = place(0)
    places = [first, *(place(at) for at in range(1, nodes))]
    if alike:
        size, speed, flop = first.cap_bytes, first.bytes_per_s, first.flop_per_s
        places = [
            Place(each.id, each.name, each.host, "metal", size, size, speed, flop, "measured")
            for each in places
        ]
    here, same = Way(0.0, inf, "measured"), Way(0.00015, 1.1e8, "measured")

    def way() -> Way:
        if alike:
            return same
        return Way(chance.uniform(5e-5, 5e-4), 10 ** chance.uniform(8, 9.7), "measured")

    ways = tuple(tuple(here if a == b else way() for b in range(nodes)) for a in range(nodes))
    work = work_of(row.config, repository=row.repository, item_bytes=2)
    return Problem(work, Cluster(tuple(places), ways, ()), 8192, streams, objective=objective)


def measure(made: Problem) -> dict[str, Any]:
    took, found = [], None
    for _ in range(RUNS):
        began_s = time.perf_counter()
        found = solver.solve(made)
        took.append(time.perf_counter() - began_s)
    if found is None:
        return {"median_s": round(statistics.median(took), 4), "stages": None, "gap": None}
    gap = abs(found.bound / found.cost if found.cost < 0 else found.cost / found.bound) - 1
    stages = [len(chain.order) for chain in found.chains]
    return {"median_s": round(statistics.median(took), 4), "stages": stages, "gap": round(gap, 4)}


def main() -> int:
    rows, missed = [], False
    for nodes, alike, model, memory, promise_s in CASES:
        for objective, streams in ASKED:
            row = measure(problem(nodes, alike, model, memory, objective, streams))
            late = promise_s is not None and row["median_s"] > promise_s
            missed = missed or late
            rows.append(
                {"nodes": nodes, "alike": alike, "model": model, "objective": objective, "streams": streams}
                | row
                | {"promise_s": promise_s}
            )
            kind = "alike" if alike else "different"
            what = f"{nodes:3} {kind:9} {model:14} {objective:10} {streams} streams"
            print(f"{what}: {row['median_s'] * 1000:7.1f} ms, stages {row['stages']}, gap {row['gap']}")
    document = {
        "schema": "exo.benchmark-planner/1",
        "machine": machine(),
        "conditions": f"median of {RUNS} runs in one process, random clusters with fixed seeds, search alone",
        "results": rows,
    }
    path = HERE / "results" / "planner.json"
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return 80 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
