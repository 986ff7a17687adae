"""exo fetch beside curl and huggingface_hub's own download, over one link shaped to 1 Gbit/s.

A network namespace of its own holds a hub (the one of the tests: real HTTP, a redirect to a CDN port) and,
in turns, the three programs; its loopback is shaped, so nothing leaves the machine. Each program is a
process of its own from its start to its end and brings one model of random bytes into an empty cache.
`rate_of_curl` counts that whole time; `rate_of_curl_after_start` leaves out the start of the interpreter,
which does not grow with the model. Exit code 80 says that a target was missed.
curl fetches the weights alone and checks nothing; the other two bring the same files, and exo compares
every byte with the hub's sha256. Needs root and iproute2.

A model of 2.2 GB takes 19 s; with less, the start and the end of a process (0.3 s) weigh more.

    python -m benchmarks.fetch [--gigabytes 2.2] [--turns 3] [-o benchmarks/results/fetch.json]
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import machine

RATE = "1gbit"
NAME = "org/name"
TARGET_RATE, TARGET_CPU = 0.97, 1.5
HF = (
    "import sys, os; from huggingface_hub import snapshot_download; "
    "snapshot_download(sys.argv[1], allow_patterns=['*.json', '*.safetensors'])"
)


def write_model(path: Path, size: int) -> None:
    """One file of random weights that looks like a model."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 1}))
    (path / "tokenizer.json").write_text("{}")
    tensor = {"dtype": "U8", "shape": [size // 1000, 1000], "data_offsets": [0, size]}
    header = json.dumps({"model.layers.0.weight": tensor}).encode()
    with open(path / "model.safetensors", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        block = os.urandom(1 << 20)
        for at in range(0, size, len(block)):
            # No two blocks alike, or a file system might keep one.
            file.write((at.to_bytes(8, "little") + block[8:])[: size - at])


def inside(namespace: str, *command: str) -> list[str]:
    return ["ip", "netns", "exec", namespace, *command]


def timed(command: list[str], environment: dict[str, str], scratch: Path) -> tuple[float, float, float]:
    """Seconds from start to end, seconds of CPU, and the seconds that exo itself counts (else the first)."""
    began_s = time.perf_counter()
    out = scratch / "out"
    with out.open("wb") as stdout:
        process = subprocess.Popen(command, env=environment, stdout=stdout, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[4]} ended with {process.returncode}: {said.decode()[-500:]}")
    took_s = time.perf_counter() - began_s
    last = out.read_text().splitlines()[-1:]
    itself_s = json.loads(last[0]).get("elapsed_s", took_s) if last and last[0].startswith("{") else took_s
    return took_s, usage.ru_utime + usage.ru_stime, itself_s


def turn(program: str, namespace: str, url: str, scratch: Path) -> tuple[float, float, float]:
    """One program, once."""
    home = Path(tempfile.mkdtemp(dir=scratch))
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "HF_ENDPOINT": url, "NO_COLOR": "1"}
    weights = f"{url}/{NAME}/resolve/main/model.safetensors"
    command = {
        "curl": ["curl", "-sSfL", "-o", str(home / "file"), weights],
        "huggingface_hub": [sys.executable, "-c", HF, NAME],
        "a look": [sys.executable, "-m", "exo_cli", "fetch", NAME, "--dry-run"],
        "exo fetch": [sys.executable, "-m", "exo_cli", "fetch", NAME, "--json"],
    }[program]
    try:
        return timed(inside(namespace, *command), environment, scratch)
    finally:
        shutil.rmtree(home)


def measure(size: int, turns: int, scratch: Path) -> dict[str, list[tuple[float, float, float]]]:
    """(seconds, CPU seconds, its own seconds) of each turn of each program."""
    namespace = f"exo-fetch-{os.getpid()}"
    found: dict[str, list[tuple[float, float, float]]] = {"curl": [], "huggingface_hub": [], "exo fetch": []}
    write_model(scratch / "model", size)
    subprocess.run(["ip", "netns", "add", namespace], check=True)
    try:
        # Frames of Ethernet's size, or the bucket would have to hold one of loopback's 64 KiB.
        for words in (
            "ip link set lo mtu 1500 up",
            f"tc qdisc add dev lo root tbf rate {RATE} burst 256k latency 50ms",
        ):
            subprocess.run(inside(namespace, *words.split()), check=True)
        hub = [sys.executable, "-m", "tests.support.hub", f"{NAME}={scratch / 'model'}"]
        with subprocess.Popen(
            inside(namespace, *hub), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as server:
            assert server.stdout is not None
            assert server.stdin is not None
            said = json.loads(server.stdout.readline())
            url = said["url"] if isinstance(said, dict) else str(said)
            try:
                turn("a look", namespace, url, scratch)  # the hub knows its sums from now on
                for _ in range(turns):
                    for program, figures in found.items():
                        figures.append(turn(program, namespace, url, scratch))
            finally:
                server.stdin.close()
    finally:
        subprocess.run(["ip", "netns", "delete", namespace], check=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    size = int(arguments.gigabytes * 1e6) * 1000
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(size, arguments.turns, Path(scratch))
    seconds = {name: statistics.median(each[0] for each in figures) for name, figures in found.items()}
    cpu = {name: statistics.median(each[1] for each in figures) for name, figures in found.items()}
    itself = statistics.median(each[2] for each in found["exo fetch"])
    rate = seconds["curl"] / seconds["exo fetch"]
    ratio = cpu["exo fetch"] / cpu["huggingface_hub"]
    result: dict[str, Any] = {
        "schema": "exo.benchmark.fetch/1",
        "machine": machine(),
        "link": RATE,
        "bytes": size,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "cpu_s_per_gb": {name: round(value / size * 1e9, 3) for name, value in cpu.items()},
        "rate_of_curl": round(rate, 3),
        "rate_of_curl_after_start": round(seconds["curl"] / itself, 3),
        "cpu_of_huggingface_hub": round(ratio, 3),
        "turns": {
            name: [[round(value, 3) for value in each] for each in figures] for name, figures in found.items()
        },
    }
    print(json.dumps(result, indent=1))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if rate >= TARGET_RATE and ratio <= TARGET_CPU else 80


if __name__ == "__main__":
    sys.exit(main())
