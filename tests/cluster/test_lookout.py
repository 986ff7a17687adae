"""A watcher beside real nodes of this process, without a cluster key: all of it stays on loopback."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from exo_cli import config
from exo_cli.cluster import facts, radio
from exo_cli.cluster.beacon import Role
from exo_cli.cluster.facts import Accelerator
from exo_cli.cluster.lookout import Lookout, LookoutOptions
from exo_cli.cluster.membership import Change, Peer
from exo_cli.cluster.node import NodeHost, NodeOptions
from exo_cli.cluster.topology_file import TopologyFile
from exo_cli.errors import BadData, TryAgain, Unavailable
from exo_cli.schemas.topology import Topology
from exo_cli.trust.keyring import KeyringSource
from tests.support.nodes import eventually
from tests.support.records import node


@pytest.fixture(autouse=True)
def no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "probe_accelerator", lambda: Accelerator(backend="none"))


def made(**other: Any) -> Lookout:
    options = LookoutOptions(nodes_dir=config.nodes_dir(), topology=config.topology_path())
    return Lookout(options, KeyringSource(), **other)


@asynccontextmanager
async def a_node(directory: Path, name: str = "a") -> AsyncIterator[NodeHost]:
    """It keeps a file of its own, so that what the watcher writes is the watcher's."""
    options = NodeOptions(
        role="shard", nodes_dir=config.nodes_dir(), topology=directory / f"{name}.json", name=name
    )
    host = NodeHost(options, KeyringSource())
    await host.start()
    try:
        yield host
    finally:
        await host.stop(0)


def states(topology: Topology) -> dict[str, str]:
    return {each.name: each.state for each in topology.nodes}


def test_a_look_finds_who_is_there_and_says_who_is_not(tmp_path: Path) -> None:
    gone = node("f" * 32, name="gone", endpoint="127.0.0.1:9", seen=time.time_ns() // 1_000_000)
    TopologyFile(config.topology_path()).update(lambda _: Topology(nodes=(gone,)))

    async def scene() -> None:
        news: list[str] = []
        watch = made(on_change=lambda change: news.append(change.what))
        async with a_node(tmp_path), watch.running():
            await watch.look(1.0)
            assert states(watch.survey.topology) == {"a": "ready", "gone": "dead"}
            assert watch.ready_nodes() == 1
            # It was asked at the start, and once more: one packet may be lost.
            assert watch.station.asked_hosts["127.0.0.1:9"] == 2
        assert news == ["joined"]
        assert states(TopologyFile(config.topology_path()).read()) == {"a": "ready", "gone": "dead"}

    asyncio.run(scene())


def test_waiting_ends_as_soon_as_they_are_there(tmp_path: Path) -> None:
    async def scene() -> None:
        watch = made()
        async with watch.running():
            async with asyncio.timeout(60):
                waiting = asyncio.create_task(watch.wait_for(2, 120))
                async with a_node(tmp_path, "a"), a_node(tmp_path, "b"):
                    await waiting
                    assert states(TopologyFile(config.topology_path()).read()) == {"a": "ready", "b": "ready"}

    asyncio.run(scene())


def test_waiting_in_vain_says_how_many_there_are(tmp_path: Path) -> None:
    async def scene() -> None:
        watch = made()
        async with watch.running(), a_node(tmp_path):
            await watch.wait_for(1, 30)
            with pytest.raises(TryAgain, match=r"1 of 2 nodes are ready after 0\.1 s") as caught:
                await watch.wait_for(2, 0.1)
            assert "--explain" in (caught.value.hint or "")
            await watch.wait_for(0, 0)

    asyncio.run(scene())


def test_who_leaves_is_gone_from_the_file_at_once(tmp_path: Path) -> None:
    async def scene() -> None:
        watch = made()
        async with watch.running():
            async with a_node(tmp_path):
                await watch.wait_for(1, 30)
            await eventually(lambda: states(TopologyFile(config.topology_path()).read()) == {})

    asyncio.run(scene())


def test_a_machine_without_any_interface_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(radio, "list_interfaces", lambda *_, **__: [])

    async def scene() -> None:
        async with made().running():
            raise AssertionError("it runs")

    with pytest.raises(Unavailable, match="no network interface") as caught:
        asyncio.run(scene())
    assert "--peer" in (caught.value.hint or "")


def test_a_file_that_cannot_be_read_ends_it_and_leaves_nothing_open() -> None:
    config.topology_path().parent.mkdir(parents=True)
    config.topology_path().write_text('{"schema":"exo.plan/1"}')

    async def scene() -> None:
        before = asyncio.all_tasks()
        with pytest.raises(BadData, match=r"exo\.plan/1"):
            async with made().running():
                raise AssertionError("it runs")
        assert asyncio.all_tasks() == before

    asyncio.run(scene())


def test_two_nodes_with_one_id_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = Peer(
        node_id="a" * 32,
        instance=b"i" * 8,
        boot=1,
        seq=1,
        name="a",
        port=1,
        role=Role.SHARD,
        fingerprint="",
        draining=False,
        heard_s=0.0,
    )
    news: list[Change] = []

    async def scene() -> None:
        watch = made(on_change=news.append)
        for what in ("suspect", "duplicate-id"):
            watch.survey.heard(Change(what, peer))
        assert [change.what for change in watch.doubles] == ["duplicate-id"]

    asyncio.run(scene())
    assert [change.what for change in news] == ["suspect", "duplicate-id"]
