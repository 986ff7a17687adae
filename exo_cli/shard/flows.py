"""The engine process's streams from drivers and other stages, and what each message on them means.

Lives on the event loop's thread and moves messages between the streams and the engine thread's
inbox. Knows what each message is for, and nothing of what a step computes.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, cast

import grpc
import grpc.aio

from exo_cli.engine import core
from exo_cli.engine.core import Effect
from exo_cli.errors import BadData, ExoError, NotFound, TryAgain
from exo_cli.shard import translate
from exo_cli.shard.links import Address, Links
from exo_cli.shard.outbox import Outbox
from exo_cli.trust.authority import Leaf
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire import frames
from exo_cli.wire.frames import FrameReader, FrameRefused
from exo_cli.wire.hello import check_hello, hello
from exo_cli.wire.status import abort

OUTBOX_BYTES: Final = 4 << 20
"""What may wait for one slow reader, a driver or the stage before; more, and it is cut off."""
BACKLOG: Final = 256
"""Messages that may wait for the engine; then streams are read no further, and who sends has to wait."""
BACKLOG_LOOK_S: Final = 0.002


class Timer(Protocol):
    """Something that will be done unless it is called off."""

    def cancel(self) -> None: ...


@dataclass(slots=True)
class _Flow:
    """A stream somebody opened to us."""

    role: int
    driver: bytes
    cut_off: Callable[["_Flow"], None]
    """Called once, when too much waits for it."""
    out: Outbox[pb.Up] = field(default_factory=lambda: Outbox(OUTBOX_BYTES))

    def send(self, message: pb.Up) -> None:
        before = self.out.overflowed
        self.out.put(message)
        if self.out.overflowed and not before:
            self.cut_off(self)


@dataclass(frozen=True, slots=True)
class StageFacts:
    """Who this stage is."""

    stage_id: str
    node_id: str
    node_name: str
    boot: int
    first: bool
    last: bool
    reach: translate.Reach = field(default_factory=translate.Reach)


@dataclass(slots=True)
class _Known:
    """Whose request it is and where its messages go."""

    epoch: int
    driver: bytes
    open: pb.Open
    flow: _Flow
    """The one that its Open came by: answers go up there, and with it the request ends."""
    deadline: "Timer | None" = None

    def forget_deadline(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()


class StageFlows:
    """All streams of one stage."""

    def __init__(
        self,
        facts: StageFacts,
        leaf: Leaf,
        call: Callable[[Callable[[core.StageCore[Any]], list[Effect]]], None],
        backlog: Callable[[], int] = lambda: 0,
        later: "Callable[[float, Callable[[], None]], Timer] | None" = None,
    ) -> None:
        self._facts = facts
        self._call = call
        self._backlog = backlog
        self._later = later or (lambda s, then: asyncio.get_running_loop().call_later(s, then))
        self._flows: dict[bytes, list[_Flow]] = {}
        self._links = Links(hello(facts.node_id, facts.boot), leaf, self._answer, self._lost)
        self._known: dict[int, _Known] = {}
        self._chain: tuple[Address, ...] = ()
        self.leaving = False

    @property
    def requests(self) -> int:
        """Those that were taken and are not over, whether the engine knows of them yet or not."""
        return len(self._known)

    def leave(self) -> None:
        """Take no new request from now on; those that are here go on."""
        self.leaving = True

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
            self._check_role(start.role)
        except ExoError as error:
            await abort(context, error)
        flow = _Flow(start.role, bytes(start.driver), self._cut_off)
        mine = hello(self._facts.node_id, self._facts.boot)
        yield pb.Up(ready=pb.FlowReady(hello=mine, stage_id=self._facts.stage_id))
        self._join(flow)
        reader = asyncio.create_task(self._read(flow, messages))
        try:
            while (message := await flow.out.get()) is not None:
                yield message
            if flow.out.overflowed:
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the reader of this flow is too slow")
            reader.result()
        except ExoError as error:
            await abort(context, error)
        finally:
            reader.cancel()
            self._leave(flow)

    def _check_role(self, role: int) -> None:
        """A first stage has none before it, and no other stage is brought tokens."""
        first = self._facts.first
        known = (pb.FlowStart.DRIVER, pb.FlowStart.LAST if first else pb.FlowStart.PREVIOUS)
        if role not in known:
            where = "the first stage" if first else "a stage that is not the first"
            raise BadData(f"a flow of role {role} is none for {where}")

    def _check_kind(self, flow: _Flow, kind: str | None) -> None:
        """Who may say what here."""
        allowed: dict[int, tuple[str, ...]] = {
            pb.FlowStart.DRIVER: ("open", "cancel") if self._facts.first else (),
            pb.FlowStart.PREVIOUS: ("open", "frame", "cancel"),
            pb.FlowStart.LAST: ("tokens",),
        }
        if kind not in allowed[flow.role]:
            raise BadData(f"a message of kind {kind} does not belong on this flow")

    def _join(self, flow: _Flow) -> None:
        if flow.role == pb.FlowStart.DRIVER:
            self._flows.setdefault(flow.driver, []).append(flow)

    def _leave(self, flow: _Flow) -> None:
        if flow.role == pb.FlowStart.DRIVER:
            here = self._flows.get(flow.driver, [])
            if flow in here:
                here.remove(flow)
            if not here:
                self._flows.pop(flow.driver, None)
        # Of a driver that goes the later stages hear down the chain, behind the frames on their way.
        self._cancel_all(lambda known: known.flow is flow)

    def _cut_off(self, flow: _Flow) -> None:
        """It does not read, and its stream may hang for long: what it wanted ends now, elsewhere too."""
        if flow.role == pb.FlowStart.DRIVER:
            for request, known in list(self._known.items()):
                if known.driver == flow.driver:
                    text = "its driver does not read the tokens"
                    ended = pb.Finished(request=request, epoch=known.epoch, reason="lost", message=text)
                    self._end_early(known, ended)
        self._leave(flow)

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
                if flow.out.overflowed:
                    return
                while self._backlog() > BACKLOG:  # noqa: ASYNC110 - another thread takes from it
                    await asyncio.sleep(BACKLOG_LOOK_S)
        finally:
            flow.out.close()

    def _take(self, flow: _Flow, message: pb.Down, reader: FrameReader) -> None:
        kind = message.WhichOneof("kind")
        self._check_kind(flow, kind)
        if kind == "open":
            self._open(flow, message.open)
        elif kind == "frame":
            self._frame(flow, message.frame, reader)
        elif kind == "tokens":
            back = translate.tokens_back(message.tokens)
            self._call(lambda stage: stage.tokens_back(back, _now()))
        elif kind == "cancel":
            self._cancel(message.cancel.request, message.cancel.epoch)

    def _frame(self, flow: _Flow, message: pb.Frame, reader: FrameReader) -> None:
        try:
            frame = reader.feed(message)
        except FrameRefused as error:
            if not message.parts:
                raise
            self._refuse_parts(flow, message.parts[: frames.MAX_PARTS], error)
            return
        if frame is None:
            return
        unknown = next((part.request for part in frame.parts if part.request not in self._known), None)
        if unknown is not None:
            self._refuse_parts(flow, frame.parts, BadData(f"request {unknown} is not open here"))
            return
        self._call(lambda stage: _checked(stage, frame))

    def _refuse_parts(self, flow: _Flow, parts: Sequence[pb.Part | frames.Part], error: BadData) -> None:
        """The requests that a frame names are told; its stream and all others go on."""
        for part in parts:
            refused = translate.refused(part.request, part.epoch, error, self._facts.node_name)
            flow.send(pb.Up(refused=refused))

    def _open(self, flow: _Flow, message: pb.Open) -> None:
        chain = tuple((hop.endpoint, hop.stage_id) for hop in message.route)
        # By stage: two drivers may know one chain by different addresses.
        other = [stage_id for _, stage_id in chain] != [stage_id for _, stage_id in self._chain]
        error = self._objection(message, chain, other)
        if error is not None:
            said = translate.refused(message.request, message.epoch, error, self._facts.node_name)
            flow.send(pb.Up(refused=said))
            return
        if other:
            self._call(lambda stage: _in_chain_of(stage, len(chain)))
        if not self._known:
            self._chain = chain
        self._remember(flow, message)
        opened = translate.open_of(message)
        self._call(lambda stage: stage.open(opened))

    def _objection(self, message: pb.Open, chain: Sequence[Address], other: bool) -> ExoError | None:
        """Why this stage does not take a request; what it costs is the core's to say."""
        facts, hop = self._facts, message.hop
        if self._known and other:
            return TryAgain("this stage works in another chain now; try again when that is done")
        if not (
            0 <= hop < len(chain)
            and chain[hop][1] == facts.stage_id
            and (hop == 0) == facts.first
            and (hop == len(chain) - 1) == facts.last
        ):
            return NotFound("the route does not lead through this stage as it is loaded")
        known = self._known.get(message.request)
        if self.leaving and known is None:
            return TryAgain("this node is leaving and takes no new requests")
        if known is not None and message.epoch <= known.epoch:
            return BadData(f"request {message.request} is open already, and not in an older epoch")
        return translate.objection(message, facts.reach)

    def _remember(self, flow: _Flow, message: pb.Open) -> None:
        older = self._known.get(message.request)
        if older is not None:
            older.forget_deadline()
        known = self._known[message.request] = _Known(message.epoch, bytes(message.driver), message, flow)
        if message.deadline_ms:
            known.deadline = self._later(
                message.deadline_ms / 1000, lambda: self._is_late(message.request, known)
            )

    def _is_late(self, request: int, known: _Known) -> None:
        """Its time is over, whatever it waits for: every stage looks at its own clock."""
        if self._known.get(request) is known:
            text = f"the request was not done within {known.open.deadline_ms} ms"
            ended = pb.Finished(request=request, epoch=known.epoch, reason="deadline", message=text)
            self._end_early(known, ended)

    # -- out -------------------------------------------------------------------------------------

    def deliver(self, effects: Sequence[Effect]) -> None:
        """Send what the core says; called on the event loop."""
        finish = {each.request: each.reason for each in effects if isinstance(each, core.FinishedOut)}
        for effect in effects:
            match effect:
                case core.OpenDown(opened):
                    self._open_down(opened.request)
                case core.FrameDown(frame):
                    pieces = frames.encode(frame)
                    size = (len(frame.tensor.data) if frame.tensor else 0) // len(pieces)
                    for piece in pieces:
                        self._next(pb.Down(frame=piece), size)
                case core.CancelDown(request, epoch):
                    self._next(pb.Down(cancel=pb.Cancel(request=request, epoch=epoch)))
                case core.OpenedUp(request, epoch, prefix, chunk):
                    opened_up = pb.Opened(request=request, epoch=epoch, prefix=prefix, chunk_tokens=chunk)
                    self._up(request, pb.Up(opened=opened_up))
                case core.PrefilledUp(request, epoch, position):
                    done = pb.Prefilled(request=request, epoch=epoch, position=position)
                    self._up(request, pb.Up(prefilled=done))
                case core.RefusedUp(request, epoch, error):
                    refused = translate.refused(request, epoch, error, self._facts.node_name)
                    self._up(request, pb.Up(refused=refused))
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
            known.forget_deadline()
            del self._known[request]

    def _up(self, request: int, message: pb.Up) -> None:
        known = self._known.get(request)
        if known is not None:
            known.flow.send(message)

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
        self._next(pb.Down(open=message))

    def _next(self, message: pb.Down, size: int | None = None) -> None:
        index = next(i for i, (_, stage_id) in enumerate(self._chain) if stage_id == self._facts.stage_id)
        self._links.send(self._chain[index + 1], pb.FlowStart.PREVIOUS, message, size)

    def _back(self, message: pb.Down) -> None:
        if not self._facts.first:
            self._links.send(self._chain[0], pb.FlowStart.LAST, message)

    def _answer(self, message: pb.Up) -> None:
        kind = message.WhichOneof("kind")
        if kind == "ready":
            check_hello(message.ready.hello, "the next stage")
        elif kind == "opened":
            opened = message.opened
            told = opened.request, opened.epoch, opened.prefix, opened.chunk_tokens
            self._call(lambda stage: stage.opened(*told))
        elif kind == "refused":
            refused = message.refused
            # Said in the words of the stage that refused, and with its figures.
            self._up(refused.request, message)
            # Downwards as well: a stage that refuses a step still holds the request. It counts as ours until
            # then, or another chain could begin here and that word go the wrong way.
            self._cancel(refused.request, refused.epoch)
        elif kind == "finished":
            known = self._known.get(message.finished.request)
            if known is not None and known.epoch == message.finished.epoch:
                self._end_early(known, message.finished)

    def _lost(self, stage: Address, reason: str) -> None:
        """A neighbour is gone: every request ends here, and its driver is told."""
        if stage not in self._chain:
            return  # of a chain that is no more
        for request, known in list(self._known.items()):
            ended = pb.Finished(
                request=request,
                epoch=known.epoch,
                reason="lost",
                message=f"{self._facts.node_name} lost the stage at {stage[0]}: {reason}",
            )
            self._end_early(known, ended)

    def _end_early(self, known: _Known, ended: pb.Finished) -> None:
        """Tell the driver, by its own flow here or up the chain, and let go."""
        for flow in self._flows.get(known.driver, [])[-1:]:
            flow.send(pb.Up(finished=ended))
        if not self._facts.first:
            known.flow.send(pb.Up(finished=ended))
        self._cancel(ended.request, known.epoch)

    def close(self) -> None:
        self._links.close()


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


def _now() -> float:
    return time.monotonic()
