"""A node of the driver's own: started, used, ended with the driver, however that ends."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from exo_cli.drive import private, tether
from exo_cli.drive.private import private_node
from exo_cli.errors import Unavailable
from exo_cli.trust.keyring import KeyringSource

pytestmark = pytest.mark.process

BOUND_S = 30.0
DRIVER = """
import asyncio, sys, psutil
from exo_cli.drive.private import private_node
from exo_cli.trust.keyring import KeyringSource
async def main():
    async with private_node(KeyringSource()):
        print(*(child.pid for child in psutil.Process().children(recursive=True)), flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""


def until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + BOUND_S
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_it_serves_this_machine_and_leaves_nothing(
    clean_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(clean_environment))
    monkeypatch.setattr("tempfile.tempdir", None)

    async def main() -> list[int]:
        async with private_node(KeyringSource()) as node:
            assert node.endpoint.startswith("127.0.0.1:")
            assert node.name == "private"
            assert node.state == "ready"
            return [child.pid for child in psutil.Process().children(recursive=True)]

    children = asyncio.run(main())
    assert children
    assert all(map(gone, children))
    assert list(clean_environment.glob("exo-*")) == []
    # Its identity is not kept among this user's nodes.
    assert not (clean_environment / ".local").exists()


def test_it_dies_with_its_driver_and_the_next_one_sweeps_up(
    clean_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(clean_environment))
    monkeypatch.setattr("tempfile.tempdir", None)
    driver = subprocess.Popen([sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    children = [int(word) for word in driver.stdout.readline().split()]
    assert children
    driver.kill()
    driver.communicate()
    until(lambda: all(map(gone, children)))
    (left,) = clean_environment.glob("exo-run-*")
    in_use = clean_environment / "exo-run-new"
    in_use.mkdir()
    private._sweep()
    assert not left.exists()
    assert in_use.exists()  # one that has no lock yet


def test_one_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        words = [sys.executable, "-c", "import sys; sys.exit('error: the port is haunted')"]
        with pytest.raises(Unavailable, match="did not start: the port is haunted"):
            async with private_node(KeyringSource(), run=words):
                pass
        monkeypatch.setattr(private, "START_TIMEOUT_S", 0.2)
        with pytest.raises(Unavailable, match=r"did not start within 0\.2 s"):
            async with private_node(
                KeyringSource(), run=[sys.executable, "-c", "import time; time.sleep(60)"]
            ):
                pass

    asyncio.run(main())


GUARD = (
    "import sys; from exo_cli.drive import tether;"
    "sys.exit(tether.main(['0', sys.executable, '-c', sys.argv[1]], linux=False))"
)


def guarded(code: str) -> "subprocess.Popen[str]":
    """Under the guard that stands where the kernel does not help."""
    return subprocess.Popen(
        [sys.executable, "-c", GUARD, code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_the_guard_passes_on_the_exit_code() -> None:
    child = guarded("raise SystemExit(7)")
    assert child.wait(BOUND_S) == 7
    child.communicate()


def test_the_guard_ends_it_when_the_pipe_does() -> None:
    child = guarded("import os, time; print(os.getpid(), flush=True); time.sleep(600)")
    assert child.stdout is not None
    pid = int(child.stdout.readline())
    child.communicate()  # closes standard input
    until(lambda: gone(pid))


def test_the_guard_passes_on_a_request_to_end() -> None:
    code = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))\n"
        "print(os.getpid(), flush=True); time.sleep(600)"
    )
    child = guarded(code)
    assert child.stdout is not None
    child.stdout.readline()
    child.terminate()
    assert child.wait(BOUND_S) == 9
    child.communicate()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's way is Linux's")
def test_nothing_starts_for_a_parent_that_is_gone() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "exo_cli.drive.tether",
            str(os.getpid() + 1),
            sys.executable,
            "-c",
            "print(1)",
        ],
        capture_output=True,
        check=True,
    )
    assert done.stdout == b""
    assert tether.main is not None
