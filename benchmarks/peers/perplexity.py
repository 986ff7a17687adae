"""What rounding costs on each side: perplexity and KL divergence against the same float32 weights.

llama.cpp's is what llama-perplexity says, ours is mlx-lm's in float32 over the same windows of the same ids.
That both say the same of the unrounded weights is checked first: it shows that the two sides were given
the same model. Knows nothing of speed.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from benchmarks.peers import children, places, sides
from benchmarks.peers.cases import FORMATS
from benchmarks.peers.children import Failed
from benchmarks.peers.programs import Programs

CONTEXT: Final = 256
WINDOWS: Final = 48
SAME: Final = 0.002
"""How far the two sides may be apart on the unrounded weights; llama.cpp's KV cache has 16 bits."""
LIMIT_S: Final = 600.0
_NAME: Final = "reference"
_FINAL: Final = re.compile(r"Final estimate: PPL = ([0-9.]+)")
_ROUNDED: Final = re.compile(r"Mean PPL\(Q\)\s*:\s*([0-9.]+)")
_APART: Final = re.compile(r"Mean\s+KLD:\s*(-?[0-9.]+)")


def compare(programs: Programs) -> dict[str, Any]:
    """The figures of every format of both sides."""
    folder = places.models()
    ids_file = folder / f"{_NAME}-ids.json"
    _module("benchmarks.peers.reference", str(ids_file))
    for bits in (4, 8):
        _module("benchmarks.peers.weights", "--from", str(folder / f"{_NAME}-f32"), str(bits))
    kinds = ["f32", *(FORMATS[bits][1] for bits in (4, 8))]
    files = {kind: folder / f"{_NAME}-{kind}.gguf" for kind in kinds}
    missing = {kind: path for kind, path in files.items() if not path.exists()}
    if missing:
        sides.to_gguf(folder / f"{_NAME}-f32", missing, programs)
    ids = json.loads(ids_file.read_text(encoding="utf-8"))[: CONTEXT * WINDOWS]
    ours, theirs = _ours(ids), _theirs(ids, files, programs)
    apart = abs(ours["f32"]["perplexity"] / theirs["f32"]["perplexity"] - 1)
    if apart > SAME:
        raise SystemExit(
            f"the two sides disagree on the unrounded weights by {apart:.2%}: the conversion is wrong"
        )
    return {
        "model": "llama of 0.9 million parameters, trained in float32 on Python's language reference, bytes",
        "tokens_judged": WINDOWS * (CONTEXT - 1 - CONTEXT // 2),
        "context": CONTEXT,
        "ours": ours,
        "llama.cpp": theirs,
    }


def text(found: dict[str, Any]) -> str:
    """The figures as lines."""
    lines = ["perplexity of the same float32 weights, rounded by each side (KL divergence from the original)"]
    for side in ("ours", "llama.cpp"):
        for kind, figures in found[side].items():
            rise = figures["perplexity"] / found[side]["f32"]["perplexity"] - 1
            said = f"{figures['perplexity']:9.4f}  {rise:+7.2%}  ({figures['kl_divergence']:.6f})"
            lines.append(f"  {side:10}{kind:9}{said}")
    return "\n".join(lines)


def parse(said: str) -> dict[str, float]:
    """Of llama-perplexity, with or without a comparison."""
    rounded, apart = _ROUNDED.search(said), _APART.search(said)
    if rounded is not None and apart is not None:
        return {"perplexity": float(rounded[1]), "kl_divergence": float(apart[1])}
    final = _FINAL.search(said)
    if final is None:
        raise Failed("llama-perplexity printed no result")
    return {"perplexity": float(final[1]), "kl_divergence": 0.0}


def _ours(ids: list[int]) -> dict[str, Any]:
    kinds = {"f32": "f32", **{FORMATS[bits][0]: FORMATS[bits][0] for bits in (4, 8)}}
    with tempfile.TemporaryDirectory() as place:
        file = Path(place, "ids.json")
        file.write_text(json.dumps(ids), encoding="utf-8")
        directories = [str(places.models() / f"{_NAME}-{kind}") for kind in kinds]
        words = ["benchmarks.peers.likelihood", str(file), str(CONTEXT), *directories]
        found = json.loads(_module(*words))
    return {kind: found[f"{_NAME}-{kind}"] for kind in kinds}


def _theirs(ids: list[int], files: dict[str, Path], programs: Programs) -> dict[str, Any]:
    found = {}
    with tempfile.TemporaryDirectory() as place:
        said = Path(place, "text")
        said.write_text("".join(f"<{number}>" for number in ids), encoding="utf-8")
        base = Path(place, "base")
        for kind, path in files.items():
            sizes = ["-f", str(said), "-c", str(CONTEXT), "-b", str(CONTEXT), "-t", "2"]
            compared = ["--kl-divergence"] if kind != "f32" else []
            words = ["-m", str(path), *sizes, "--kl-divergence-base", str(base), *compared]
            command = [programs.path("llama-perplexity"), *words]
            # It prints its result to either stream, depending on which one it is.
            whole = ["/bin/sh", "-c", 'exec "$@" 2>&1', "sh", *command]
            found[kind] = parse(children.run(whole, (0, 1), LIMIT_S).stdout)
    return found


def _module(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=places.REPOSITORY, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout
