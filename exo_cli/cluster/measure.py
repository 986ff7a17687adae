"""Measuring a link: round trips, then frames as fast as they go, on the stream the product uses.

The sender decides what to send, the receiver's clock times it: what the sender's buffers swallow is
not counted. Frames are 1 MiB; on a link so slow that ten of them would not fit into the time, they
are smaller. Knows nothing of which links there are (`survey` does).
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import grpc.aio

from exo_cli.errors import ExoError, InputOutput, NotFound, TryAgain
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.hello import check_hello, hello
from exo_cli.wire.stubs import control

FRAME_BYTES: Final = 1 << 20
FIRST_FRAME_BYTES: Final = 16 << 10
FRAMES_IN_TIME: Final = 12
WARM_UP_S: Final = 0.050
MEASURE_S: Final = 0.300
MEASURE_BYTES: Final = 16 << 20
PINGS: Final = 100
PINGS_S: Final = 0.150
TIMEOUT_S: Final = 5.0
END_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Sample:
    """What one measurement found."""

    rtt_us_p50: float
    rtt_us_p99: float
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Received:
    """The receiver's count: bytes so far, and its clock since the first of them arrived."""

    bytes: int
    elapsed_ns: int


def percentile(values: list[float], share: float) -> float:
    """Nearest rank, so that it is a value that occurred."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1))]


def rate(received: list[Received], *, warm_up_ns: int = int(WARM_UP_S * 1e9)) -> float:
    """Bytes per second after the warm-up, by the receiver's clock."""
    after = [each for each in received if each.elapsed_ns >= warm_up_ns]
    if len(after) < 2:
        # So slow that the warm-up swallowed it: everything counts from the first frame on.
        after = received
    if len(after) < 2 or after[-1].elapsed_ns <= after[0].elapsed_ns:
        raise TryAgain("the link is too slow to be measured", hint="Look for errors on it: ip -s link.")
    return (after[-1].bytes - after[0].bytes) / (after[-1].elapsed_ns - after[0].elapsed_ns) * 1e9


def frame_bytes(bytes_per_s: float) -> int:
    """1 MiB, or so much less that FRAMES_IN_TIME frames fit into the time; a power of two."""
    size = FRAME_BYTES
    while size > FIRST_FRAME_BYTES and size * FRAMES_IN_TIME > bytes_per_s * MEASURE_S:
        size //= 2
    return size


# ------------------------------------------------------------------------------------ the receiver


class Turnstile:
    """One measurement at a time per node, and none while requests run."""

    def __init__(self, requests_run: Callable[[], bool] = lambda: False) -> None:
        self._requests_run = requests_run
        self._taken = False

    @contextlib.contextmanager
    def __call__(self) -> Iterator[bool]:
        """Yields whether we may measure now."""
        if self._taken or self._requests_run():
            yield False
            return
        self._taken = True
        try:
            yield True
        finally:
            self._taken = False


async def echo(
    frames: AsyncIterator[pb.EchoFrame], turnstile: Turnstile, node_id: str, boot: int
) -> AsyncIterator[pb.EchoAck]:
    """The receiving side of a measurement."""
    first = await anext(aiter(frames), None)
    if first is None or first.WhichOneof("kind") != "start":
        return
    check_hello(first.start.hello, "the peer")
    mine = hello(node_id, boot)
    if not first.start.claim:
        yield pb.EchoAck(ready=pb.EchoReady(hello=mine))
        async for ack in _count(frames):
            yield ack
        return
    with turnstile() as free:
        yield pb.EchoAck(ready=pb.EchoReady(hello=mine, busy=not free))
        if free:
            async for ack in _count(frames):
                yield ack


async def _count(frames: AsyncIterator[pb.EchoFrame]) -> AsyncIterator[pb.EchoAck]:
    total = 0
    began_ns = 0
    async for frame in frames:
        if frame.WhichOneof("kind") == "ping":
            yield pb.EchoAck(pong=frame.ping)
            continue
        now_ns = time.monotonic_ns()
        began_ns = began_ns or now_ns
        total += len(frame.payload)
        yield pb.EchoAck(received=pb.EchoReceived(bytes=total, elapsed_ns=now_ns - began_ns))


# -------------------------------------------------------------------------------------- the sender


async def measure(channel: Any, *, expected_node_id: str, claim: bool) -> Sample:
    """Measure the way over `channel`; raises TryAgain when the other side is busy."""
    call = control(channel).Echo(timeout=TIMEOUT_S)
    try:
        await call.write(
            pb.EchoFrame(start=pb.EchoStart(hello=hello(), expected_node_id=expected_node_id, claim=claim))
        )
        ready = (await _next(call)).ready
        check_hello(ready.hello, "the node")
        if ready.hello.node_id != expected_node_id:
            raise NotFound("the address leads to another node", hint="exo discover --explain says which.")
        if ready.busy:
            raise TryAgain("the node is busy", hint="Try again when its requests are done.")
        round_trips = await _ping(call)
        received = await _push(call)
        await _end(call)
    finally:
        call.cancel()
    return Sample(percentile(round_trips, 0.50), percentile(round_trips, 0.99), rate(received))


async def _end(call: Any) -> None:
    """Leave in order: the other side is free for the next measurement when this returns."""
    with contextlib.suppress(TimeoutError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
        async with asyncio.timeout(END_S):
            await call.done_writing()
            while await call.read() is not grpc.aio.EOF:
                pass


async def _next(call: Any) -> pb.EchoAck:
    try:
        ack = await call.read()
    except grpc.aio.AioRpcError as error:
        raise InputOutput(f"the measuring stream broke: {error.details()}") from error
    if ack is grpc.aio.EOF:
        raise InputOutput("the other side ended the measuring stream")
    assert isinstance(ack, pb.EchoAck)
    return ack


async def _ping(call: Any) -> list[float]:
    """Round trips in microseconds; the first few only warm both sides up."""
    times: list[float] = []
    until = time.monotonic() + PINGS_S
    for number in range(1, PINGS + 6):
        began_ns = time.perf_counter_ns()
        await call.write(pb.EchoFrame(ping=number))
        await _next(call)
        if number > 5:
            times.append((time.perf_counter_ns() - began_ns) / 1000)
        if times and time.monotonic() > until:
            break
    return times


async def _push(call: Any) -> list[Received]:
    """Send for the warm-up and the measuring time; what the receiver counted, in order."""
    received: list[Received] = []
    done = asyncio.Event()

    def measured() -> bool:
        last = received[-1]
        if last.elapsed_ns < WARM_UP_S * 1e9:
            return False
        warm = next(each for each in received if each.elapsed_ns >= WARM_UP_S * 1e9)
        return last.bytes - warm.bytes >= MEASURE_BYTES or last.elapsed_ns >= (WARM_UP_S + MEASURE_S) * 1e9

    async def listen() -> None:
        try:
            while not done.is_set():
                ack = await _next(call)
                received.append(Received(ack.received.bytes, ack.received.elapsed_ns))
                if measured():
                    done.set()
        except ExoError:
            done.set()
            raise

    listener = asyncio.create_task(listen())
    size = FIRST_FRAME_BYTES
    payload = bytes(FRAME_BYTES)
    try:
        async with asyncio.timeout(WARM_UP_S + 4 * MEASURE_S):
            while not done.is_set():
                await call.write(pb.EchoFrame(payload=payload[:size]))
                if len(received) >= 2 and received[-1].elapsed_ns > received[0].elapsed_ns:
                    size = frame_bytes(rate(received))
    except (TimeoutError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
        done.set()
    if listener.done():
        listener.result()
    else:
        with contextlib.suppress(TimeoutError, ExoError):
            await asyncio.wait_for(listener, 0.2)
    return received
