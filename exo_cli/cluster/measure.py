"""Measuring a link: round trips, then frames as fast as they go, on the stream the product uses.

The sender decides what to send, the receiver's clock times it: what the sender's buffers swallow is
not counted. Frames are 1 MiB; on a link so slow that ten of them would not fit into the time, they
are smaller. Knows nothing of which links there are (`survey` does).
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import grpc.aio

from exo_cli.errors import BadData, InputOutput, NotFound, TryAgain
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.hello import check_hello, hello
from exo_cli.wire.status import translated
from exo_cli.wire.stubs import control

FRAME_BYTES: Final = 1 << 20
FIRST_FRAME_BYTES: Final = 16 << 10
FRAMES_IN_TIME: Final = 12
WARM_UP_S: Final = 0.050
MEASURE_S: Final = 0.300
MEASURE_BYTES: Final = 16 << 20
PINGS: Final = 100
PINGS_S: Final = 0.150
PUSH_S: Final = WARM_UP_S + 4 * MEASURE_S
END_S: Final = 1.0
TIMEOUT_S: Final = 5.0

_WHO: Final = "the other node"


class Busy(TryAgain):
    """A node measures with somebody else, or requests run on it."""


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
    return ordered[min(len(ordered) - 1, max(0, -(-round(share * 1000) * len(ordered) // 1000) - 1))]


def rate(received: list[Received], *, warm_up_ns: int = int(WARM_UP_S * 1e9)) -> float:
    """Bytes per second after the warm-up, by the receiver's clock."""
    found = _rate(received, warm_up_ns)
    if found is None:
        raise InputOutput("the link is too slow to be measured", hint="Look for errors on it: ip -s link")
    return found


def _rate(received: list[Received], warm_up_ns: int) -> float | None:
    after = [each for each in received if each.elapsed_ns >= warm_up_ns]
    # A link so slow that the warm-up swallowed it: everything counts from the first frame on.
    for counts in (after, received):
        if len(counts) >= 2 and counts[-1].elapsed_ns > counts[0].elapsed_ns:
            return (counts[-1].bytes - counts[0].bytes) / (counts[-1].elapsed_ns - counts[0].elapsed_ns) * 1e9
    return None


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
) -> AsyncGenerator[pb.EchoAck, None]:
    """The receiving side of a measurement."""
    first = await anext(aiter(frames), None)
    if first is None:
        return
    if first.WhichOneof("kind") != "start":
        raise BadData("a measuring stream begins with its start")
    check_hello(first.start.hello, "the caller")
    mine = hello(node_id, boot)
    if first.start.expected_node_id not in ("", node_id):
        # It looks for somebody else, and sees from our hello that it has to go on.
        yield pb.EchoAck(ready=pb.EchoReady(hello=mine))
        return
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
    """Measure the way over `channel`; raises Busy when the other side is."""
    call = control(channel).Echo(timeout=TIMEOUT_S)
    try:
        with translated(_WHO):
            await _greet(call, expected_node_id, claim)
            round_trips = await _ping(call)
            received = await _push(call)
    finally:
        call.cancel()
    return Sample(percentile(round_trips, 0.50), percentile(round_trips, 0.99), rate(received))


async def _greet(call: Any, expected_node_id: str, claim: bool) -> None:
    start = pb.EchoStart(hello=hello(), expected_node_id=expected_node_id, claim=claim)
    ready = (await _ask(call, pb.EchoFrame(start=start))).ready
    check_hello(ready.hello, _WHO)
    if ready.hello.node_id != expected_node_id:
        raise NotFound("the address leads to another node", hint="exo discover --explain says which.")
    if ready.busy:
        raise Busy("the node is busy", hint="Try again when its requests are done.")


async def _ask(call: Any, frame: pb.EchoFrame) -> pb.EchoAck:
    # A call that is over refuses to write; reading says why it is over.
    with contextlib.suppress(asyncio.InvalidStateError):
        await call.write(frame)
    ack = await call.read()
    if ack is grpc.aio.EOF:
        raise _ended()
    assert isinstance(ack, pb.EchoAck)
    return ack


def _ended() -> InputOutput:
    return InputOutput("the other node ended the measuring stream", hint="Is it about to stop? Try again.")


async def _ping(call: Any) -> list[float]:
    """Round trips in microseconds; the first few only warm both sides up."""
    times: list[float] = []
    until = time.monotonic() + PINGS_S
    for number in range(1, PINGS + 6):
        began_ns = time.perf_counter_ns()
        ack = await _ask(call, pb.EchoFrame(ping=number))
        if ack.pong != number:
            raise BadData("the other node does not answer what it is asked")
        if number > 5:
            times.append((time.perf_counter_ns() - began_ns) / 1000)
        if times and time.monotonic() > until:
            break
    return times


async def _push(call: Any) -> list[Received]:
    """Send for the warm-up and the measuring time; what the receiver counted, in order.

    Leaves in order where the link allows it: the other side is free for the next one when this returns.
    """
    received: list[Received] = []
    enough = asyncio.Event()
    sent_bytes = 0

    async def send() -> None:
        nonlocal sent_bytes
        size, payload = FIRST_FRAME_BYTES, bytes(FRAME_BYTES)
        # Why a call is over, the listener says.
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while not enough.is_set():
                sent_bytes += size
                await call.write(pb.EchoFrame(payload=payload[:size]))
                so_far = _rate(received, int(WARM_UP_S * 1e9))
                if so_far is not None:
                    size = frame_bytes(so_far)
            await call.done_writing()

    async def listen() -> None:
        try:
            while (ack := await call.read()) is not grpc.aio.EOF:
                received.append(_next_count(ack, received, sent_bytes))
                if _measured(received):
                    enough.set()
            if not enough.is_set():
                raise _ended()
        finally:
            enough.set()

    sender, listener = asyncio.create_task(send()), asyncio.create_task(listen())
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PUSH_S):
                await enough.wait()
        enough.set()
        await asyncio.wait((sender, listener), timeout=END_S)
    finally:
        # Ends the call, where a link so slow has not carried yet what was sent.
        sender.cancel()
        listener.cancel()
        await asyncio.wait((sender, listener))
    if not listener.cancelled():
        listener.result()
    return received


def _next_count(ack: pb.EchoAck, before: list[Received], sent_bytes: int) -> Received:
    count = Received(ack.received.bytes, ack.received.elapsed_ns)
    last = before[-1] if before else Received(0, 0)
    if not (last.bytes < count.bytes <= sent_bytes and last.elapsed_ns <= count.elapsed_ns):
        raise BadData("the other node miscounts what it receives")
    return count


def _measured(received: list[Received]) -> bool:
    last = received[-1]
    if last.elapsed_ns < WARM_UP_S * 1e9:
        return False
    warm = next(each for each in received if each.elapsed_ns >= WARM_UP_S * 1e9)
    return last.bytes - warm.bytes >= MEASURE_BYTES or last.elapsed_ns >= (WARM_UP_S + MEASURE_S) * 1e9
