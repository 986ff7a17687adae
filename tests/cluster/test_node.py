"""Whole nodes in this process, without a cluster key: nothing leaves loopback."""

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psutil
import pytest

from exo_cli import config
from exo_cli.cluster import facts, ports, station
from exo_cli.cluster.facts import Accelerator
from exo_cli.cluster.identity import siblings
from exo_cli.cluster.interfaces import EVERY_INTERFACE
from exo_cli.cluster.node import UNIX_PORT, NodeHost, NodeOptions, is_loopback, listen_on, local_host
from exo_cli.cluster.survey import Survey, describe_at
from exo_cli.cluster.topology_file import TopologyFile
from exo_cli.errors import BadData, ExoError, NotAuthorised, SystemFailure, TryAgain
from exo_cli.trust import keyfile
from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.hello import hello
from exo_cli.wire.stubs import control
from tests.support.loopback import bound_socket
from tests.support.nodes import channel, eventually


@pytest.fixture(autouse=True)
def no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking MLX takes a second; that it is asked, the tests of real processes show."""
    monkeypatch.setattr(facts, "probe_accelerator", lambda: Accelerator(backend="none"))


def options(**other: Any) -> NodeOptions:
    fields: dict[str, Any] = {
        "role": "shard",
        "nodes_dir": config.nodes_dir(),
        "topology": config.topology_path(),
    }
    return NodeOptions(**(fields | other))


@asynccontextmanager
async def running(**other: Any) -> AsyncIterator[NodeHost]:
    host = NodeHost(options(**other), KeyringSource())
    await host.start()
    try:
        yield host
    finally:
        await host.stop(0)


def in_file() -> dict[str, str]:
    return {each.name: each.state for each in TopologyFile(config.topology_path()).read().nodes}


def test_two_nodes_of_one_machine_get_names_and_ports_of_their_own_and_find_each_other() -> None:
    async def scene() -> None:
        async with running() as first, running(role="announce") as second:
            assert second.identity.name == f"{first.identity.name}-2"
            assert first.port != second.port
            assert first.endpoint == f"127.0.0.1:{first.port}"
            await eventually(lambda: set(in_file()) == {first.identity.name, second.identity.name})
            await eventually(
                lambda: (
                    first.identity.node_id in second.survey.described
                    and second.identity.node_id in first.survey.described
                )
            )
            assert second.survey.described[first.identity.node_id].role == "shard"
            assert first.survey.described[second.identity.node_id].role == "announce"
            names = first.identity.name, second.identity.name
        # Who leaves in order takes its record along.
        assert in_file() == {}
        async with running() as again:
            assert (again.identity.name, again.identity.boot) == (names[0], 2)

    asyncio.run(scene())


def test_many_at_once_do_not_meet_at_one_port() -> None:
    async def scene() -> None:
        hosts = [NodeHost(options(), KeyringSource()) for _ in range(4)]
        await asyncio.gather(*(host.start() for host in hosts))
        assert len({host.port for host in hosts}) == len({host.identity.name for host in hosts}) == 4
        for host in hosts:
            async with channel(KeyringSource(), host.port) as way:
                reply = await control(way).Describe(pb.DescribeRequest(hello=hello()), timeout=5)
                assert reply.hello.node_id == host.identity.node_id
        await asyncio.gather(*(host.stop(0) for host in hosts))

    asyncio.run(scene())


def test_a_port_that_is_taken_between_the_look_and_the_bind_is_left_to_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    choose = ports.choose

    async def scene() -> None:
        with bound_socket() as held:
            held.listen()
            looks = iter([held.getsockname()[1]])

            def late(hosts: list[str], port: int, *, fixed: bool) -> int:
                return next(looks, 0) or choose(hosts, port, fixed=fixed)

            monkeypatch.setattr(ports, "choose", late)
            monkeypatch.setattr(ports, "TRIES", 65536)
            async with running() as host:
                assert host.port != held.getsockname()[1]

    asyncio.run(scene())


def test_a_taken_name_and_a_taken_port_are_refused_and_nothing_is_left() -> None:
    async def scene() -> None:
        async with running(name="studio") as first:
            with pytest.raises(TryAgain, match="studio already runs"):
                await NodeHost(options(name="studio"), KeyringSource()).start()
            with pytest.raises(SystemFailure, match=f"port {first.port} is taken"):
                await NodeHost(options(name="other", listen=f":{first.port}"), KeyringSource()).start()
            # The name is free again, since that one never ran.
            async with running(name="other"):
                pass

    asyncio.run(scene())


def test_a_topology_that_cannot_be_read_ends_it_before_anybody_hears_of_it() -> None:
    config.topology_path().parent.mkdir(parents=True)
    config.topology_path().write_text("{}")

    async def scene() -> None:
        before = asyncio.all_tasks()
        host = NodeHost(options(name="studio", listen="127.0.0.1:0"), KeyringSource())
        with pytest.raises(BadData):
            await host.start()
        assert not hasattr(host, "station")
        assert asyncio.all_tasks() - before == set()
        config.topology_path().unlink()
        # The name is not held.
        async with running(name="studio"):
            pass

    asyncio.run(scene())


def test_a_start_that_fails_late_takes_everything_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(self: Any) -> None:
        raise BadData("late")

    async def scene() -> None:
        before = asyncio.all_tasks()
        with monkeypatch.context() as patch:
            patch.setattr(Survey, "start", fails)
            host = NodeHost(options(name="studio", listen="127.0.0.1:0"), KeyringSource())
            with pytest.raises(BadData, match="late"):
                await host.start()
        left = [repr(task) for task in asyncio.all_tasks() - before if "exo_cli" in repr(task)]
        assert left == []
        async with running(name="studio", listen=f"127.0.0.1:{host.port}"):
            pass

    asyncio.run(scene())


def test_draining_is_said_to_whoever_asks() -> None:
    async def scene() -> None:
        async with running() as host:
            await host.drain()
            assert host.me.record().state == "draining"
            assert host.station.draining
            await eventually(lambda: set(in_file().values()) == {"draining"})

    asyncio.run(scene())


def test_draining_does_not_wait_for_the_next_beacon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(station, "BEACON_EVERY_S", 3600.0)

    async def scene() -> None:
        async with running() as first, running() as second:

            def seen() -> str | None:
                record = second.survey.described.get(first.identity.node_id)
                return record.state if record is not None else None

            await eventually(lambda: seen() == "ready")
            await first.drain()
            await eventually(lambda: seen() == "draining")

    asyncio.run(scene())


def test_a_node_on_a_socket_of_the_file_system_has_no_other() -> None:
    async def scene() -> None:
        with tempfile.TemporaryDirectory(dir="/tmp") as directory:
            before = len(psutil.Process().net_connections("inet"))
            async with running(listen=f"unix:{directory}/node") as host:
                assert host.endpoint == f"unix:{directory}/node:1"
                assert len(psutil.Process().net_connections("inet")) == before
                record = await describe_at(f"unix:{directory}/node", 1, KeyringSource())
                assert record.id == host.identity.node_id
                assert record.endpoint == host.endpoint
                # Nobody of this machine can find it either.
                assert siblings(config.nodes_dir()) == []
                await host.drain()

    asyncio.run(scene())


@pytest.mark.skipif(sys.platform != "linux", reason="loopback has one address elsewhere")
def test_a_node_that_listens_on_one_address_is_found_there() -> None:
    async def scene() -> None:
        async with running(listen="127.0.0.9:0") as host:
            await eventually(lambda: in_file() != {})
            (record,) = TopologyFile(config.topology_path()).read().nodes
            assert record.endpoint == host.endpoint == f"127.0.0.9:{host.port}"

    asyncio.run(scene())


# ------------------------------------------------------------------------------- where to listen


def test_a_socket_of_the_file_system_needs_no_key() -> None:
    assert where("unix:/tmp/x/node") == (["unix:/tmp/x/node"], UNIX_PORT, True)


def where(listen: str | None, *, insecure: bool = False) -> tuple[list[str], int, bool]:
    # Nothing is opened here: it is only said where.
    return listen_on(listen, KeyringSource(insecure), EVERY_INTERFACE)


def test_without_a_key_it_is_this_machine() -> None:
    assert where(None) == (["127.0.0.1"], 52416, False)
    assert where(":7000") == (["127.0.0.1"], 7000, True)
    assert where("localhost:7000") == (["localhost"], 7000, True)
    assert where("[::1]:7000") == (["::1"], 7000, True)
    for elsewhere in ("0.0.0.0:52416", "192.0.2.7", "[::]:1"):
        with pytest.raises(NotAuthorised, match="this machine only") as caught:
            where(elsewhere)
        assert "exo key new" in (caught.value.hint or "")


def test_with_a_key_it_is_everywhere() -> None:
    keyfile.create(config.cluster_key_path(), (keyfile.new_secret(),))
    hosts, port, fixed = where(None)
    assert hosts in (["::"], ["0.0.0.0"])
    assert (port, fixed) == (52416, False)
    assert where("192.0.2.7:1") == (["192.0.2.7"], 1, True)


def test_with_the_published_key_it_is_private_addresses() -> None:
    hosts, _, _ = where(None, insecure=True)
    assert hosts[0] == "127.0.0.1"
    with pytest.raises(ExoError):
        where("203.0.113.5:52416", insecure=True)
    assert where("192.168.1.5:52416", insecure=True)[0] == ["192.168.1.5"]


def test_what_is_of_this_machine() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "127.9.9.9")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "128.0.0.1", "localhost.example")] == [False] * 4
    assert [local_host(host) for host in ("0.0.0.0", "::", "localhost", "::1", "192.0.2.7")] == [
        *("127.0.0.1", "127.0.0.1", "127.0.0.1", "::1", "192.0.2.7")
    ]
