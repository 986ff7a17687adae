"""Where compiled kernels are kept, and that a second process compiles nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from exo_cli.engine.cpu import jit
from exo_cli.engine.cpu.features import Features

LIKELIEST = """
import numpy as np
from exo_cli.engine.cpu import jit, likeliest
assert likeliest.likeliest(np.arange(40, dtype=np.float32))[0] == 39
stats = likeliest._likeliest.stats
print(jit.KEPT, jit.DIRECTORY.name, sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
"""


def run(cache: Path, **more: str) -> list[str]:
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), **more}
    command = [sys.executable, "-c", LIKELIEST]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
    return answer.stdout.split()


@pytest.mark.process
def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    assert run(tmp_path) == ["True", jit.source_key(), "0", "1"]
    assert run(tmp_path) == ["True", jit.source_key(), "1", "0"]
    (kept,) = (tmp_path / "exo" / "kernels").iterdir()
    assert kept.name == jit.source_key()


@pytest.mark.process
def test_where_nothing_can_be_kept_kernels_are_compiled_all_the_same(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert run(blocked)[0] == "False"


def test_another_processor_has_a_cache_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    before = jit.source_key()
    monkeypatch.setattr(jit, "HERE", Features("other", frozenset()))
    assert jit.source_key() != before
