"""The models of both sides made ready, and one measurement of any case.

Knows who is asked, not what the answer means.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from benchmarks.peers import children, llama_cpp, places
from benchmarks.peers.cases import FORMATS, Case
from benchmarks.peers.children import Failed
from benchmarks.peers.programs import Programs
from benchmarks.peers.shapes import config_of, cut
from exo_cli.models.directory import ModelDirectory
from exo_cli.models.geometry import geometry

SPARE_BYTES: Final = 2 << 30
LOADING_S: Final = 240.0
"""Beside its budget: what a side may take until it is ready."""
BUFFER_MIB: Final = 2048
ROUNDS: Final = 5


def prepare(name: str, bits: set[int], programs: Programs) -> None:
    """The model directory and the GGUF file of a geometry in each of these formats."""
    arguments = [name, *(str(each) for each in sorted(bits))]
    subprocess.run(
        [sys.executable, "-m", "benchmarks.peers.weights", *arguments], cwd=places.REPOSITORY, check=True
    )
    wanted = {FORMATS[each][1] for each in bits}
    files = {kind: places.models() / f"{name}-{kind}.gguf" for kind in sorted(wanted)}
    missing = {kind: path for kind, path in files.items() if not path.exists()}
    if missing:
        to_gguf(places.models() / f"{name}-bf16", missing, programs)


def to_gguf(directory: Path, wanted: dict[str, Path], programs: Programs) -> None:
    """Complete files, or none."""
    unfinished = {kind: path.with_suffix(".unfinished") for kind, path in wanted.items()}
    words = [f"{kind}={path}" for kind, path in unfinished.items()]
    command = [str(programs.python), "-m", "benchmarks.peers.to_gguf", str(directory), *words]
    subprocess.run(command, cwd=places.REPOSITORY, check=True, stdout=subprocess.DEVNULL)
    for kind, path in unfinished.items():
        path.rename(wanted[kind])


def measure(case: Case, programs: Programs, budget_s: float) -> dict[str, Any]:
    """One run of a case; Failed says why there is no figure."""
    match case.side:
        case "llama.cpp":
            return llama_cpp.measure(case, programs)
        case "mlx-lm":
            spec = {"directory": str(directory(case)), "work": _work(case), "budget_s": budget_s}
            return _child("benchmarks.peers.stock_side", spec, case, budget_s)
        case "exo":
            return _ours(case, budget_s)
        case "memory":
            return _memory(case, programs)


def directory(case: Case) -> Path:
    return places.models() / f"{case.geometry}-{FORMATS[case.bits][0]}"


def bits_per_weight(name: str, bits: int) -> dict[str, float]:
    """Of both sides' files, scales and all."""
    ours, theirs = FORMATS[bits]
    parameters = geometry(config_of(name)).total_parameters
    model = ModelDirectory.open(places.models() / f"{name}-{ours}")
    file = places.models() / f"{name}-{theirs}.gguf"
    sizes = {ours: model.weights_bytes, theirs: file.stat().st_size}
    return {kind: round(size * 8 / parameters, 3) for kind, size in sizes.items()}


def _ours(case: Case, budget_s: float) -> dict[str, Any]:
    where = directory(case)
    # The exact path keeps floats in 32 bits, so it may need twice what lies on disk.
    memory_bytes = 2 * ModelDirectory.open(where).weights_bytes + SPARE_BYTES
    spec = {
        "directory": str(where),
        "bounds": cut(case.geometry, len(case.stages)),
        "stages": case.stages,
        "work": _work(case),
        "memory_bytes": memory_bytes,
        "budget_s": budget_s,
    }
    return _child("benchmarks.peers.exo_side", spec, case, budget_s)


def _child(module: str, spec: dict[str, Any], case: Case, budget_s: float) -> dict[str, Any]:
    extra = {"EXO_THREADS": str(len(case.cores))} if case.work.kind == "start" else {}
    command = [sys.executable, "-m", module, json.dumps(spec)]
    watch = case.work.kind == "resident"
    outcome = children.run(command, case.cores, budget_s + LOADING_S, extra=extra, watch_memory=watch)
    lines = [line for line in outcome.results() if line.get("type") == "result"]
    if not lines:
        raise Failed(f"{module} printed no result")
    found = {**lines[-1], **outcome.memory}
    if case.work.kind == "start":
        found["first_token_s"] = outcome.first_output_s
    return found


def _memory(case: Case, programs: Programs) -> dict[str, Any]:
    """What a step reads of ours, at the speed at which these cores read memory."""
    command = [str(programs.bandwidth), str(len(case.cores)), str(BUFFER_MIB), str(ROUNDS)]
    rate = float(children.run(command, case.cores, 120).stdout.split()[0])
    shape = geometry(config_of(case.geometry))
    weights_bytes = ModelDirectory.open(directory(case)).weights_bytes
    read_bytes = weights_bytes * shape.active_parameters / shape.total_parameters
    tokens_per_s = rate / read_bytes * case.together
    return {"decode_tokens_per_s": tokens_per_s, "read_bytes_per_s": rate, "gen_tokens": case.work.gen}


def _work(case: Case) -> dict[str, Any]:
    work = case.work
    names = ("kind", "prompt", "gen", "depth", "requests")
    return {name: getattr(work, name) for name in names}
