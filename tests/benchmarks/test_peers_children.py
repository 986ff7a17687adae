"""Measurements in processes of their own: pinned, bounded in time, and nothing of them left behind."""

import os
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks.peers import children, places
from benchmarks.peers.children import Failed
from tests.support.processes import wait_until

CORE = sorted(os.sched_getaffinity(0))[:1] if hasattr(os, "sched_getaffinity") else [0]
STARTS_ANOTHER = """
import subprocess, sys
subprocess.run([sys.executable, "-c", "print(1, flush=True); import time; time.sleep(600)"])
"""

pytestmark = pytest.mark.process


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXO_PEERS_CACHE", str(tmp_path))
    monkeypatch.setenv("EXO_MEMORY", "1GB")


def run(code: str, limit_s: float = 60.0) -> children.Outcome:
    return children.run([sys.executable, "-c", code], CORE, limit_s)


def test_output_and_time_come_back() -> None:
    outcome = run("print('{\"a\": 1}', flush=True); print('other')")
    assert outcome.results() == [{"a": 1}]
    assert outcome.first_output_s is not None
    assert 0 < outcome.first_output_s <= outcome.seconds


def test_a_child_has_a_home_of_its_own_and_nobodys_settings() -> None:
    outcome = run("import os, json; print(json.dumps(dict(os.environ)))")
    (found,) = outcome.results()
    assert found["HOME"] == str(places.home())
    assert "EXO_MEMORY" not in found


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system pins nothing")
def test_a_child_stays_on_its_cores_and_we_do_not() -> None:
    before = os.sched_getaffinity(0)
    outcome = run("import os, json; print(json.dumps({'cores': sorted(os.sched_getaffinity(0))}))")
    assert outcome.results() == [{"cores": CORE}]
    assert os.sched_getaffinity(0) == before


def test_a_bad_end_is_told_with_the_last_words() -> None:
    with pytest.raises(Failed, match="ended with 3: no room"):
        run("import sys; print('no room', file=sys.stderr); sys.exit(3)")


def test_what_is_late_is_ended_with_all_that_it_started() -> None:
    with pytest.raises(Failed, match="not done within"):
        run(STARTS_ANOTHER, limit_s=2.0)
    wait_until(lambda: not any(map(_is_mine, psutil.process_iter(["cmdline"]))))


def _is_mine(process: psutil.Process) -> bool:
    words = process.info["cmdline"] or []
    return "print(1, flush=True); import time; time.sleep(600)" in words


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_memory_is_that_of_the_whole_tree() -> None:
    holds = "held = bytearray(b'x' * (96 << 20)); input()"
    begins = f"child = subprocess.Popen([sys.executable, '-c', {holds!r}], stdin=subprocess.PIPE)"
    code = f"import subprocess, sys; {begins}; child.wait()"
    with children.started([sys.executable, "-c", code], CORE) as child:
        wait_until(lambda: children.tree_bytes(child.popen.pid)[1] > 96 << 20)
        resident, anonymous = children.tree_bytes(child.popen.pid)
        assert anonymous < resident < 256 << 20


def test_memory_is_told_of_the_time_in_which_it_generates() -> None:
    loading = [(float(at), 10, 5) for at in range(6)]
    generating = [
        (float(at), size, size // 2) for at, size in zip(range(6, 10), (90, 100, 100, 0), strict=True)
    ]
    assert children.settled([*loading, *generating]) == {"resident_bytes": 100, "anonymous_bytes": 50}
    assert children.settled([]) == {}
