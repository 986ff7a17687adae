"""README's section on clusters, done as it is written: its Makefile with three nodes here, and its pipe.

Without a cluster key, so all of it stays on loopback.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.processes import Stage, wait_until

pytestmark = pytest.mark.process

README = Path(__file__).parents[2] / "README.md"
NODES = ("left", "middle", "right")


def section() -> str:
    parts = re.split(r"^## ", README.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (found,) = (part for part in parts if part.startswith("Clusters\n"))
    return found


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to stand in, and `exo` as a shell finds it."""
    programs = tmp_path / "bin"
    programs.mkdir()
    exo = programs / "exo"
    exo.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m exo_cli "$@"\n')
    exo.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(README.parent))
    found = tmp_path / "here"
    found.mkdir()
    return found


def running(pids: list[int]) -> list[int]:
    """Those that have not ended; whoever began them may not have asked for how they did."""
    alive = []
    for pid in pids:
        try:
            alive += [pid] if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE else []
        except psutil.NoSuchProcess:
            continue
    return alive


@pytest.fixture
def made(place: Path) -> Iterator[Path]:
    """README's Makefile; whatever it started is ended with the test."""
    blocks = re.findall(r"```make\n(.*?)```", section(), re.DOTALL)
    assert len(blocks) == 1
    (place / "Makefile").write_text(blocks[0])
    yield place
    for file in place.glob("exo-*.pid"):
        for pid in running([int(file.read_text())]):
            psutil.Process(pid).kill()


def test_a_cluster_of_three_by_its_makefile(made: Path) -> None:
    def make(*goals: str) -> str:
        settings = [f"NODES={' '.join(NODES)}", "MODEL=pocket", "ON=", "PLAN=--min-nodes 3"]
        done = subprocess.run(
            ["make", "-j3", *goals, *settings, "ASK=How do I use two machines together?"],
            cwd=made,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        logs = "".join(path.read_text() for path in sorted(made.glob("exo-*.log")))
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{logs}"
        return done.stdout

    make("up")
    pids = [int((made / f"exo-{name}.pid").read_text()) for name in NODES]
    assert running(pids) == pids
    make("plan")
    plan = json.loads((made / "plan.json").read_text())
    stages = plan["replicas"][0]["stages"]
    assert sorted(stage["ranks"][0]["name"] for stage in stages) == sorted(NODES)
    assert plan["forecast"]["decode_tokens_per_s"] > 0
    answer = [line for line in make("ask").splitlines() if not line.startswith(("exo ", "make"))]
    assert "exo" in " ".join(answer)
    held = subprocess.run(["exo", "ps", "--json"], capture_output=True, text=True, timeout=60, check=True)
    assert all(name in held.stdout for name in NODES)
    make("down")
    wait_until(lambda: not running(pids), lambda: f"{running(pids)} still run")
    assert not list(made.glob("exo-*.pid"))


def test_the_pipe(place: Path, tmp_path: Path) -> None:
    (line,) = re.findall(r"^exo discover --json \| .*$", section(), re.MULTILINE)
    # Of this machine it is asked for a model that fits here.
    line = line.replace("llama-3.3-70b", "pocket")
    if shutil.which("jq") is None:
        read = "import json, sys; print(json.dumps(json.load(sys.stdin)['forecast']))"
        line = line.replace("jq .forecast", shlex.join([sys.executable, "-c", read]))
    stage = Stage(tmp_path)
    try:
        stage.node("--name", "alone")
        done = subprocess.run(
            ["sh", "-c", line], cwd=place, capture_output=True, text=True, timeout=120, check=False
        )
    finally:
        stage.close()
    assert done.returncode == 0, done.stderr
    forecast = json.loads(done.stdout)
    assert forecast["decode_tokens_per_s"] > 0
    assert forecast["basis"] in ("measured", "table", "guessed")
