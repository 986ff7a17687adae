"""One stream from a driver to a stage: opening it, feeding it, and saying why it ended.

Knows nothing of requests, nor of which other stages there are.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import grpc
import grpc.aio

from exo_cli.cluster.pairs import split_endpoint
from exo_cli.errors import BadData, ExoError, Unavailable
from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.channels import dial
from exo_cli.wire.hello import check_hello, hello
from exo_cli.wire.status import error_of
from exo_cli.wire.stubs import stage as stage_stub

DIAL_TIMEOUT_S: Final = 5.0
WAITING_MESSAGES: Final = 16
"""Whoever has more to send waits until the flow has taken some: gRPC's own window decides how fast."""
GONE_HINT: Final = "exo discover shows which nodes are still there; then run the command again."


@dataclass(frozen=True, slots=True)
class StageAddress:
    """One stage of a chain, and the two ways to it."""

    node: str
    """The node's name, for people."""
    stage_id: str
    endpoint: str
    """Where this process reaches its data stream."""
    reached: str
    """Where the stage before it does (the first one: where the last does)."""


class Flow:
    """One stream to a stage. Two tasks own it: a call that is awaited by somebody else dies with them."""

    def __init__(
        self,
        stage: StageAddress,
        driver: bytes,
        take: Callable[[pb.Up], None],
        lost: Callable[[ExoError], None],
    ) -> None:
        self._stage = stage
        self._driver = driver
        self._take = take
        self._lost = lost
        self._channel: grpc.aio.Channel | None = None
        self._call: Any = None
        self._queue: asyncio.Queue[pb.Down] = asyncio.Queue()
        self._drained = asyncio.Event()
        self._ended = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self, source: KeyringSource) -> None:
        """Connect, and hear that it is the stage we mean and speaks our protocol."""
        stage = self._stage
        host, port = split_endpoint(stage.endpoint)
        try:
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                self._channel = await dial(host, port, source.current(), timeout_s=DIAL_TIMEOUT_S)
                self._call = stage_stub(self._channel).Flow()
                start = pb.FlowStart(
                    hello=hello(), stage_id=stage.stage_id, role=pb.FlowStart.DRIVER, driver=self._driver
                )
                await self._call.write(pb.Down(start=start))
                answer = await self._call.read()
        except TimeoutError:
            raise Unavailable(
                f"{stage.node} does not answer within {DIAL_TIMEOUT_S:g} s", hint=GONE_HINT
            ) from None
        except Unavailable as error:
            raise Unavailable(f"{stage.node}: {error.message}", hint=GONE_HINT) from error
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            await self._raise_why(error)
        if answer is grpc.aio.EOF:
            await self._raise_why(None)
        if answer.WhichOneof("kind") != "ready":
            raise BadData(f"{stage.node} began its stream with something else than a greeting")
        check_hello(answer.ready.hello, stage.node)
        if answer.ready.stage_id != stage.stage_id:
            raise BadData(f"{stage.node} answers for the stage {answer.ready.stage_id[:40]!r}")

    def run(self) -> None:
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._write())]

    async def send(self, message: pb.Down) -> None:
        """Send after what waits already, once there is room to wait in."""
        while self._queue.qsize() >= WAITING_MESSAGES and not self._ended.is_set():
            self._drained.clear()
            await self._drained.wait()
        self.send_soon(message)

    def send_soon(self, message: pb.Down) -> None:
        self._queue.put_nowait(message)

    async def close(self) -> None:
        self._ended.set()
        self._drained.set()
        if self._call is not None:
            self._call.cancel()
        for task in self._tasks:
            await ended(task)
        if self._channel is not None:
            await self._channel.close()

    async def _read(self) -> None:
        error: grpc.aio.AioRpcError | None = None
        try:
            while (message := await self._call.read()) is not grpc.aio.EOF:
                self._take(message)
        except grpc.aio.AioRpcError as status:
            error = status
        if not self._ended.is_set():
            self._ended.set()
            self._drained.set()
            self._lost(await self._why(error))

    async def _write(self) -> None:
        # What ended the stream is the reader's to tell.
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while not self._ended.is_set():
                message = await self._queue.get()
                if self._queue.qsize() < WAITING_MESSAGES:
                    self._drained.set()
                await self._call.write(message)

    async def _why(self, error: BaseException | None) -> ExoError:
        """Why the stream ended, in terms of the node."""
        node = self._stage.node
        if not isinstance(error, grpc.aio.AioRpcError) and await self._call.code() is grpc.StatusCode.OK:
            return Unavailable(f"{node} let go of its stage of the model", hint=GONE_HINT)
        if not isinstance(error, grpc.aio.AioRpcError):
            error = grpc.aio.AioRpcError(
                await self._call.code(),
                await self._call.initial_metadata(),
                await self._call.trailing_metadata(),
                details=await self._call.details(),
            )
        found = error_of(error, node)
        if type(found) is Unavailable:
            return Unavailable(
                f"{node} was lost: {error.details() or 'the connection broke'}", hint=GONE_HINT
            )
        return found

    async def _raise_why(self, error: BaseException | None) -> NoReturn:
        raise await self._why(error) from error


async def ended(task: "asyncio.Task[None]") -> None:
    """End a task and wait until it has; what it raised was its own to tell."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()
