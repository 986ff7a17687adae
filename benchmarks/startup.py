"""How long exo takes to start, as a multiple of a bare interpreter.

Each command is a process of its own, started in turns so that a busy moment falls on all of them;
the figure is the median. Ratios are what can be compared between machines. Exit code 80 says that a
target of the design was missed.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.machine import machine

HERE = Path(__file__).parent
RUNS = 25
WARM_UP = 3
BASE = "python -I -c pass"
TARGETS = {
    "exo --version": 3.0,
    "exo --help": 8.0,
    "exo discover --help": 8.0,
    "exo disc": 8.0,
    "exo __complete nodes": 8.0,
}


def commands() -> dict[str, list[str]]:
    """What is measured, by its name."""
    script = str(Path(sys.executable).with_name("exo"))
    found = {BASE: [sys.executable, "-I", "-c", "pass"], "python -c pass": [sys.executable, "-c", "pass"]}
    return found | {name: [script, *name.split()[1:]] for name in TARGETS}


def measure() -> dict[str, list[float]]:
    """Milliseconds of each run."""
    times: dict[str, list[float]] = {name: [] for name in commands()}
    with tempfile.TemporaryDirectory() as home:
        topology = Path(home, "topology.json")
        topology.write_text(json.dumps({"nodes": [{"name": f"node-{number}"} for number in range(16)]}))
        environment = {"HOME": home, "PATH": os.environ["PATH"], "EXO_TOPOLOGY": str(topology)}
        for turn in range(WARM_UP + RUNS):
            for name, command in commands().items():
                started = time.perf_counter()
                subprocess.run(command, env=environment, cwd=home, capture_output=True, check=False)
                if turn >= WARM_UP:
                    times[name].append((time.perf_counter() - started) * 1000)
    return times


def main() -> int:
    times = measure()
    base_ms = statistics.median(times[BASE])
    rows = []
    for name, values in times.items():
        median_ms = statistics.median(values)
        rows.append(
            {
                "command": name,
                "median_ms": round(median_ms, 2),
                "fastest_ms": round(min(values), 2),
                "ratio": round(median_ms / base_ms, 2),
                "target_ratio": TARGETS.get(name),
            }
        )
        target = f"  (target {TARGETS[name]:.0f})" if name in TARGETS else ""
        print(f"{name:22} {median_ms:7.1f} ms  {median_ms / base_ms:5.2f} x{target}")
    document = {"schema": "exo.benchmark-startup/1", "machine": machine(), "runs": RUNS, "results": rows}
    path = HERE / "results" / "startup.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    missed = [row["command"] for row in rows if row["target_ratio"] and row["ratio"] > row["target_ratio"]]  # type: ignore[operator]
    if missed:
        print(f"missed: {', '.join(map(str, missed))}", file=sys.stderr)
    return 80 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
