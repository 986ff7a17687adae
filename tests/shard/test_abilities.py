"""What a node says of its engine: learned from a process that may end at any trial."""

import asyncio
import sys
from pathlib import Path
from typing import cast

import pytest

from exo_cli.cluster.describe import Self
from exo_cli.shard import abilities

PROGRAM = """
import os, sys
def say(**line):
    import json
    os.write(1, json.dumps(line).encode() + b"\\n")
say(family="odd", trouble="it is odd")
for name in ("a", "b", "c", "d"):
    if name in sys.argv[1:]:
        continue
    say(trying=name)
    if name in CRASHES:
        os.abort()
    say(format=name, trouble="too slow" if name == "c" else None)
"""


class Told:
    """As much of a node as is told."""

    formats: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


def learned(tmp_path: Path, program: str) -> Told:
    script = tmp_path / "trial.py"
    script.write_text(program)
    told = Told()
    asyncio.run(abilities.learn(cast(Self, told), (sys.executable, str(script))))
    return told


def test_what_runs_and_what_does_not(tmp_path: Path) -> None:
    told = learned(tmp_path, PROGRAM.replace("CRASHES", "()"))
    assert told.formats == ("a", "b", "d")
    assert told.refused == ("odd: it is odd", "c: too slow")


def test_a_trial_that_ends_the_process_is_refused_and_the_rest_tried(tmp_path: Path) -> None:
    told = learned(tmp_path, PROGRAM.replace("CRASHES", "('b', 'd')"))
    assert told.formats == ("a",)
    ended = "MLX ended when it was tried"
    assert told.refused == ("odd: it is odd", f"b: {ended}", "c: too slow", f"d: {ended}")


@pytest.mark.parametrize(
    "program", ["import nothing_of_that_name", "print('no json')", 'while True: print(\'{"trying": "a"}\')']
)
def test_what_cannot_be_learned_stays_unsaid(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(abilities, "TIMEOUT_S", 1.0 if "while" in program else 60.0)
    told = learned(tmp_path, program)
    assert (told.formats, told.refused) == ((), ())


@pytest.mark.process
def test_the_real_process() -> None:
    told = Told()
    asyncio.run(abilities.learn(cast(Self, told)))
    assert {"float32", "affine4", "affine4 experts", "mxfp4"} <= set(told.formats)
    assert any(each.startswith("phi3small: ") for each in told.refused) or "bfloat16 experts" in told.formats
