"""A node of the driver's own: started, used, ended with the driver, however that ends."""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mlx.core as mx
import psutil
import pytest

from exo_cli import config
from exo_cli.drive import private, tether
from exo_cli.drive.driver import Driver, Settings
from exo_cli.drive.private import private_node
from exo_cli.drive.requests import Ask
from exo_cli.errors import Unavailable
from exo_cli.trust.keyring import KeyringSource
from tests.support import tiny_models, toy_model
from tests.support.processes import is_engine

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


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary files are; a short name, since sockets lie there."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        monkeypatch.setenv("TMPDIR", directory)
        monkeypatch.setattr("tempfile.tempdir", None)
        yield Path(directory)


def test_it_serves_this_machine_and_leaves_nothing(
    clean_environment: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It talks to nobody, whatever is set for nodes that do.
    monkeypatch.setenv("EXO_INTERFACE", "there-is-none")
    monkeypatch.setenv("EXO_PEER", "nowhere.invalid")

    async def main() -> list[int]:
        async with private_node(KeyringSource()) as node:
            assert node.endpoint.startswith(f"unix:{place}/exo-run-")
            assert node.name == "private"
            assert node.state == "ready"
            directory = Path(node.endpoint.removeprefix("unix:")).parent
            assert os.stat(directory).st_mode & 0o777 == 0o700
            return family()

    def family() -> list[int]:
        return [child.pid for child in psutil.Process().children(recursive=True)]

    # Another test's module may have left this worker a process of its own, a resource tracker for one.
    before = family()
    children = [pid for pid in asyncio.run(main()) if pid not in before]
    assert children
    until(lambda: all(map(gone, children)))
    assert list(place.glob("exo-*")) == []
    # Its identity is not kept among this user's nodes.
    assert not (clean_environment / ".local").exists()


def test_it_is_given_further_options(tmp_path: Path) -> None:
    words = private.command(tmp_path, insecure=True, options=("--threads", "3"))
    assert words[-3:] == ["--threads", "3", "--insecure"]


def test_all_that_is_said_goes_through_the_file_system(clean_environment: Path, place: Path) -> None:
    mx.disable_compile()
    model = tiny_models.build("llama", clean_environment / "toy")
    toy_model.write_tokenizer(model)
    prompt, n = (1, 5, 7), 4
    settings = Settings(
        model=str(model),
        weights_dir=config.cache_dir() / "weights",
        nodes_dir=config.nodes_dir(),
        topology=config.topology_path(),
        numerics="exact",
    )

    before = psutil.Process().children(recursive=True)

    async def main() -> None:
        async with Driver(settings, KeyringSource()) as driver:
            chain = await driver.chain(100)
            (stage,) = driver.stages
            assert stage.node.endpoint.startswith("unix:")
            found = [token.id async for token in chain.generate(Ask(prompt, n)).tokens()]
            assert len(found) == n
            # The node, its engine, and whatever else it started.
            processes = [each for each in psutil.Process().children(recursive=True) if each not in before]
            assert len([each for each in processes if is_engine(each)]) == 1
            assert [sockets for each in processes if (sockets := each.net_connections("inet"))] == []

    asyncio.run(main())


@pytest.mark.parametrize("name", ["long" * 30, "50%25", "[1]"])
def test_a_place_that_is_no_name_for_a_socket_is_not_used(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", f"/tmp/{name}")
    assert private._base() == "/tmp"
    monkeypatch.setattr("tempfile.tempdir", "/tmp/a b")
    assert private._base() == "/tmp/a b"


def test_it_dies_with_its_driver_and_the_next_one_sweeps_up(place: Path) -> None:
    driver = subprocess.Popen([sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    children = [int(word) for word in driver.stdout.readline().split()]
    assert children
    driver.kill()
    driver.communicate()
    until(lambda: all(map(gone, children)))
    (left,) = place.glob("exo-run-*")
    in_use = place / "exo-run-new"
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
