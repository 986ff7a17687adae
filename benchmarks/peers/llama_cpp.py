"""llama.cpp's side: its own tools, as its own documentation uses them, and what they print as figures.

Every kernel setting is llama.cpp's default (repacking, flash attention `auto`, float16 KV). Knows nothing
of the other sides.
"""

import contextlib
import json
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from benchmarks.peers import children, places
from benchmarks.peers.cases import FORMATS, Case
from benchmarks.peers.children import Failed, Outcome
from benchmarks.peers.programs import Programs
from benchmarks.peers.shapes import cut

LIMIT_S: Final = 600.0
READY_S: Final = 20.0


def measure(case: Case, programs: Programs) -> dict[str, Any]:
    """One run; the figures by their names."""
    model = file(case)
    if len(case.stages) > 1:
        with _servers(case, programs) as endpoints:
            split = ["--rpc", ",".join(endpoints), "-ngl", "99", "-sm", case.split]
            return _bench(case, programs, model, [*split, "-ts", _share(case)])
    if case.work.kind == "start":
        return _start(case, programs, model)
    if case.work.requests > 1:
        return _batched(case, programs, model)
    return _bench(case, programs, model, [])


def file(case: Case) -> Path:
    """Where the case's model lies."""
    return places.models() / f"{case.geometry}-{FORMATS[case.bits][1]}.gguf"


def parse_bench(stdout: str) -> dict[str, Any]:
    """The last line of llama-bench's JSON lines: the one test that was asked for."""
    lines = [json.loads(line) for line in stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise Failed("llama-bench printed no result")
    found = lines[-1]
    name = "prefill_tokens_per_s" if found["n_gen"] == 0 else "decode_tokens_per_s"
    return {
        name: found["avg_ts"],
        "prompt_tokens": found["n_prompt"],
        "gen_tokens": found["n_gen"],
        "depth": found["n_depth"],
        "weights_bytes": found["model_size"],
        "parameters": found["model_n_params"],
        "commit": found["build_commit"],
    }


def parse_batched(stdout: str) -> dict[str, Any]:
    """The line of llama-batched-bench: what all requests together generate."""
    lines = [json.loads(line) for line in stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise Failed("llama-batched-bench printed no result")
    found = lines[-1]
    return {
        "decode_tokens_per_s": found["speed_tg"],
        "prompt_tokens": found["pp"],
        "gen_tokens": found["tg"],
        "requests": found["pl"],
    }


def _bench(case: Case, programs: Programs, model: Path, more: Sequence[str]) -> dict[str, Any]:
    work = case.work
    sizes = ["-p", str(work.prompt if work.kind == "prefill" else 0), "-n", str(work.gen)]
    threads = 1 if len(case.stages) > 1 else len(case.cores)
    settings = ["-d", str(work.depth), "-t", str(threads), "-r", "1", "-o", "jsonl"]
    command = [programs.path("llama-bench"), "-m", str(model), *sizes, *settings, *more]
    outcome = children.run(command, case.cores, LIMIT_S, watch_memory=work.kind == "resident")
    return {**parse_bench(outcome.stdout), **outcome.memory, **_flags(command)}


def _batched(case: Case, programs: Programs, model: Path) -> dict[str, Any]:
    work = case.work
    context = str(work.requests * (work.prompt + work.gen))
    sizes = ["-c", context, "-npp", str(work.prompt), "-ntg", str(work.gen), "-npl", str(work.requests)]
    settings = ["-t", str(len(case.cores)), "--output-format", "jsonl"]
    command = [programs.path("llama-batched-bench"), "-m", str(model), *sizes, *settings]
    outcome = children.run(command, case.cores, LIMIT_S)
    return {**parse_batched(outcome.stdout), **_flags(command)}


def _start(case: Case, programs: Programs, model: Path) -> dict[str, Any]:
    """From the start of the process to the first token's text."""
    prompt = "".join(f"<{number}>" for number in range(5, 5 + case.work.prompt))
    quiet = ["-no-cnv", "--no-display-prompt", "--temp", "0", "--ignore-eos"]
    sizes = ["-n", str(case.work.gen), "-c", "512", "-t", str(len(case.cores))]
    command = [programs.path("llama-completion"), "-m", str(model), "-p", prompt, *sizes, *quiet]
    outcome = children.run(command, case.cores, LIMIT_S)
    return {"first_token_s": _first(outcome), **_flags(command)}


def _first(outcome: Outcome) -> float:
    if outcome.first_output_s is None or "<" not in outcome.stdout:
        raise Failed("llama-completion printed no token")
    return outcome.first_output_s


def _share(case: Case) -> str:
    """Of the layers and the head on each server, as evenly as ours are cut."""
    bounds = cut(case.geometry, len(case.stages))
    parts = [after - before for before, after in pairwise(bounds)]
    # llama.cpp counts what comes after the last layer as one more.
    return "/".join(map(str, [*parts[:-1], parts[-1] + 1]))


@contextmanager
def _servers(case: Case, programs: Programs) -> Iterator[list[str]]:
    """An RPC server for each stage, on loopback and on its own cores."""
    with contextlib.ExitStack() as stack:
        endpoints = []
        for cores in case.stages:
            port = _free_port()
            words = ["-H", "127.0.0.1", "-p", str(port), "-t", str(len(cores))]
            child = stack.enter_context(children.started([programs.path("ggml-rpc-server"), *words], cores))
            _until_listening(child.popen, port)
            endpoints.append(f"127.0.0.1:{port}")
        yield endpoints


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _until_listening(child: "subprocess.Popen[bytes]", port: int) -> None:
    until = time.monotonic() + READY_S
    while time.monotonic() < until and child.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise Failed("the RPC server did not start")


def _flags(command: Sequence[str]) -> dict[str, str]:
    """What it was called with, without the places that things lie at."""
    return {"command": " ".join(Path(word).name if "/" in word else word for word in command)}
