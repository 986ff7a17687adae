"""`make bench`: ours beside llama.cpp and stock mlx-lm, the same weights, one run; a table of ratios.

What is compared takes turns on the same cores, a process for each measurement; the figures are medians.
A side that is slow does less of the work and is measured once, and the table says so. With --check the
exit code 80 says that something that must be is not.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks.machine import machine
from benchmarks.peers import perplexity, places, programs, sides
from benchmarks.peers.cases import QUICK, Case, Row, Sizes, rows
from benchmarks.peers.children import Failed
from benchmarks.peers.table import Run, results, text

SLOW: Final = 1.5
"""A case that took this much of its time once is not measured again."""
LOOK_S: Final = 0.3
BUSY: Final = 0.1
"""The share of the machine that others may use before the table says so."""


def main() -> int:
    # What was started is ended on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    given = _arguments()
    sizes = _sizes(given)
    wanted = [row for row in rows(sizes) if given.only.lower() in f"{row.group} | {row.title}".lower()]
    if not wanted:
        raise SystemExit(f"no row of the table has '{given.only}' in it")
    if given.list:
        print("\n".join(dict.fromkeys(row.title for row in wanted)))
        return 0
    built = programs.ensure(given.jobs)
    used = _used(wanted)
    for name, bits in used.items():
        sides.prepare(name, bits, built)
    head = {
        "schema": "exo.benchmark-peers/1",
        "machine": {**machine(), "kernel": platform.release()},
        "conditions": f"one host; pinned to cores {_list(sizes.cores)}; medians of runs that take turns",
        "measured": "exo: by its driver, over mTLS, with sampling; llama.cpp: by its own tools, without",
        "versions": {name: version(name) for name in ("exo-cli", "mlx", "mlx-lm")},
        "llama.cpp": built.described,
        "sizes": asdict(sizes),
        "bits_per_weight": {
            name: [sides.bits_per_weight(name, each) for each in sorted(bits)] for name, bits in used.items()
        },
    }
    runs: list[Run] = []
    quality = None if given.no_perplexity else perplexity.compare(built)
    for group in dict.fromkeys(row.group for row in wanted):
        runs += _turns(group, [row for row in wanted if row.group == group], built, given)
        if given.output is not None:
            _save(given.output, head, wanted, runs, quality)
    found = results(wanted, runs)
    print(text(found))
    if quality is not None:
        print("\n" + perplexity.text(quality))
    others = statistics.median(run.busy_before for run in runs)
    if others > BUSY:
        print(f"\nothers used {others:.0%} of this machine: compare nothing with this table")
    missed = [result.row.title for result in found if result.met is False]
    if given.check and missed:
        print(f"missed: {'; '.join(missed)}", file=sys.stderr)
        return 80
    return 0


def _turns(
    group: str, wanted: Sequence[Row], built: programs.Programs, given: argparse.Namespace
) -> list[Run]:
    """Every case of a group once a round, so that a busy moment falls on all of them."""
    cases: dict[Case, None] = {}
    for row in wanted:
        cases.update(dict.fromkeys((row.ours, *row.theirs)))
    runs: list[Run] = []
    slow: set[Case] = set()
    for round_number in range(given.rounds):
        for case in cases:
            if case in slow:
                continue
            if case.work.kind == "start" and round_number == 0:
                # What is compiled or read for the first time is not what the row is about.
                _one(group, round_number, case, built, given.budget)
            run = _one(group, round_number, case, built, given.budget)
            runs.append(run)
            if run.problem or run.found.get("skipped") or run.seconds > given.budget * SLOW:
                slow.add(case)
            said = run.problem or {key: run.found[key] for key in run.found if key.endswith("_per_s")}
            print(
                f"[{round_number + 1}/{given.rounds}] {case.label}: {said or 'done'}",
                file=sys.stderr,
                flush=True,
            )
    return runs


def _one(group: str, round_number: int, case: Case, built: programs.Programs, budget_s: float) -> Run:
    # Nothing of ours runs now: whoever computes is somebody else.
    others = psutil.cpu_percent(LOOK_S) / 100
    begun = time.perf_counter()
    found: dict[str, Any] = {}
    problem = None
    try:
        found = sides.measure(case, built, budget_s)
    except Failed as failed:
        problem = str(failed)
    return Run(group, round_number, case, found, problem, time.perf_counter() - begun, others)


def _save(
    path: Path,
    head: dict[str, Any],
    wanted: Sequence[Row],
    runs: Sequence[Run],
    quality: dict[str, Any] | None,
) -> None:
    known = {run.group for run in runs}
    document = {
        **head,
        "results": [each.document for each in results([row for row in wanted if row.group in known], runs)],
        "perplexity": quality,
        "runs": [
            {
                "group": run.group,
                "round": run.round,
                "case": run.case.label,
                "found": dict(run.found),
                "problem": run.problem,
                "seconds": round(run.seconds, 2),
                "busy_before": round(run.busy_before, 2),
            }
            for run in runs
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _used(wanted: Sequence[Row]) -> dict[str, set[int]]:
    """The formats of each geometry."""
    found: dict[str, set[int]] = {}
    for row in wanted:
        for case in (row.ours, *row.theirs):
            found.setdefault(case.geometry, set()).add(case.bits)
    return found


def _list(cores: Sequence[int]) -> str:
    return " and ".join(map(str, cores))


def _cores() -> tuple[int, ...]:
    """Two that this process may use."""
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0, 1]
    if len(usable) < 2:
        raise SystemExit("the peers harness compares one core with two, and may use only one")
    return tuple(usable[:2])


def _sizes(given: argparse.Namespace) -> Sizes:
    sizes = replace(QUICK if given.quick else Sizes(), cores=_cores())
    named = {key: getattr(given, key) for key in ("large", "small", "gen", "depth", "requests")}
    return replace(sizes, **{key: value for key, value in named.items() if value is not None})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small models, one round, no file")
    parser.add_argument("--only", default="", metavar="TEXT", help="only rows with this in their title")
    parser.add_argument("--list", action="store_true", help="show the rows and end")
    parser.add_argument("--large", metavar="NAME", help="a geometry of the catalogue or of geometries/")
    parser.add_argument("--small", metavar="NAME")
    parser.add_argument("--gen", type=int, metavar="N", help="tokens that are generated")
    parser.add_argument("--depth", type=int, metavar="N", help="tokens in the context of the deep decode")
    parser.add_argument("--requests", type=int, metavar="N", help="how many at once")
    parser.add_argument("--rounds", type=int, metavar="N", help="how often each case has its turn")
    parser.add_argument(
        "--budget", type=float, default=30.0, metavar="SECONDS", help="of a slow side, once ready"
    )
    parser.add_argument("--no-perplexity", action="store_true", help="only speed")
    parser.add_argument("--check", action="store_true", help="exit with 80 where a must is missed")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="compilers at a time, the first time"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="default: benchmarks/results/peers.json"
    )
    given = parser.parse_args()
    given.rounds = given.rounds or (1 if given.quick else 5)
    if given.output is None and not (given.quick or given.only):
        given.output = places.RESULTS / "peers.json"
    return given


if __name__ == "__main__":
    sys.exit(main())
