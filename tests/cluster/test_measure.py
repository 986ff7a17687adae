"""Pure sums, then real measurements on loopback: orderly ones, and with peers that misbehave."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo_cli.cluster import measure as module
from exo_cli.cluster import service
from exo_cli.cluster.measure import (
    FIRST_FRAME_BYTES,
    FRAME_BYTES,
    FRAMES_IN_TIME,
    MEASURE_S,
    Busy,
    Received,
    Sample,
    Turnstile,
    frame_bytes,
    measure,
    percentile,
    rate,
)
from exo_cli.errors import BadData, ExoError, InputOutput, NotFound, TryAgain, VersionMismatch
from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.exo_pb2_grpc import ControlServicer
from exo_cli.wire.hello import hello
from exo_cli.wire.stubs import control
from tests.support.nodes import Here, channel, eventually, serving

MS = 1_000_000


# ---------------------------------------------------------------------------------------- pure sums


@given(st.lists(st.floats(0, 1e9), min_size=1), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_a_percentile_is_a_value_that_occurred_with_enough_values_below(
    values: list[float], share: float
) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values)
    assert sum(value < found for value in values) < share * len(values)


def test_percentiles_of_a_hundred() -> None:
    hundred = [float(number) for number in range(100, 0, -1)]
    assert [percentile(hundred, share) for share in (0.01, 0.5, 0.57, 0.99, 1.0)] == [1, 50, 57, 99, 100]
    assert percentile([7.0], 0.99) == 7.0


@given(
    st.integers(1, 10**10),
    st.lists(st.integers(1, 50 * MS), min_size=2, max_size=40),
)
def test_an_even_flow_is_read_as_what_it_is(bytes_per_s: int, pauses_ns: list[int]) -> None:
    clock_ns, counts = 0, []
    for pause_ns in pauses_ns:
        clock_ns += pause_ns
        counts.append(Received(bytes_per_s * clock_ns // 1_000_000_000, clock_ns))
    shortest_s = min(pauses_ns) / 1e9
    assert rate(counts) == pytest.approx(bytes_per_s, rel=1e-6, abs=1.01 / shortest_s)


def test_the_warm_up_does_not_count() -> None:
    slow_start = [Received(1, 0), Received(1000, 49 * MS), Received(2000, 50 * MS), Received(7000, 150 * MS)]
    assert rate(slow_start) == pytest.approx(5000 / 0.1)
    # Slower than the warm-up is long: everything counts.
    assert rate([Received(100, 0), Received(200, 2000 * MS)]) == pytest.approx(50)


@pytest.mark.parametrize(
    "counts", [[], [Received(5, 0)], [Received(5, 7), Received(9, 7)], [Received(1, 60 * MS)] * 2]
)
def test_too_little_to_say_anything_is_said(counts: list[Received]) -> None:
    with pytest.raises(InputOutput, match="too slow"):
        rate(counts)


@given(st.floats(0, 1e12), st.floats(0, 1e12))
def test_frames_fit_into_the_time_and_grow_with_the_link(one: float, other: float) -> None:
    slow, fast = sorted((one, other))
    size = frame_bytes(fast)
    assert frame_bytes(slow) <= size
    assert FIRST_FRAME_BYTES <= size <= FRAME_BYTES
    assert size & (size - 1) == 0
    assert size == FIRST_FRAME_BYTES or size * FRAMES_IN_TIME <= fast * MEASURE_S
    assert size == FRAME_BYTES or 2 * size * FRAMES_IN_TIME > fast * MEASURE_S


def test_the_turnstile_lets_one_in_and_none_while_requests_run() -> None:
    running = False
    turnstile = Turnstile(lambda: running)
    with turnstile() as first, turnstile() as second:
        assert (first, second) == (True, False)
    with turnstile() as after:
        assert after
    running = True
    with turnstile() as during:
        assert not during
    running = False
    with pytest.raises(KeyError), turnstile():
        raise KeyError
    with turnstile() as again:
        assert again


# ------------------------------------------------------------------------------ with an honest peer


def is_a_figure(sample: Sample) -> bool:
    return 0 < sample.rtt_us_p50 <= sample.rtt_us_p99 and sample.bytes_per_s > 1e6


async def through(source: KeyringSource, node: Here, *, claim: bool = True) -> Sample:
    async with channel(source, node.port) as way:
        return await measure(way, expected_node_id=node.id, claim=claim)


def test_one_after_the_other_is_measured_and_none_is_refused() -> None:
    async def scene() -> None:
        source = KeyringSource()
        async with serving(source, "a") as node:
            async with channel(source, node.port) as way:
                for _ in range(3):
                    assert is_a_figure(await measure(way, expected_node_id=node.id, claim=True))
            assert is_a_figure(await through(source, node))

    asyncio.run(scene())


def test_of_two_at_once_one_is_told_that_the_node_is_busy() -> None:
    async def scene() -> None:
        source = KeyringSource()
        async with serving(source, "a") as node:
            results = await asyncio.gather(
                through(source, node), through(source, node), return_exceptions=True
            )
            assert [type(result) for result in results if not isinstance(result, Sample)] == [Busy]
            # Without a claim (the node measures itself) nobody is asked.
            with node.turnstile() as free:
                assert free
                assert is_a_figure(await through(source, node, claim=False))
                with pytest.raises(Busy):
                    await through(source, node)

    asyncio.run(scene())


def test_nothing_is_measured_while_requests_run() -> None:
    async def scene() -> None:
        source = KeyringSource()
        async with serving(source, "a", requests_run=lambda: True) as node:
            with pytest.raises(Busy):
                await through(source, node)

    asyncio.run(scene())


def test_another_node_behind_the_address_is_noticed() -> None:
    async def scene() -> None:
        source = KeyringSource()
        async with serving(source, "a") as node, channel(source, node.port) as way:
            with pytest.raises(NotFound, match="another node"):
                await measure(way, expected_node_id="f" * 32, claim=True)
            # And the other node is free at once.
            assert is_a_figure(await measure(way, expected_node_id=node.id, claim=True))

    asyncio.run(scene())


# --------------------------------------------------------------------------- with others, one by one

Frames = AsyncIterator[pb.EchoFrame]
Script = Callable[[str, Frames, Any], Awaitable[None]]


async def run_against(script: Script) -> Sample:
    """Measure a node whose Echo does what `script` says; fails if something is left running."""
    source = KeyringSource()

    class Odd(ControlServicer):
        async def Echo(self, frames: Frames, context: Any) -> None:
            await script(node.id, frames, context)

    async with serving(source, "odd", make=lambda *_: Odd()) as node, channel(source, node.port) as way:
        before = asyncio.all_tasks()
        try:
            async with asyncio.timeout(15):
                return await measure(way, expected_node_id=node.id, claim=True)
        finally:
            left = [repr(task) for task in asyncio.all_tasks() - before if "_push" in repr(task)]
            assert left == []


async def greet(node_id: str, frames: Frames, context: Any) -> None:
    start = await anext(aiter(frames))
    assert start.WhichOneof("kind") == "start"
    await context.write(pb.EchoAck(ready=pb.EchoReady(hello=hello(node_id, 1))))


async def pong(frames: Frames, context: Any) -> pb.EchoFrame:
    """Answer pings until something else comes."""
    async for frame in frames:
        if frame.WhichOneof("kind") != "ping":
            return frame
        await context.write(pb.EchoAck(pong=frame.ping))
    raise AssertionError("the stream ended")


def ack(total: int, elapsed_ns: int) -> pb.EchoAck:
    return pb.EchoAck(received=pb.EchoReceived(bytes=total, elapsed_ns=elapsed_ns))


async def never_greets(node_id: str, frames: Frames, context: Any) -> None:
    await asyncio.sleep(60)


async def ends_at_once(node_id: str, frames: Frames, context: Any) -> None:
    await greet(node_id, frames, context)


async def never_pongs(node_id: str, frames: Frames, context: Any) -> None:
    await greet(node_id, frames, context)
    await asyncio.sleep(60)


async def pongs_ahead(node_id: str, frames: Frames, context: Any) -> None:
    await greet(node_id, frames, context)
    async for frame in frames:
        await context.write(pb.EchoAck(pong=frame.ping + 1))


async def never_counts(node_id: str, frames: Frames, context: Any) -> None:
    await greet(node_id, frames, context)
    await pong(frames, context)
    async for _ in frames:
        pass


async def stops_reading(node_id: str, frames: Frames, context: Any) -> None:
    await greet(node_id, frames, context)
    await pong(frames, context)
    await asyncio.sleep(60)


async def dies_in_the_middle(node_id: str, frames: Frames, context: Any) -> None:
    await greet(node_id, frames, context)
    first = await pong(frames, context)
    await context.write(ack(len(first.payload), 0))
    second = await anext(aiter(frames))
    await context.write(ack(len(first.payload + second.payload), 70 * MS))
    await context.abort(grpc.StatusCode.INTERNAL, "a wheel came off")


async def leaves_in_the_middle(node_id: str, frames: Frames, context: Any) -> None:
    await greet(node_id, frames, context)
    first = await pong(frames, context)
    await context.write(ack(len(first.payload), 0))


async def counts_more_than_there_was(node_id: str, frames: Frames, context: Any) -> None:
    await greet(node_id, frames, context)
    await pong(frames, context)
    await context.write(ack(2**62, 0))
    await asyncio.sleep(60)


async def counts_backwards(node_id: str, frames: Frames, context: Any) -> None:
    await greet(node_id, frames, context)
    await pong(frames, context)
    await context.write(ack(200, 1000))
    await context.write(ack(100, 2000))
    await asyncio.sleep(60)


async def its_clock_goes_backwards(node_id: str, frames: Frames, context: Any) -> None:
    await greet(node_id, frames, context)
    await pong(frames, context)
    await context.write(ack(100, 2000))
    await context.write(ack(200, 1000))
    await asyncio.sleep(60)


async def speaks_another_protocol(node_id: str, frames: Frames, context: Any) -> None:
    theirs = pb.Hello(protocol=9, version="9.9", node_id=node_id)
    await context.write(pb.EchoAck(ready=pb.EchoReady(hello=theirs)))
    await asyncio.sleep(60)


# gRPC forgets why a call ended where a write came too late.
BROKEN = r"ended the measuring stream|the connection broke"


@pytest.mark.parametrize(
    ("script", "error", "says"),
    [
        (never_greets, TryAgain, "did not answer in time"),
        (ends_at_once, ExoError, BROKEN),
        (never_pongs, TryAgain, "did not answer in time"),
        (pongs_ahead, BadData, "does not answer what it is asked"),
        (never_counts, InputOutput, "too slow"),
        (stops_reading, InputOutput, "too slow"),
        (dies_in_the_middle, ExoError, rf"a wheel came off|{BROKEN}"),
        (leaves_in_the_middle, ExoError, BROKEN),
        (counts_more_than_there_was, BadData, "miscounts"),
        (counts_backwards, BadData, "miscounts"),
        (its_clock_goes_backwards, BadData, "miscounts"),
        (speaks_another_protocol, VersionMismatch, "speaks exo protocol 9"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_peer_that_misbehaves_ends_the_measurement(
    script: Script, error: type[ExoError], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if script in (never_greets, never_pongs):
        monkeypatch.setattr(module, "TIMEOUT_S", 0.5)
    monkeypatch.setattr(module, "END_S", 0.2)
    with pytest.raises(error, match=says) as caught:
        asyncio.run(run_against(script))
    assert not isinstance(caught.value, Busy)


def test_a_server_that_stops_in_the_middle_ends_the_measurement() -> None:
    async def scene() -> None:
        source = KeyringSource()
        stopping: list[asyncio.Task[None]] = []

        class Odd(ControlServicer):
            async def Echo(self, frames: Frames, context: Any) -> None:
                await greet(node.id, frames, context)
                await pong(frames, context)
                stopping.append(asyncio.create_task(node.server.stop(0)))
                async for _ in frames:
                    pass

        async with serving(source, "odd", make=lambda *_: Odd()) as node, channel(source, node.port) as way:
            with pytest.raises(ExoError, match=rf"cannot be reached|{BROKEN}"):
                await measure(way, expected_node_id=node.id, claim=True)
            await asyncio.gather(*stopping)

    asyncio.run(scene())


# ------------------------------------------------------------------- the receiver, with odd senders


async def greeted(call: Any) -> pb.EchoReady:
    await call.write(pb.EchoFrame(start=pb.EchoStart(hello=hello(), claim=True)))
    answer: pb.EchoAck = await call.read()
    return answer.ready


async def becomes_free(node: Here) -> None:
    def free() -> bool:
        with node.turnstile() as mine:
            return mine

    await eventually(free)


async def breaks_off(call: Any) -> None:
    assert not (await greeted(call)).busy
    call.cancel()


async def falls_silent(call: Any) -> None:
    assert not (await greeted(call)).busy
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def reads_nothing(call: Any) -> None:
    assert not (await greeted(call)).busy
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        while True:
            await call.write(pb.EchoFrame(ping=1))
    assert await call.code() is not grpc.StatusCode.OK


async def has_no_manners(call: Any) -> None:
    await call.write(pb.EchoFrame(ping=1))
    with pytest.raises(grpc.aio.AioRpcError, match="begins with its start"):
        await call.read()


async def is_of_another_protocol(call: Any) -> None:
    start = pb.EchoStart(hello=pb.Hello(protocol=7), claim=True)
    await call.write(pb.EchoFrame(start=start))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize(
    "sender", [breaks_off, falls_silent, reads_nothing, has_no_manners, is_of_another_protocol]
)
def test_whatever_a_sender_does_the_next_one_gets_its_turn(
    sender: Callable[[Any], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "TIMEOUT_S", 0.5)

    async def scene() -> None:
        source = KeyringSource()
        async with serving(source, "a") as node:
            async with channel(source, node.port) as way, asyncio.timeout(20):
                await sender(control(way).Echo())
                await becomes_free(node)
            monkeypatch.setattr(service, "TIMEOUT_S", 5.0)
            assert is_a_figure(await through(source, node))

    asyncio.run(scene())
