"""Real engine processes: they load, end with a sentence when something ends them, and leave no orphan."""

import asyncio
import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from exo_cli.errors import SystemFailure, TryAgain
from exo_cli.shard import engine as parent
from exo_cli.shard.engine import Engine
from exo_cli.shard.messages import LeafText, Start
from exo_cli.trust.authority import issue_leaf
from exo_cli.trust.keyring import load_keyring
from tests.support import tiny_models

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "llama"
    tiny_models.build("llama", directory)
    return directory


@pytest.fixture
def start(model: Path) -> Callable[..., Start]:
    leaf = issue_leaf(load_keyring().primary)
    text = LeafText(
        name=leaf.name,
        key_pem=leaf.key_pem.decode(),
        certificate_pem=leaf.certificate_pem.decode(),
        authority_pem=leaf.authority_pem.decode(),
    )

    def make(**changes: object) -> Start:
        settings: dict[str, object] = {
            "stage_id": "s1",
            "node_id": "0" * 32,
            "node_name": "n",
            "boot": 1,
            "model_dir": str(model),
            "first_layer": 0,
            "last_layer": 4,
            "layers_in_model": 4,
            "memory_bytes": 1 << 30,
            "hosts": ["127.0.0.1"],
            "ports": (0, 0),
            "leaves": [text],
        }
        return Start(**{**settings, **changes})  # type: ignore[arg-type]

    return make


async def ended(engine: Engine, within_s: float) -> str:
    await asyncio.wait_for(engine.ended.wait(), within_s)
    assert engine.failure is not None
    return engine.failure.message


async def speaks(engine: Engine) -> None:
    while engine.beat is None and not engine.ended.is_set():  # noqa: ASYNC110 - nobody tells of a beat
        await asyncio.sleep(0.05)


def test_it_loads_says_its_figures_and_ends_when_told(start: Callable[..., Start]) -> None:
    async def run() -> None:
        engine = Engine(start())
        await engine.start()
        ready = await asyncio.wait_for(engine.wait_ready(), 60)
        assert ready.data_port > 0
        assert ready.weights_bytes > 0
        assert 0 < ready.kv_budget_bytes < 1 << 30
        assert ready.shares_steps
        pid = engine.pid
        await engine.stop()
        assert not psutil.pid_exists(pid)
        assert engine.exit_code == 0
        assert engine.failure is None

    asyncio.run(run())


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        ({"model_dir": "/nonexistent"}, 66, "nonexistent"),
        ({"layers_in_model": 99, "last_layer": 99}, 65, "4 layers, not 99"),
        ({"memory_bytes": 1000}, 79, "may use 1000"),
    ],
)
def test_what_cannot_be_loaded_is_said_with_its_exit_code(
    start: Callable[..., Start], changes: dict[str, object], code: int, says: str
) -> None:
    async def run() -> None:
        engine = Engine(start(**changes))
        await engine.start()
        message = await ended(engine, 60)
        assert says in message
        assert engine.failure is not None
        assert engine.failure.exit == code

    asyncio.run(run())


def test_who_waits_for_an_engine_that_is_let_go_hears_of_it(start: Callable[..., Start]) -> None:
    async def run() -> None:
        engine = Engine(start())
        await engine.start()
        waiting = asyncio.create_task(engine.wait_ready())
        await asyncio.sleep(0)
        await engine.stop()
        with pytest.raises(TryAgain, match="let go while it was being loaded"):
            await waiting

    asyncio.run(run())


def test_a_killed_engine_is_reported_with_its_cause_within_a_second(start: Callable[..., Start]) -> None:
    async def run() -> None:
        engine = Engine(start())
        await engine.start()
        await asyncio.wait_for(engine.wait_ready(), 60)
        os.kill(engine.pid, signal.SIGKILL)
        assert "ended by SIGKILL" in await ended(engine, 3)
        again = Engine(start())
        await again.start()
        await asyncio.wait_for(again.wait_ready(), 60)
        await again.stop()

    asyncio.run(run())


def test_an_engine_whose_thread_breaks_ends_and_does_not_hang(start: Callable[..., Start]) -> None:
    import msgspec

    script = (
        "import sys, exo_cli.engine.stage as stage\n"
        "from exo_cli.shard import worker\n"
        "def load(*_, **__): raise ZeroDivisionError('nobody thought of it')\n"
        "stage.load = load\n"
        "sys.exit(worker.main())"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as broken:
        assert broken.stdin is not None
        assert broken.stderr is not None
        broken.stdin.write(msgspec.json.encode(start()) + b"\n")
        broken.stdin.flush()  # and stays open: it has to end by itself
        assert broken.stderr.read().endswith(b"ZeroDivisionError: nobody thought of it\n")
        assert broken.wait(60) == 70


def test_a_frozen_engine_is_killed_and_reported(start: Callable[..., Start]) -> None:
    async def run() -> None:
        engine = Engine(start())
        await engine.start()
        await asyncio.wait_for(engine.wait_ready(), 60)
        os.kill(engine.pid, signal.SIGSTOP)
        assert "silent for" in await ended(engine, 3 * parent.SILENT_S)

    asyncio.run(run())


def test_a_node_that_stood_still_itself_does_not_take_its_engine_for_frozen(
    start: Callable[..., Start], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, stood_s = 0, 0.0

    def monotonic() -> float:
        nonlocal looks
        looks += 1
        return time.monotonic() + stood_s

    async def run() -> None:
        nonlocal stood_s
        engine = Engine(start())
        await engine.start()
        await asyncio.wait_for(engine.wait_ready(), 60)
        os.kill(engine.pid, signal.SIGSTOP)
        await asyncio.sleep(0.1)  # what it said until now is heard
        stood_s, before = 3600.0, looks
        async with asyncio.timeout(60):
            while looks == before:  # noqa: ASYNC110 - the watch does not know that it is watched
                await asyncio.sleep(0.05)
            engine.beat = None
            os.kill(engine.pid, signal.SIGCONT)
            await asyncio.wait_for(speaks(engine), 60)
        assert engine.failure is None
        await engine.stop()

    monkeypatch.setattr(parent, "time", SimpleNamespace(monotonic=monotonic))
    asyncio.run(run())


def test_an_engine_that_cannot_be_started_is_said_and_leaves_nothing_to_wait_for(
    start: Callable[..., Start], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def none(*_: object, **__: object) -> None:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    async def run() -> None:
        engine = Engine(start())
        with pytest.raises(SystemFailure, match="no engine can be started"):
            await engine.start()
        await engine.stop()

    monkeypatch.setattr(asyncio, "create_subprocess_exec", none)
    asyncio.run(run())


def test_no_engine_outlives_its_parent(start: Callable[..., Start], tmp_path: Path) -> None:
    import msgspec

    line = tmp_path / "start.json"
    line.write_bytes(msgspec.json.encode(start()))
    script = textwrap.dedent(
        """
        import asyncio, sys
        import msgspec
        from exo_cli.shard.engine import Engine
        from exo_cli.shard.messages import Start

        async def main():
            engine = Engine(msgspec.json.decode(open(sys.argv[1], "rb").read(), type=Start))
            await engine.start()
            await engine.wait_ready()
            print(engine.pid, flush=True)
            await asyncio.sleep(600)

        asyncio.run(main())
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(line)], stdout=subprocess.PIPE, text=True
    ) as parent_process:
        assert parent_process.stdout is not None
        pid = int(parent_process.stdout.readline())
        assert psutil.pid_exists(pid)
        parent_process.kill()
    until = time.monotonic() + 6
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until
        time.sleep(0.05)
