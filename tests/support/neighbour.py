"""The stage before or after a real one, played by hand: it says what stages say, legally or not.

The one before has its half of the model in the test's process and runs it with the engine's own code, so
that what it sends is what a real stage would send, and the tokens that come back are those of the whole
model. The one after computes nothing. Both stand in the request's route and are its driver as well. Knows
nothing of what is illegal.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from exo_cli.drive.load import LoadedStage
from exo_cli.engine import core
from exo_cli.engine.stage import load
from exo_cli.shard import translate
from exo_cli.trust.authority import issue_leaf
from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire import frames
from exo_cli.wire.frames import FrameData
from exo_cli.wire.hello import hello
from tests.support.beside import Ears, PipeStream, beside, ears

GIVE_UP_S = 20
DRIVER = b"a driver of 16 b"
HERE = "by-hand"
"""Our own stage's id."""


class Stream:
    """A driver's flow to a stage: what is written, what came up, and how it ended."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self.came: asyncio.Queue[pb.Up] = asyncio.Queue()
        self.ended: asyncio.Future[grpc.aio.AioRpcError | None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._read())

    async def send(self, message: pb.Down | bytes) -> None:
        async with asyncio.timeout(GIVE_UP_S):
            await self._call.write(message)

    async def next(self, kind: str) -> Any:
        """The next message, which is of this kind."""
        message = await self._message()
        assert message.WhichOneof("kind") == kind, message
        return getattr(message, kind)

    async def _message(self) -> pb.Up:
        """That a prompt goes on is no answer to anything."""
        async with asyncio.timeout(GIVE_UP_S):
            while (message := await self.came.get()).WhichOneof("kind") == "prefilled":
                pass
        return message

    async def either(self, *kinds: str) -> str:
        """Which of these kinds the next message is of."""
        message = await self._message()
        kind = str(message.WhichOneof("kind"))
        assert kind in kinds, message
        return kind

    async def end(self) -> grpc.aio.AioRpcError:
        """The status with which the stage ended it."""
        async with asyncio.timeout(GIVE_UP_S):
            status = await self.ended
        assert status is not None
        return status

    async def close(self) -> None:
        self._call.cancel()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _read(self) -> None:
        status = None
        try:
            while (message := await self._call.read()) is not grpc.aio.EOF:
                self.came.put_nowait(message)
        except grpc.aio.AioRpcError as error:
            status = error
        self.ended.set_result(status)


@asynccontextmanager
async def stream(
    source: KeyringSource, port: int, stage_id: str, *, driver: bytes = b""
) -> AsyncIterator[Stream]:
    """A flow over a connection of its own; beside messages it takes bytes, of any length."""
    leaf = issue_leaf(source.current().primary)
    credentials = grpc.ssl_channel_credentials(leaf.authority_pem, leaf.key_pem, leaf.certificate_pem)
    options = [
        ("grpc.max_send_message_length", -1),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.ssl_target_name_override", leaf.name),
    ]
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
        call: Any = channel.stream_stream(
            "/exo.v1.Stage/Flow", request_serializer=_serialized, response_deserializer=pb.Up.FromString
        )()
        start = pb.FlowStart(hello=hello(), stage_id=stage_id, role=pb.FlowStart.DRIVER, driver=driver)
        await call.write(pb.Down(start=start))
        made = Stream(call)
        try:
            await made.next("ready")
            yield made
        finally:
            await made.close()


def _serialized(said: pb.Down | bytes) -> bytes:
    return said if isinstance(said, bytes) else said.SerializeToString()


@dataclass
class Neighbour:
    """A first stage, and the flows that it has to the last one."""

    stage_id: str
    core: core.StageCore[Any]
    down: PipeStream
    """As the stage before."""
    driver: Stream
    ears: Ears
    route: list[pb.Hop]
    tokens: list[int] = field(default_factory=list)
    """All that came back so far."""
    _due: FrameData | None = None

    def opening(self, request: int, prompt: Sequence[int], n: int, **changes: Any) -> pb.Open:
        """What opens a request at the last stage."""
        usual: dict[str, Any] = {"epoch": 1, "hop": 1, "driver": DRIVER, "route": self.route}
        return pb.Open(request=request, prompt=prompt, max_tokens=n, **{**usual, **changes})

    async def open(self, request: int, prompt: Sequence[int], n: int, **changes: Any) -> None:
        """Open it here and there."""
        message = self.opening(request, prompt, n, **changes)
        effects = self.core.open(translate.open_of(message))
        assert [type(effect) for effect in effects] == [core.OpenDown], effects
        await self.down.send(pb.Down(open=message))
        opened = await self.down.next("opened")
        self.core.opened(opened.request, opened.epoch, opened.prefix)

    def frame(self) -> FrameData:
        """The next legal frame."""
        if self._due is not None:
            due, self._due = self._due, None
            return due
        effects = self.core.poll(time.monotonic())
        while isinstance(effects, float):
            effects = self.core.poll(effects)
        assert effects is not None
        (effect,) = effects
        assert isinstance(effect, core.FrameDown)
        return effect.frame

    def again(self, frame: FrameData) -> None:
        """This legal frame was not sent, and is the next one still."""
        self._due = frame

    async def send(self, frame: FrameData) -> None:
        for message in frames.encode(frame):
            await self.down.send(pb.Down(frame=message))

    async def answer(self) -> pb.Tokens:
        """What the last stage brings back for a step; the driver's copy says the same."""
        back: pb.Tokens = await self.ears.next("tokens")
        if back.rows:
            copy = await self.driver.next("tokens")
            assert [(row.request, row.position, row.id) for row in copy.rows] == [
                (row.request, row.position, row.id) for row in back.rows
            ]
        return back

    async def step(self) -> None:
        """One legal step, from the frame to the token that it gives."""
        await self.send(self.frame())
        self.take(await self.answer())

    def take(self, back: pb.Tokens) -> None:
        """Go on with what came back."""
        self.tokens += [row.id for row in back.rows]
        self.core.tokens_back(translate.tokens_back(back), time.monotonic())

    async def cancel(self, request: int, epoch: int = 1) -> None:
        self.core.cancel(request, epoch)
        await self.down.send(pb.Down(cancel=pb.Cancel(request=request, epoch=epoch)))


@asynccontextmanager
async def neighbour(
    source: KeyringSource, directory: Path, cut: int, layers: int, stage: LoadedStage
) -> AsyncIterator[Neighbour]:
    """The layers before `cut`, and flows to the stage that has the others."""
    made, _ = load(
        str(directory),
        layers=(0, cut),
        layers_in_model=layers,
        memory_bytes=1 << 30,
        progress=lambda doing, done, total: None,
    )
    async with AsyncExitStack() as stack:
        hearing, own = await stack.enter_async_context(ears(source, HERE))
        down = await stack.enter_async_context(
            beside(source, stage.frame_port, stage.stage_id, pb.FlowStart.PREVIOUS)
        )
        driver = await stack.enter_async_context(
            stream(source, stage.data_port, stage.stage_id, driver=DRIVER)
        )
        route = [_hop(own, HERE), _hop(stage.frame_port, stage.stage_id)]
        yield Neighbour(stage.stage_id, made, down, driver, hearing, route)


def _hop(port: int, stage_id: str) -> pb.Hop:
    return pb.Hop(endpoint=f"127.0.0.1:{port}", stage_id=stage_id)


@dataclass
class Follower:
    """The last stage of two, and the driver's and its own flow to the first."""

    driver: Stream
    ears: Ears
    route: list[pb.Hop]
    _up: PipeStream

    async def open(self, request: int, prompt: Sequence[int], n: int) -> None:
        """Open it there, and say yes to it here."""
        message = pb.Open(
            request=request, epoch=1, prompt=prompt, max_tokens=n, driver=DRIVER, route=self.route
        )
        await self.driver.send(pb.Down(open=message))
        await self.ears.next("open")
        self.ears.say.put_nowait(pb.Up(opened=pb.Opened(request=request, epoch=1)))
        await self.driver.next("opened")

    async def next_parts(self) -> tuple[int, list[tuple[int, int, int, int]]]:
        """The next frame's step and rows."""
        frame = await self.ears.next("frame")
        return frame.step, [(each.request, each.epoch, each.position, each.n) for each in frame.parts]

    async def bring(self, step: int, **token: Any) -> None:
        """A token for the first stage."""
        await self._up.send(pb.Down(tokens=pb.Tokens(step=step, rows=[pb.TokenOut(**token)])))


@asynccontextmanager
async def follower(source: KeyringSource, stage: LoadedStage) -> AsyncIterator[Follower]:
    """What comes after this first stage."""
    async with AsyncExitStack() as stack:
        hearing, own = await stack.enter_async_context(ears(source, HERE))
        driver = await stack.enter_async_context(
            stream(source, stage.data_port, stage.stage_id, driver=DRIVER)
        )
        up = await stack.enter_async_context(
            beside(source, stage.frame_port, stage.stage_id, pb.FlowStart.LAST)
        )
        yield Follower(driver, hearing, [_hop(stage.frame_port, stage.stage_id), _hop(own, HERE)], up)
