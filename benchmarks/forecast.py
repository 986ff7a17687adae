"""Forecast against measurement: chains of one, two and three stages, one request and eight, on shaped links.

Nodes are processes in network namespaces on one host (root, Linux), each on one core with one thread; with
fewer than three cores two of them share one, which a forecast does not know. `tbf` shapes what leaves each
of them. A round times the engine's rates on one core, measures the links, forecasts, and runs every chain
with `exo bench`; rounds follow each other in one run. What is compared is the ratio to the chain of one stage
of the same round. Exit code 80: the promises of 10 % in the median and 15 % at worst, or the order, do not
hold.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, Final

import msgspec

from benchmarks.machine import machine
from exo_cli.models.random_model import random_model
from exo_cli.planning.cluster import cluster_of
from exo_cli.planning.planner import make_plan
from exo_cli.planning.problem import Limits, Problem
from exo_cli.planning.work import Work, work_of
from exo_cli.schemas.plan import ModelRef, Plan
from exo_cli.schemas.topology import Rate, Topology
from exo_cli.shard.cores import pin
from tests.support.lab import Host, Lab, run

HERE: Final = Path(__file__).parent
RATE: Final = "20mbit"
LAYERS: Final = 6
BOUNDS: Final = ((0, 6), (0, 3, 6), (0, 2, 4, 6))
STREAMS: Final = (1, 8)


@dataclass(frozen=True, slots=True)
class Size:
    """How much is run; tokens of a prompt and of an answer."""

    rounds: int = 3
    prompt: int = 16
    new: int = 24
    repeats: int = 2


QUICK: Final = Size(rounds=1, prompt=4, repeats=1)
"""About two minutes where nothing else runs."""
MEDIAN, WORST, ORDER = 0.10, 0.15, 0.20
CONFIG: Final = {
    "model_type": "llama",
    "hidden_size": 1024,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "intermediate_size": 4096,
    "vocab_size": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}


def rates(core: int) -> tuple[Rate, ...]:
    """Of one core, by the trial that every node makes."""
    command = [sys.executable, "-m", "exo_cli.engine.rates"]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    ) as process:
        pin(process.pid, frozenset({core}))
        assert process.stdout is not None
        lines = process.stdout.read().splitlines()
    return tuple(msgspec.json.decode(line[:-1] + b',"measured_unix_ms":1}', type=Rate) for line in lines)


def planned(
    work: Work, topology: Topology, bounds: tuple[int, ...], streams: int, model: ModelRef, size: Size
) -> Plan:
    """This very chain over the first nodes, with its forecast."""
    cluster = cluster_of(topology, format=work.format)
    used = cluster.only(range(len(bounds) - 1))
    pins = tuple((at, first, last) for at, (first, last) in enumerate(pairwise(bounds)))
    limits = Limits(min_nodes=len(pins), max_nodes=len(pins), parallel="pipeline", pins=pins)
    problem = Problem(work, used, 256, streams, size.prompt, "latency", limits)
    return make_plan(problem, model, whole=False)


def measured(host: Host, plan: Plan, config: Path, size: Size) -> dict[int, float]:
    """Tokens a second while all decode, by the number of requests."""
    path = host.home / "plan.json"
    path.write_bytes(msgspec.json.encode(plan))
    done = host.exo(
        *("bench", "--geometry", str(config), "--bits", "4", "--plan", str(path), "--json"),
        *("--prompt-tokens", str(size.prompt), "--gen-tokens", str(size.new), "--depth", "0"),
        *("--concurrency", ",".join(map(str, STREAMS)), "--warmup", "1", "--repeat", str(size.repeats)),
        timeout_s=300,
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    levels = json.loads(done.stdout)["levels"]
    assert host.exo("unload").returncode == 0
    return {level["max_concurrency"]: level["decode_tokens_per_s"] for level in levels}


def a_round(host: Host, config: Path, number: int, size: Size) -> list[dict[str, Any]]:
    """Rates, links, forecasts and runs."""
    found = rates(min(os.sched_getaffinity(0)))
    raw = host.topology("--wait", "nodes=3", "--timeout", "60s")
    topology = msgspec.convert(raw, type=Topology)
    nodes = tuple(msgspec.structs.replace(node, rates=found) for node in topology.nodes)
    topology = msgspec.structs.replace(topology, nodes=nodes)
    random = random_model(config, bits=4)
    work, model = work_of(random.settings), ModelRef(name=random.name, revision=None, digest=random.digest)
    rows = []
    # Each round begins with another chain, so that none is always the first.
    for bounds in (*BOUNDS[number % len(BOUNDS) :], *BOUNDS[: number % len(BOUNDS)]):
        plans = {streams: planned(work, topology, bounds, streams, model, size) for streams in STREAMS}
        got = measured(host, plans[max(STREAMS)], config, size)
        for streams, plan in plans.items():
            assert plan.forecast is not None
            forecast = plan.forecast.total_tokens_per_s
            row = {"round": number, "stages": len(bounds) - 1, "streams": streams}
            rows.append(row | {"forecast": round(forecast, 3), "measured": round(got[streams], 3)})
            print(f"{row}: forecast {forecast:.2f} tok/s, measured {got[streams]:.2f}", flush=True)
    return rows


def judged(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """By chain and number of requests: the ratios to one stage, in the rounds' median, and how far off."""
    errors: dict[tuple[int, int], float] = {}
    middle: dict[tuple[int, int], tuple[float, float]] = {}
    for streams in STREAMS:
        for stages in range(1, len(BOUNDS) + 1):
            mine = [row for row in rows if (row["stages"], row["streams"]) == (stages, streams)]
            ones = {row["round"]: row for row in rows if (row["stages"], row["streams"]) == (1, streams)}
            told = statistics.median(row["forecast"] / ones[row["round"]]["forecast"] for row in mine)
            seen = statistics.median(row["measured"] / ones[row["round"]]["measured"] for row in mine)
            middle[streams, stages] = (told, seen)
            if stages > 1:
                errors[streams, stages] = told / seen - 1
    order = all(
        (a[0] - b[0]) * (a[1] - b[1]) > 0
        for streams in STREAMS
        for a, b in combinations([middle[streams, n] for n in range(1, len(BOUNDS) + 1)], 2)
        if max(a[0], b[0]) > (1 + ORDER) * min(a[0], b[0])
    )
    off = [abs(error) for error in errors.values()]
    return {
        "ratios": [
            {"streams": streams, "stages": stages, "forecast": round(told, 3), "measured": round(seen, 3)}
            for (streams, stages), (told, seen) in middle.items()
        ],
        "absolute": round(statistics.median(row["forecast"] / row["measured"] for row in rows), 3),
        "error_median": round(statistics.median(off), 3),
        "error_worst": round(max(off), 3),
        "order_holds": order,
        "holds": statistics.median(off) <= MEDIAN and max(off) <= WORST and order,
    }


def main() -> int:
    size = QUICK if sys.argv[1:] == ["--quick"] else Size()
    # Whoever ends us leaves no namespaces behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as place:
        config = Path(place, "config.json")
        config.write_text(json.dumps(CONFIG))
        lab = Lab(Path(place))
        try:
            switch = lab.bridge("sw")
            hosts = [lab.host(name, switch, f"10.77.1.{at}/24") for at, name in enumerate("abc", 1)]
            lab.key(*hosts)
            for at, host in enumerate(hosts):
                # A burst of one packet: else a token's payload would pass as if there were no limit.
                run(
                    *("tc", "-n", host.namespace, "qdisc", "replace", "dev", "eth0", "root"),
                    *("tbf", "rate", RATE, "burst", "1600", "latency", "200ms"),
                )
                # Less memory than a trial wants: no node times itself while another one is measured.
                pinned = ("--cores", str(cores[at % len(cores)]), "--threads", "1", "--memory", "1500MB")
                host.serve(*pinned)
            rows = [row for number in range(size.rounds) for row in a_round(hosts[0], config, number, size)]
        finally:
            lab.close()
    verdict = judged(rows)
    for each in verdict["ratios"]:
        print(each)
    print({key: value for key, value in verdict.items() if key != "ratios"})
    document = {
        "schema": "exo.benchmark-forecast/1",
        "machine": machine(),
        "conditions": f"namespaces on one host, tbf {RATE}, no added delay, one core a node of {len(cores)}"
        f" cores, exact, random 4-bit weights, {size.rounds} rounds",
        "results": rows,
    } | verdict
    (HERE / "results" / "forecast.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return 0 if verdict["holds"] else 80


if __name__ == "__main__":
    sys.exit(main())
