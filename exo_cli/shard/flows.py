"""The engine process's streams: flows from drivers and stages in, one to the next stage out.

Lives on the event loop's thread and moves messages between the streams and the engine thread's
inbox. Knows what each message is for, and nothing of what a step computes.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import grpc
import grpc.aio

from exo_cli.engine import core
from exo_cli.engine.core import Effect
from exo_cli.errors import BadData, ExoError, NotFound, TryAgain
from exo_cli.shard import translate
from exo_cli.trust.authority import Leaf
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire import exo_pb2_grpc as glue
from exo_cli.wire import frames
from exo_cli.wire.channels import leaf_channel
from exo_cli.wire.frames import FrameReader
from exo_cli.wire.hello import check_hello, hello
from exo_cli.wire.status import abort

OUTBOX = 4096
"""Messages that may wait for one slow reader; a driver that lets more wait is cut off."""


@dataclass(slots=True)
class _Flow:
    """A stream somebody opened to us."""

    role: int
    driver: bytes
    out: "asyncio.Queue[pb.Up | None]" = field(default_factory=lambda: asyncio.Queue(OUTBOX))

    def send(self, message: pb.Up) -> None:
        try:
            self.out.put_nowait(message)
        except asyncio.QueueFull:
            # It does not read: nobody else waits for it.
            while not self.out.empty():
                self.out.get_nowait()
            self.out.put_nowait(None)


@dataclass(slots=True)
class _Link:
    """A stream we opened: to the next stage, or from the last stage to the first."""

    hop: pb.Hop
    queue: "asyncio.Queue[pb.Down]" = field(default_factory=asyncio.Queue)
    task: "asyncio.Task[None] | None" = None


@dataclass(frozen=True, slots=True)
class StageFacts:
    """Who this stage is."""

    stage_id: str
    node_id: str
    node_name: str
    boot: int
    first: bool
    last: bool


@dataclass(slots=True)
class _Known:
    """Whose request it is and where its messages go."""

    epoch: int
    driver: bytes
    open: pb.Open


class StageFlows:
    """All streams of one stage."""

    def __init__(
        self,
        facts: StageFacts,
        leaves: Sequence[Leaf],
        call: Callable[[Callable[[core.StageCore[Any]], list[Effect]]], None],
    ) -> None:
        self._facts = facts
        self._leaves = leaves
        self._call = call
        self._flows: dict[bytes, list[_Flow]] = {}
        self._previous: _Flow | None = None
        self._links: dict[str, _Link] = {}
        self._known: dict[int, _Known] = {}
        self._chain: tuple[tuple[str, str], ...] = ()

    # -- in --------------------------------------------------------------------------------------

    async def flow(self, messages: AsyncIterator[pb.Down], context: Any) -> AsyncIterator[pb.Up]:
        """Serve one stream until either side ends it."""
        first = await anext(aiter(messages), None)
        if first is None or first.WhichOneof("kind") != "start":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a flow begins with FlowStart")
        start = cast(pb.Down, first).start
        try:
            check_hello(start.hello, "the caller")
            if start.stage_id != self._facts.stage_id:
                raise NotFound(f"stage {start.stage_id} is not loaded here")
        except ExoError as error:
            await abort(context, error)
        flow = _Flow(start.role, bytes(start.driver))
        mine = hello(self._facts.node_id, self._facts.boot)
        yield pb.Up(ready=pb.FlowReady(hello=mine, stage_id=self._facts.stage_id))
        self._join(flow)
        reader = asyncio.create_task(self._read(flow, messages))
        try:
            while (message := await flow.out.get()) is not None:
                yield message
            if not reader.done():
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the reader of this flow is too slow")
            reader.result()
        except ExoError as error:
            await abort(context, error)
        finally:
            reader.cancel()
            self._leave(flow)

    def _join(self, flow: _Flow) -> None:
        if flow.role == pb.FlowStart.DRIVER:
            self._flows.setdefault(flow.driver, []).append(flow)
        elif flow.role == pb.FlowStart.PREVIOUS:
            self._previous = flow

    def _leave(self, flow: _Flow) -> None:
        if flow.role == pb.FlowStart.DRIVER:
            here = self._flows.get(flow.driver, [])
            if flow in here:
                here.remove(flow)
            if not here:
                self._flows.pop(flow.driver, None)
                # Elsewhere the cancel comes down the chain, behind the frames that are on their way.
                if self._facts.first:
                    self._cancel_all(lambda known: known.driver == flow.driver)
        elif flow is self._previous:
            self._previous = None
            self._cancel_all(lambda known: True)

    def _cancel_all(self, which: Callable[[_Known], bool]) -> None:
        """Whoever wanted these requests is gone."""
        for request, known in [(r, k) for r, k in self._known.items() if which(k)]:
            self._cancel(request, known.epoch)

    def _cancel(self, request: int, epoch: int) -> None:
        self._call(lambda stage: stage.cancel(request, epoch))

    async def _read(self, flow: _Flow, messages: AsyncIterator[pb.Down]) -> None:
        reader = FrameReader()
        try:
            async for message in messages:
                self._take(flow, message, reader)
        finally:
            await flow.out.put(None)

    def _take(self, flow: _Flow, message: pb.Down, reader: FrameReader) -> None:
        kind = message.WhichOneof("kind")
        if kind == "open":
            self._open(flow, message.open)
        elif kind == "frame":
            frame = reader.feed(message.frame)
            if frame is not None:
                self._call(lambda stage: _checked(stage, frame))
        elif kind == "tokens":
            back = translate.tokens_back(message.tokens)
            self._call(lambda stage: stage.tokens_back(back, _now()))
        elif kind == "cancel":
            self._cancel(message.cancel.request, message.cancel.epoch)

    def _open(self, flow: _Flow, message: pb.Open) -> None:
        facts = self._facts
        chain = tuple((hop.endpoint, hop.stage_id) for hop in message.route)
        # By stage: two drivers may know one chain by different addresses.
        stages = [stage_id for _, stage_id in chain]
        other = stages != [stage_id for _, stage_id in self._chain]
        busy = bool(self._known) and other
        wrong = not (
            0 <= message.hop < len(chain)
            and chain[message.hop][1] == facts.stage_id
            and (message.hop == 0) == facts.first
            and (message.hop == len(chain) - 1) == facts.last
        )
        if wrong or busy or len(message.prompt) > translate.MAX_PROMPT:
            error: ExoError = TryAgain("this stage works in another chain now; try again when that is done")
            if not busy:
                error = NotFound("the route does not lead through this stage as it is loaded")
            flow.send(
                pb.Up(refused=translate.refused(message.request, message.epoch, error, facts.node_name))
            )
            return
        if other:
            self._call(lambda stage: _in_chain_of(stage, len(chain)))
        if not self._known:
            self._chain = chain
        known = self._known.get(message.request)
        if known is None or known.epoch < message.epoch:
            self._known[message.request] = _Known(message.epoch, bytes(message.driver), message)
        opened = translate.open_of(message)
        self._call(lambda stage: stage.open(opened))

    # -- out -------------------------------------------------------------------------------------

    def deliver(self, effects: Sequence[Effect]) -> None:
        """Send what the core says; called on the event loop."""
        finish = {each.request: each.reason for each in effects if isinstance(each, core.FinishedOut)}
        for effect in effects:
            match effect:
                case core.OpenDown(opened):
                    self._open_down(opened.request)
                case core.FrameDown(frame):
                    for piece in frames.encode(frame):
                        self._next(frame.parts[0].request, pb.Down(frame=piece))
                case core.CancelDown(request, epoch):
                    self._next(request, pb.Down(cancel=pb.Cancel(request=request, epoch=epoch)))
                case core.OpenedUp(request, epoch, prefix):
                    opened_up = pb.Opened(request=request, epoch=epoch, prefix=prefix)
                    self._up(request, pb.Up(opened=opened_up))
                case core.RefusedUp(request, epoch, error):
                    refused = translate.refused(request, epoch, error, self._facts.node_name)
                    self._up(request, pb.Up(refused=refused))
                    self._forget(request, epoch)
                case core.TokensBack(step, tokens, _):
                    back = translate.tokens_out(tokens, finish, step)
                    self._back(pb.Down(tokens=back))
                case core.TokensOut(tokens):
                    self._to_drivers(tokens, finish)
                case core.Closed(request, epoch):
                    self._forget(request, epoch)

    def _forget(self, request: int, epoch: int) -> None:
        known = self._known.get(request)
        if known is not None and known.epoch <= epoch:
            del self._known[request]

    def _up(self, request: int, message: pb.Up) -> None:
        if self._facts.first:
            known = self._known.get(request)
            for flow in self._flows.get(known.driver, [])[:1] if known else []:
                flow.send(message)
        elif self._previous is not None:
            self._previous.send(message)

    def _to_drivers(self, tokens: Sequence[core.Token], finish: dict[int, Any]) -> None:
        by_driver: dict[bytes, list[core.Token]] = {}
        for token in tokens:
            known = self._known.get(token.request)
            if known is not None:
                by_driver.setdefault(known.driver, []).append(token)
        for driver, own in by_driver.items():
            for flow in self._flows.get(driver, [])[-1:]:
                flow.send(pb.Up(tokens=translate.tokens_out(own, finish)))

    def _open_down(self, request: int) -> None:
        known = self._known.get(request)
        if known is None:
            return
        message = pb.Open()
        message.CopyFrom(known.open)
        message.hop += 1
        self._next(request, pb.Down(open=message))

    def _next(self, request: int, message: pb.Down) -> None:
        index = next(i for i, (_, stage_id) in enumerate(self._chain) if stage_id == self._facts.stage_id)
        self._link(index + 1, pb.FlowStart.PREVIOUS).queue.put_nowait(message)

    def _back(self, message: pb.Down) -> None:
        if not self._facts.first:
            self._link(0, pb.FlowStart.LAST).queue.put_nowait(message)

    def _link(self, index: int, role: "pb.FlowStart.Role") -> _Link:
        endpoint, stage_id = self._chain[index]
        link = self._links.get(endpoint + stage_id)
        if link is None or (link.task is not None and link.task.done()):
            link = self._links[endpoint + stage_id] = _Link(pb.Hop(endpoint=endpoint, stage_id=stage_id))
            link.task = asyncio.create_task(self._run_link(link, role))
        return link

    async def _run_link(self, link: _Link, role: "pb.FlowStart.Role") -> None:
        """Carry messages to another stage until it breaks; then nobody can go on."""
        reason = "it ended the stream"
        channel = leaf_channel(link.hop.endpoint, self._leaves[0])
        try:
            call = cast(Any, glue).StageStub(channel).Flow()
            mine = hello(self._facts.node_id, self._facts.boot)
            start = pb.FlowStart(hello=mine, stage_id=link.hop.stage_id, role=role)
            await call.write(pb.Down(start=start))
            writer = asyncio.create_task(_write(call, link.queue))
            try:
                async for message in call:
                    self._answer(message)
            finally:
                writer.cancel()
        except grpc.aio.AioRpcError as error:
            reason = error.details() or str(error.code())
        except ExoError as error:
            reason = error.message
        finally:
            await channel.close()
        self._lost(link, reason)

    def _answer(self, message: pb.Up) -> None:
        kind = message.WhichOneof("kind")
        if kind == "ready":
            check_hello(message.ready.hello, "the next stage")
        elif kind == "opened":
            opened = message.opened
            self._call(lambda stage: stage.opened(opened.request, opened.epoch, opened.prefix))
        elif kind == "refused":
            refused = message.refused
            # Said in the words of the stage that refused, and with its figures.
            self._up(refused.request, message)
            self._forget(refused.request, refused.epoch)
            # Downwards as well: a stage that refuses a step still holds the request.
            self._cancel(refused.request, refused.epoch)
        elif kind == "finished":
            known = self._known.get(message.finished.request)
            if known is not None and known.epoch == message.finished.epoch:
                self._end_early(known, message.finished)

    def _lost(self, link: _Link, reason: str) -> None:
        """A neighbour is gone: every request ends here, and its driver is told."""
        for request, known in list(self._known.items()):
            ended = pb.Finished(
                request=request,
                epoch=known.epoch,
                reason="lost",
                message=f"{self._facts.node_name} lost the stage at {link.hop.endpoint}: {reason}",
            )
            self._end_early(known, ended)

    def _end_early(self, known: _Known, ended: pb.Finished) -> None:
        """Tell the driver, by its own flow here or up the chain, and let go."""
        for flow in self._flows.get(known.driver, [])[:1]:
            flow.send(pb.Up(finished=ended))
        if not self._facts.first and self._previous is not None:
            self._previous.send(pb.Up(finished=ended))
        self._cancel(ended.request, known.epoch)

    async def close(self) -> None:
        for link in self._links.values():
            if link.task is not None:
                link.task.cancel()


def _checked(stage: core.StageCore[Any], frame: frames.FrameData) -> list[Effect]:
    """Run a frame; one that breaks a rule changes nothing and is answered."""
    try:
        return stage.frame(frame, _now())
    except BadData as error:
        # A step out of turn, or a tensor that is not what this cut sends: nothing was computed.
        return [core.RefusedUp(part.request, part.epoch, error) for part in frame.parts]


def _in_chain_of(stage: core.StageCore[Any], stages: int) -> list[Effect]:
    stage.scheduler.stages = stages
    return []


async def _write(call: Any, queue: "asyncio.Queue[pb.Down]") -> None:
    while True:
        await call.write(await queue.get())


def _now() -> float:
    return time.monotonic()
