"""Forecast against measurement: chains of one, two and three stages, one request and eight, on shaped links.

Nodes are processes in network namespaces on one host (root, Linux), each with one thread on a core of its
own, or on all cores where there are fewer than nodes. What leaves each of them is shaped by `tbf` in some
rounds; in others a switch delays it (shapes.py). A round times the engine's rates, measures the links,
forecasts, and runs every chain with `exo bench`. Other work only slows a chain, so the best repeat but one
stands for it; what is compared is the ratio to the chain of one stage of the same round. `--add` runs one
round and adds it to those in the result, as long as the conditions are the same: for machines that are quiet
for a minute at a time. Exit code 80: the promises of 10 % in the median and 15 % at worst, or the order, or
that the chosen plan is as quick as the best, do not hold.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from itertools import combinations, pairwise, product
from pathlib import Path
from typing import Any, Final

import msgspec

from benchmarks.machine import machine
from benchmarks.shapes import SHAPES, shape_of, shaped
from exo_cli.config import cache_dir
from exo_cli.models.random_model import random_model
from exo_cli.planning.cluster import cluster_of
from exo_cli.planning.constants import Constants
from exo_cli.planning.planner import make_plan
from exo_cli.planning.problem import Limits, Problem
from exo_cli.planning.work import Work, work_of
from exo_cli.schemas.plan import ModelRef, Plan
from exo_cli.schemas.topology import Rate, Topology
from exo_cli.shard.cores import THREAD_VARIABLES, cores_text, pin
from tests.support.lab import Host, Lab

HERE: Final = Path(__file__).parent
RESULT: Final = HERE / "results" / "forecast.json"
NUMERICS: Final = "fast"
LAYERS: Final = 6
BOUNDS: Final = ((0, 6), (0, 3, 6), (0, 2, 4, 6))
STREAMS: Final = (1, 8)


@dataclass(frozen=True, slots=True)
class Size:
    """How much is run; tokens of a prompt and of an answer."""

    rounds: int = len(SHAPES)
    prompt: int = 16
    new: int = 40
    repeats: int = 4


QUICK: Final = Size(rounds=1, new=24, repeats=2)
MEDIAN, WORST, ORDER, CHOSEN = 0.10, 0.15, 0.20, 0.98
CONFIG: Final = {
    "model_type": "llama",
    "hidden_size": 2048,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 8192,
    "vocab_size": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}


def cores(number: int) -> frozenset[int]:
    """That a node computes on: its own, if there are enough of them."""
    there = sorted(os.sched_getaffinity(0))
    return frozenset(there) if len(there) < len(BOUNDS) else frozenset({there[number]})


def rates() -> tuple[Rate, ...]:
    """Of one thread, by the trial that every node makes."""
    program = "import json; from exo_cli.engine.rates import measure"
    program += f"; print(json.dumps(measure('affine4', '{NUMERICS}')))"
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        env={**os.environ, **dict.fromkeys(THREAD_VARIABLES, "1")},
    ) as process:
        pin(process.pid, cores(0))
        assert process.stdout is not None
        found = json.loads(process.stdout.read())
    return (msgspec.convert(found | {"measured_unix_ms": 1}, type=Rate),)


def planned(
    work: Work, topology: Topology, bounds: tuple[int, ...], streams: int, model: ModelRef, size: Size
) -> Plan:
    """This very chain over the first nodes, with its forecast."""
    cluster = cluster_of(topology, format=work.format)
    used = cluster.only(range(len(bounds) - 1))
    pins = tuple((at, first, last) for at, (first, last) in enumerate(pairwise(bounds)))
    limits = Limits(min_nodes=len(pins), max_nodes=len(pins), parallel="pipeline", pins=pins)
    known = Constants(answer_tokens=size.new)
    problem = Problem(work, used, 256, streams, size.prompt, "latency", limits, known)
    return make_plan(problem, model, whole=False)


def measured(host: Host, plan: Plan, config: Path, size: Size) -> dict[int, float]:
    """Tokens a second while all decode, by the number of requests: of the repeats the best but one."""
    path = host.home / "plan.json"
    path.write_bytes(msgspec.json.encode(plan))
    done = host.exo(
        *("bench", "--geometry", str(config), "--bits", "4", "--plan", str(path), "--json"),
        *("--numerics", NUMERICS),
        *("--prompt-tokens", str(size.prompt), "--gen-tokens", str(size.new), "--depth", "0"),
        *("--concurrency", ",".join(map(str, STREAMS)), "--warmup", "1", "--repeat", str(size.repeats)),
        timeout_s=300,
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    levels = json.loads(done.stdout)["levels"]
    assert host.exo("unload").returncode == 0
    return {level["max_concurrency"]: _quiet(level["intervals"]) for level in levels}


def _quiet(intervals: list[dict[str, Any]]) -> float:
    values = next(each["values"] for each in intervals if each["metric"] == "decode_tokens_per_s")
    # A driver that was held up at the first token sees the others come too quickly: the best may be that.
    return float(sorted(values)[-2])


def told(topology: Topology) -> dict[str, Any]:
    """What the planner hears of the links, in the middle of them."""
    links = [link for link in topology.links if link.error is None]
    rtts = [link.rtt_us_p50 for link in links if link.rtt_us_p50 is not None]
    speeds = [link.bytes_per_s for link in links if link.bytes_per_s is not None]
    return {
        "rtt_ms": round(statistics.median(rtts) / 1000, 3),
        "mbit_per_s": round(statistics.median(speeds) * 8e-6, 1),
    }


def a_round(host: Host, config: Path, number: int, size: Size) -> list[dict[str, Any]]:
    """Rates, links, forecasts and runs."""
    found = rates()
    raw = host.topology("--wait", "nodes=3", "--timeout", "60s", "--measure", "always")
    topology = msgspec.convert(raw, type=Topology)
    numerics = ("exact", NUMERICS)
    nodes = tuple(msgspec.structs.replace(node, rates=found, numerics=numerics) for node in topology.nodes)
    topology = msgspec.structs.replace(topology, nodes=nodes)
    random = random_model(config, bits=4)
    work, model = work_of(random.settings), ModelRef(name=random.name, revision=None, digest=random.digest)
    rows = []
    about = {"round": number, "commit": machine()["commit"], "link": shape_of(number).name}
    about |= told(topology)
    # Each round begins with another chain, so that none is always the first.
    for bounds in (*BOUNDS[number % len(BOUNDS) :], *BOUNDS[: number % len(BOUNDS)]):
        plans = {streams: planned(work, topology, bounds, streams, model, size) for streams in STREAMS}
        got = measured(host, plans[max(STREAMS)], config, size)
        for streams, plan in plans.items():
            assert plan.forecast is not None
            forecast = plan.forecast.total_tokens_per_s
            row = about | {"stages": len(bounds) - 1, "streams": streams}
            rows.append(row | {"forecast": round(forecast, 3), "measured": round(got[streams], 3)})
            print(f"{row}: forecast {forecast:.2f} tok/s, measured {got[streams]:.2f}", flush=True)
    return rows


def judged(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """By link, chain and requests: the ratios to one stage, in the median of the rounds, and how far off."""
    errors: list[float] = []
    ratios: list[dict[str, Any]] = []
    order, chosen = True, 1.0
    for rate, streams in product(sorted({row["link"] for row in rows}), STREAMS):
        mine = [row for row in rows if (row["link"], row["streams"]) == (rate, streams)]
        ones = {row["round"]: row for row in mine if row["stages"] == 1}
        middle: list[tuple[float, float]] = []
        for stages in range(1, len(BOUNDS) + 1):
            of = [row for row in mine if row["stages"] == stages]
            told, seen = (
                statistics.median(row[what] / ones[row["round"]][what] for row in of)
                for what in ("forecast", "measured")
            )
            middle.append((told, seen))
            row = {"link": rate, "streams": streams, "stages": stages}
            ratios.append(row | {"forecast": round(told, 3), "measured": round(seen, 3)})
            if stages > 1:
                errors.append(abs(told / seen - 1))
        order = order and all(
            (a[0] - b[0]) * (a[1] - b[1]) > 0
            for a, b in combinations(middle, 2)
            if max(a[0], b[0]) > (1 + ORDER) * min(a[0], b[0])
        )
        # What the planner takes is the chain with the quickest forecast.
        chosen = min(chosen, max(middle)[1] / max(seen for _, seen in middle))
    median, worst = statistics.median(errors), max(errors)
    return {
        "rounds": len({row["round"] for row in rows}),
        "ratios": ratios,
        "absolute": round(statistics.median(row["forecast"] / row["measured"] for row in rows), 3),
        "error_median": round(median, 3),
        "error_worst": round(worst, 3),
        "order_holds": order,
        "chosen_to_best": round(chosen, 3),
        "holds": median <= MEDIAN and worst <= WORST and order and chosen >= CHOSEN,
    }


def _share_kernels(host: Host) -> None:
    """Compiled once, for all of them and for all rounds."""
    there = cache_dir() / "kernels"
    there.mkdir(parents=True, exist_ok=True)
    here = host.home / ".cache" / "exo"
    here.mkdir(parents=True)
    (here / "kernels").symlink_to(there)


def run_rounds(numbers: range, size: Size) -> list[dict[str, Any]]:
    """On nodes of their own, which are gone afterwards."""
    # Whoever ends us leaves no namespaces behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory() as place:
        config = Path(place, "config.json")
        config.write_text(json.dumps(CONFIG))
        lab = Lab(Path(place))
        try:
            switch = lab.bridge("sw")
            hosts = [lab.host(name, switch, f"10.77.1.{at}/24") for at, name in enumerate("abc", 1)]
            lab.key(*hosts)
            for at, host in enumerate(hosts):
                # Less memory than a trial wants: no node times itself while another one is measured.
                pinned = ("--cores", cores_text(cores(at)), "--threads", "1", "--memory", "1500MB")
                _share_kernels(host)
                host.serve(*pinned)
            rows: list[dict[str, Any]] = []
            for number in numbers:
                with shaped(lab, switch, shape_of(number)):
                    rows += a_round(hosts[0], config, number, size)
            return rows
        finally:
            lab.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--add", action="store_true", help="one round more")
    asked = parser.parse_args()
    size = QUICK if asked.quick else Size()
    conditions = (
        f"namespaces on one host; by round: {', '.join(map(str, SHAPES))}; a thread a node on"
        f" {len(os.sched_getaffinity(0))} cores, {NUMERICS}, random 4-bit weights, {LAYERS} layers"
        f" {CONFIG['hidden_size']} wide, {size.prompt} tokens in and {size.new} out, {size.repeats} repeats"
    )
    rows: list[dict[str, Any]] = []
    if asked.add and RESULT.exists():
        there = json.loads(RESULT.read_text(encoding="utf-8"))
        rows = there["results"] if there["conditions"] == conditions else []
    done = max((row["round"] for row in rows), default=-1) + 1
    rows += run_rounds(range(done, done + (1 if asked.add else size.rounds)), size)
    verdict = judged(rows)
    for each in verdict["ratios"]:
        print(each)
    print({key: value for key, value in verdict.items() if key != "ratios"})
    document = {"schema": "exo.benchmark-forecast/1", "machine": machine(), "conditions": conditions}
    whole = document | verdict | {"results": rows}
    RESULT.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    return 0 if verdict["holds"] else 80


if __name__ == "__main__":
    sys.exit(main())
