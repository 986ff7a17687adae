"""The control service of one node, asked over mutual TLS."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from exo_cli import __version__
from exo_cli.cluster.interfaces import Choice, list_interfaces
from exo_cli.cluster.service import CONTROL, ControlServer
from exo_cli.errors import BadData, ExoError, SystemFailure, VersionMismatch
from exo_cli.schemas.decode import decode_node
from exo_cli.trust.keyring import INSECURE, KeyringSource
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.channels import open_channel
from exo_cli.wire.hello import PROTOCOL, hello
from exo_cli.wire.status import translated
from exo_cli.wire.stubs import control
from tests.support.loopback import bound_socket
from tests.support.nodes import Here, channel, serving

only_linux = pytest.mark.skipif(sys.platform != "linux", reason="loopback has one address elsewhere")

Scene = Callable[[Here, Any, grpc.aio.Channel], Awaitable[None]]


def on_stage(scene: Scene, **options: Any) -> None:
    """Run a scene with a node, its client and a channel to it."""

    async def play() -> None:
        source = KeyringSource()
        async with serving(source, "a", **options) as node, channel(source, node.port) as way:
            await scene(node, control(way), way)

    asyncio.run(play())


def test_a_node_says_all_of_its_record() -> None:
    async def scene(node: Here, client: Any, _: grpc.aio.Channel) -> None:
        node.me.interfaces = lambda: list_interfaces(Choice(), loopback=True)
        first = await client.Describe(pb.DescribeRequest(hello=hello()), timeout=5)
        second = await client.Describe(pb.DescribeRequest(hello=hello()), timeout=5)
        assert (first.hello.protocol, first.hello.version) == (PROTOCOL, __version__)
        assert (first.hello.node_id, first.hello.boot) == (node.id, 1)
        record = decode_node(first.node, where="it")
        assert (record.id, record.name, record.state, record.role) == (node.id, "a", "ready", "shard")
        assert (record.version, record.protocol, record.boot) == (__version__, PROTOCOL, 1)
        assert (record.os, record.chip, record.cores, record.backend) == ("Linux", "chip", 2, "none")
        assert record.endpoint == f"127.0.0.1:{node.port}"
        assert "127.0.0.1" in {address.ip for address in record.addresses}
        assert 0 < record.memory.free_bytes <= record.memory.ram_bytes
        assert record.seen_unix_ms > 0
        # A later record is a newer one, and says what changed.
        node.me.draining = True
        later = decode_node(
            (await client.Describe(pb.DescribeRequest(hello=hello()), timeout=5)).node, where="it"
        )
        assert decode_node(second.node, where="it").seq < later.seq
        assert later.state == "draining"

    on_stage(scene)


def test_callers_of_another_protocol_are_refused_by_every_call() -> None:
    async def scene(node: Here, client: Any, _: grpc.aio.Channel) -> None:
        theirs = pb.Hello(protocol=PROTOCOL + 1, version="9.9")
        for call, request in (
            (client.Describe, pb.DescribeRequest(hello=theirs)),
            (client.Measure, pb.MeasureRequest(hello=theirs, target_node_id=node.id)),
            (client.Describe, pb.DescribeRequest()),
        ):
            with pytest.raises(VersionMismatch) as caught, translated("a"):
                await call(request, timeout=5)
            assert "the caller speaks exo protocol" in caught.value.message
            assert caught.value.hint

    on_stage(scene)


async def health(way: grpc.aio.Channel) -> set[str]:
    client: Any = health_pb2_grpc.HealthStub(way)
    answers = [await client.Check(health_pb2.HealthCheckRequest(service=name)) for name in ("", CONTROL)]
    return {health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status) for answer in answers}


def test_health_is_serving_until_it_drains() -> None:
    async def scene(node: Here, client: Any, way: grpc.aio.Channel) -> None:
        assert await health(way) == {"SERVING"}
        await node.server.set_serving(False)
        assert await health(way) == {"NOT_SERVING"}
        # It still says what it is.
        await client.Describe(pb.DescribeRequest(hello=hello()), timeout=5)

    on_stage(scene)


def test_the_figure_of_this_machine_alone_is_measured_and_kept() -> None:
    async def scene(node: Here, client: Any, _: grpc.aio.Channel) -> None:
        request = pb.MeasureRequest(hello=hello(), target_node_id=node.id, max_age_ms=600_000)
        first = await client.Measure(request, timeout=20)
        assert (first.error, first.busy) == ("", False)
        assert (first.kind, first.address, first.boot) == ("loopback", "127.0.0.1", 1)
        assert 0 < first.rtt_us_p50 <= first.rtt_us_p99
        assert node.me.record().loopback_bytes_per_s == first.bytes_per_s > 1e6
        again = await client.Measure(request, timeout=20)
        assert again.bytes_per_s == first.bytes_per_s
        assert again.seq > first.seq

    on_stage(scene)


@only_linux
def test_a_node_that_listens_on_one_address_measures_itself_there() -> None:
    async def play() -> None:
        source = KeyringSource()
        there = "127.0.0.5"
        async with serving(source, "a", host=there) as node, channel(source, node.port, host=there) as way:
            request = pb.MeasureRequest(hello=hello(), target_node_id=node.id)
            reply = await control(way).Measure(request, timeout=20)
        assert (reply.error, reply.address) == ("", "127.0.0.5")
        assert node.me.record().endpoint == f"127.0.0.5:{node.port}"

    asyncio.run(play())


def test_one_node_measures_the_way_to_another() -> None:
    async def play() -> None:
        source = KeyringSource()
        async with serving(source, "a") as a, serving(source, "b") as b, channel(source, a.port) as way:
            addresses = [pb.MeasureAddress(ip="127.0.0.1", port=b.port)]
            request = pb.MeasureRequest(hello=hello(), target_node_id=b.id, addresses=addresses)
            reply = await control(way).Measure(request, timeout=20)
            assert (reply.error, reply.busy) == ("", False)
            assert reply.bytes_per_s > 1e6
            assert reply.age_ms < 60_000
            # It is a figure of the way to b, not of this machine.
            assert a.me.loopback_bytes_per_s is None
            for busy in (a, b):
                with busy.turnstile():
                    assert (await control(way).Measure(request, timeout=20)).busy

    asyncio.run(play())


def test_nothing_is_measured_while_requests_run() -> None:
    async def scene(node: Here, client: Any, _: grpc.aio.Channel) -> None:
        request = pb.MeasureRequest(hello=hello(), target_node_id=node.id)
        assert (await client.Measure(request, timeout=20)).busy

    on_stage(scene, requests_run=lambda: True)


def test_an_unknown_node_is_an_answer_with_a_reason() -> None:
    async def scene(node: Here, client: Any, _: grpc.aio.Channel) -> None:
        request = pb.MeasureRequest(hello=hello(), target_node_id="f" * 32)
        reply = await client.Measure(request, timeout=20)
        assert "no address of the node is known" in reply.error
        assert reply.boot == 1
        request.addresses.append(pb.MeasureAddress(ip="127.0.0.1", port=node.port))
        assert "another node" in (await client.Measure(request, timeout=20)).error

    on_stage(scene)


@pytest.mark.parametrize(
    ("ip", "port"),
    [
        ("127.0.0.1", 0),
        ("127.0.0.1", 65536),
        ("127.0.0.1", 2**32 - 1),
        ("", 80),
        ("localhost", 80),
        ("a b", 1),
    ],
)
def test_what_is_no_address_is_refused_and_no_name_is_looked_up(ip: str, port: int) -> None:
    async def scene(node: Here, client: Any, _: grpc.aio.Channel) -> None:
        request = pb.MeasureRequest(
            hello=hello(), target_node_id="f" * 32, addresses=[pb.MeasureAddress(ip=ip, port=port)]
        )
        with pytest.raises(BadData, match="no list of addresses"), translated("a"):
            await client.Measure(request, timeout=20)

    on_stage(scene)


@only_linux
def test_a_server_binds_every_host_at_one_port_and_says_what_is_taken() -> None:
    async def scene() -> None:
        source = KeyringSource()
        server = ControlServer(source)
        port = server.bind(["127.0.0.1", "127.0.0.2"], 0)
        await server.start()
        with pytest.raises(SystemFailure, match=f"127.0.0.1:{port}"):
            ControlServer(source).bind(["127.0.0.1"], port)
        async with channel(source, port, host="127.0.0.2") as way:
            assert await health(way) == {"SERVING"}
        await server.stop(0)
        with bound_socket() as held:
            held.listen()
            with pytest.raises(SystemFailure):
                ControlServer(source).bind(["127.0.0.1"], held.getsockname()[1])

    asyncio.run(scene())


def test_a_caller_with_another_key_gets_no_answer_at_all() -> None:
    async def scene() -> None:
        source = KeyringSource()
        async with (
            serving(source, "a") as node,
            open_channel(f"127.0.0.1:{node.port}", INSECURE) as way,
        ):
            with pytest.raises(ExoError) as caught, translated("a"):
                await control(way).Describe(pb.DescribeRequest(hello=hello()), timeout=3)
        assert caught.value.exit in (69, 75)

    asyncio.run(scene())
