"""Signals and the ready file, with nodes as real processes; and what a node says meanwhile."""

import asyncio
import fcntl
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from exo_cli import config
from exo_cli.cluster import lifecycle
from exo_cli.cluster.identity import claim
from exo_cli.cluster.node import NodeHost
from exo_cli.errors import BadData, CannotCreate, Misconfigured
from exo_cli.schemas.events import ReadyLine
from tests.support.cli import exo
from tests.support.processes import Stage, wait_until


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    yield made
    made.close()


@pytest.mark.process
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGHUP, 0), (signal.SIGINT, 130)])
def test_the_ready_file_is_there_while_it_is_ready_and_a_signal_ends_it(
    stage: Stage, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    ready_file = tmp_path / "ready.json"
    node = stage.start("serve-shard", "--json", "--ready-file", str(ready_file))
    node.until(lambda: '"ready"' in node.out())
    ready = json.loads(ready_file.read_text())
    (said,) = node.lines()
    assert ready == {key: value for key, value in said.items() if key != "schema"}
    assert list(said)[:2] == ["schema", "type"]
    assert said["pid"] == node.popen.pid
    assert node.end(number) == code
    assert not ready_file.exists()
    assert [each["type"] for each in node.lines()] == ["ready", "stopped"]
    assert node.lines()[1]["reason"] == number.name
    assert [each["name"] for each in json.loads(config.topology_path().read_text())["nodes"]] == []


@pytest.mark.process
def test_what_a_killed_run_left_does_not_say_that_this_one_is_ready(tmp_path: Path) -> None:
    ready_file = tmp_path / "ready.json"
    ready_file.write_text("old")
    config.topology_path().parent.mkdir(parents=True)
    config.topology_path().write_text("no topology")
    assert exo("serve-shard", "--ready-file", str(ready_file)).returncode == 65
    assert not ready_file.exists()


@pytest.mark.process
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_ends_it_at_once(
    stage: Stage, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    ready_file = tmp_path / "ready.json"
    node = stage.node("--ready-file", str(ready_file))
    # Somebody who holds the topology's lock keeps the first one busy.
    with open(config.topology_path().with_name("topology.json.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        node.popen.send_signal(number)
        wait_until(lambda: not ready_file.exists(), node.told)
        assert node.popen.poll() is None
        node.popen.send_signal(number)
        assert node.popen.wait(3) == code


@pytest.mark.process
def test_a_signal_before_it_is_ready_is_not_forgotten(stage: Stage) -> None:
    node = stage.start("serve-shard", "--json")
    wait_until(lambda: (config.nodes_dir()).exists(), node.told)
    assert node.end(signal.SIGTERM) == 0


@pytest.mark.process
def test_what_a_killed_node_held_is_free_again(stage: Stage) -> None:
    first = stage.node("--name", "studio")
    taken = exo("serve-shard", "--name", "studio")
    assert taken.returncode == 75
    assert "a node named studio already runs on this machine" in taken.stderr
    first.popen.send_signal(signal.SIGKILL)
    first.popen.wait(10)
    second = stage.node("--name", "studio")
    assert second.lines()[0]["id"] == first.lines()[0]["id"]
    identity = claim(config.nodes_dir(), "another")
    identity.release()
    assert json.loads((config.nodes_dir() / "studio" / "node.json").read_text())["boot"] == 2


@pytest.mark.process
@pytest.mark.parametrize("place", ["missing/ready.json", "."])
def test_a_ready_file_that_cannot_be_written_ends_it(tmp_path: Path, place: str) -> None:
    done = exo("serve-shard", "--ready-file", str(tmp_path / place))
    assert done.returncode == 73
    assert "cannot write" in done.stderr
    assert tmp_path.exists()


# ------------------------------------------------------------------------------ without processes


def test_a_device_named_as_ready_file_is_left_alone(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(CannotCreate), lifecycle._written(pipe, ready()):
        raise AssertionError("it runs")
    lifecycle._remove(pipe)
    lifecycle._remove(tmp_path)
    lifecycle._remove(tmp_path / "missing" / "file")
    assert pipe.is_fifo()


def ready() -> ReadyLine:
    return ReadyLine(id="a", name="a", endpoint="127.0.0.1:1", pid=1)


def test_each_trouble_is_said_once_and_again_when_it_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "LOOK_EVERY_S", 0.001)
    survey: Any = SimpleNamespace(problem=None)
    radio: Any = SimpleNamespace(deaf=None)
    kind, said = ["local"], list[str]()
    source: Any = SimpleNamespace(problem=None, current=lambda: SimpleNamespace(kind=kind[0]))
    host = cast(NodeHost, SimpleNamespace(survey=survey, station=SimpleNamespace(radio=radio)))

    async def scene() -> None:
        stop = asyncio.Event()
        watching = asyncio.create_task(lifecycle._watch(host, source, stop, said.append))

        async def now(count: int) -> None:
            for _ in range(2000):
                await asyncio.sleep(0.001)
                if len(said) >= count:
                    break
            await asyncio.sleep(0.01)
            assert len(said) == count, said

        await now(0)
        survey.problem = BadData("the disk is full")
        await now(1)
        radio.deaf = OSError(98, "Address already in use")
        source.problem = Misconfigured("its mode is 0644")
        await now(3)
        survey.problem = None
        await now(3)
        survey.problem = BadData("the disk is full")
        kind[0] = "cluster"
        await now(5)
        stop.set()
        await watching

    asyncio.run(scene())
    assert said[0] == "what is found is not kept: the disk is full"
    assert any("Address already in use" in text for text in said[1:3])
    assert any("its mode is 0644; the key read before stays in use" in text for text in said[1:3])
    assert any("changed from local to cluster" in text for text in said[3:])
