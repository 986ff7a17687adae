"""Both ends of what stages say to each other, on the test's event loop: to a real stage's frame port, or
a port that real stages come to. Knows nothing of what is legal.
"""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from exo_cli.cluster.ports import free_port
from exo_cli.errors import BadData
from exo_cli.shard.links import Door, go_to
from exo_cli.trust.authority import issue_leaf
from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.hello import hello
from exo_cli.wire.pipe import Pipe, PipeEnded, secured, tuned
from exo_cli.wire.tls import client_context

GIVE_UP_S = 20


class PipeStream:
    """A connection to a stage's frame port, greeted: what is said, what comes up, and how it ended."""

    def __init__(self, pipe: Pipe) -> None:
        self.pipe = pipe
        self.came: asyncio.Queue[pb.Up] = asyncio.Queue()
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._read())

    async def send(self, message: pb.Down | bytes) -> None:
        self.pipe.send(message if isinstance(message, bytes) else message.SerializeToString())
        async with asyncio.timeout(GIVE_UP_S):
            while not self.pipe.flush():  # noqa: ASYNC110 - it looks at what the kernel does
                await asyncio.sleep(0.001)

    async def next(self, kind: str) -> Any:
        """The next message, which is of this kind."""
        async with asyncio.timeout(GIVE_UP_S):
            message = await self.came.get()
        assert message.WhichOneof("kind") == kind, message
        return getattr(message, kind)

    async def either(self, *kinds: str) -> str:
        """Which of these kinds the next message is of."""
        async with asyncio.timeout(GIVE_UP_S):
            message = await self.came.get()
        kind = str(message.WhichOneof("kind"))
        assert kind in kinds, message
        return kind

    async def end(self) -> str:
        """Why the stage ended it; what came before is left unread."""
        async with asyncio.timeout(GIVE_UP_S):
            await asyncio.shield(self.ended)
        said = [message.refused for message in iter_queue(self.came) if message.HasField("refused")]
        return next((each.message for each in said if each.request == 0), self.ended.result())

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self.pipe.close()

    async def _read(self) -> None:
        try:
            while True:
                self.came.put_nowait(pb.Up.FromString(await self.pipe.next()))
        except PipeEnded as error:
            self.ended.set_result(error.message)


def iter_queue(queue: "asyncio.Queue[pb.Up]") -> list[pb.Up]:
    found = []
    with suppress(asyncio.QueueEmpty):
        while True:
            found.append(queue.get_nowait())
    return found


@asynccontextmanager
async def beside(
    source: KeyringSource, port: int, stage_id: str, role: "pb.FlowStart.Role"
) -> AsyncIterator[PipeStream]:
    """A greeted connection of its own; beside messages it takes bytes, of any length."""
    leaf = issue_leaf(source.current().primary)
    stream = PipeStream(await go_to((f"127.0.0.1:{port}", stage_id), role, hello(), leaf))
    try:
        yield stream
    finally:
        await stream.close()


async def knock(source: KeyringSource, port: int) -> Pipe:
    """A connection of a member that has not said anything yet."""
    leaf = issue_leaf(source.current().primary)
    sock = socket.create_connection(("127.0.0.1", port))
    return await secured(tuned(sock), client_context(leaf), name=leaf.name)


class Ears:
    """Where real stages bring what they have for us."""

    def __init__(self, stage_id: str) -> None:
        self.came: asyncio.Queue[pb.Down] = asyncio.Queue()
        self.say: asyncio.Queue[pb.Up] = asyncio.Queue()
        self._stage_id = stage_id
        self._tasks: list[asyncio.Task[None]] = []
        self._pipes: list[Pipe] = []

    def greet(self, start: pb.FlowStart) -> pb.FlowReady:
        if start.role == pb.FlowStart.PULSE:
            raise BadData("what is played by hand has no pulse")
        return pb.FlowReady(hello=hello(), stage_id=self._stage_id)

    def admit(self, pipe: Pipe, start: pb.FlowStart) -> None:
        self._pipes.append(pipe)
        self._tasks += [asyncio.create_task(self._hear(pipe)), asyncio.create_task(self._speak(pipe))]

    async def _hear(self, pipe: Pipe) -> None:
        with suppress(PipeEnded):
            while True:
                self.came.put_nowait(pb.Down.FromString(await pipe.next()))

    async def _speak(self, pipe: Pipe) -> None:
        while True:
            pipe.send((await self.say.get()).SerializeToString())

    async def next(self, kind: str) -> Any:
        """The next message, which is of this kind."""
        async with asyncio.timeout(GIVE_UP_S):
            message = await self.came.get()
        assert message.WhichOneof("kind") == kind, message
        return getattr(message, kind)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for pipe in self._pipes:
            pipe.close()


@asynccontextmanager
async def ears(source: KeyringSource, stage_id: str) -> AsyncIterator[tuple[Ears, int]]:
    """Ours, and the port that they listen on."""
    made = Ears(stage_id)
    door = Door([issue_leaf(source.current().primary)], "by-hand", made.greet, made.admit)
    port = free_port()
    door.listen(["127.0.0.1"], port)
    try:
        yield made, port
    finally:
        await door.close()
        await made.close()
