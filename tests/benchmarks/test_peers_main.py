"""The harness as a whole, with made-up sides."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers import __main__ as harness
from benchmarks.peers import sides
from benchmarks.peers.cases import QUICK, Case, rows
from benchmarks.peers.children import Failed
from benchmarks.peers.programs import Programs
from benchmarks.peers.table import Run

BUILT = Programs(Path("bin"), Path("python"), Path("bandwidth"), "c++ 1.0")
WANTED = [row for row in rows(QUICK) if row.title.startswith("formats")]


@pytest.fixture(autouse=True)
def _no_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "LOOK_S", 0.001)


def given(**others: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"rounds": 3, "budget": 5.0, **others})


def test_cases_take_turns_and_what_fails_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def measure(case: Case, programs: Programs, budget_s: float) -> dict[str, Any]:
        asked.append(f"{case.side}{case.bits}")
        if case.bits == 16 and case.side == "exo":
            raise Failed("no such format")
        return {"decode_tokens_per_s": 2.0}

    monkeypatch.setattr(sides, "measure", measure)
    runs = harness._turns("formats", WANTED, BUILT, given())
    assert asked[:4] == ["exo8", "llama.cpp8", "exo16", "llama.cpp16"]
    assert [asked.count(each) for each in asked[:4]] == [3, 3, 1, 3]
    assert [run.problem for run in runs if run.problem] == ["no such format"]


def test_a_slow_side_has_one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    def ten_seconds(group: str, number: int, case: Case, *_: object) -> Run:
        return Run(group, number, case, {"decode_tokens_per_s": 0.1}, None, 10.0, 0.0)

    monkeypatch.setattr(harness, "_one", ten_seconds)
    runs = harness._turns("formats", WANTED, BUILT, given(budget=5.0))
    assert [run.round for run in runs] == [0] * 4
    assert len(harness._turns("formats", WANTED, BUILT, given(budget=50.0))) == 12


def test_a_start_is_warm_before_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def measure(case: Case, *_: object) -> dict[str, Any]:
        asked.append(case.side)
        return {"first_token_s": 1.0}

    monkeypatch.setattr(sides, "measure", measure)
    wanted = [row for row in rows(QUICK) if row.title.startswith("start")]
    runs = harness._turns("start", wanted, BUILT, given(rounds=1))
    assert asked == ["exo", "exo", "llama.cpp", "llama.cpp"]
    assert len(runs) == 2


def test_what_is_saved_has_ratios_and_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sides, "measure", lambda *_: {"decode_tokens_per_s": 3.0})
    runs = harness._turns(WANTED[0].group, WANTED, BUILT, given())
    path = tmp_path / "new" / "peers.json"
    harness._save(path, {"schema": "exo.benchmark-peers/1"}, WANTED, runs, None)
    found = json.loads(path.read_text())
    assert [each["ratio"] for each in found["results"]] == [1.0, 1.0]
    assert found["results"][0]["ours"]["values"] == [3.0, 3.0, 3.0]
    assert len(found["runs"]) == 12


@pytest.mark.process
def test_rows_are_listed_without_building_anything(tmp_path: Path) -> None:
    home = tmp_path / "nothing"
    command = [sys.executable, "-m", "benchmarks.peers", "--list", "--only", "prefill"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        env={"HOME": str(home), "PATH": "/usr/bin:/bin"},
    )
    assert "prefill, 2048 tokens, llama-250m" in done.stdout
    assert "decode, 2 threads" not in done.stdout
    assert not home.exists()
