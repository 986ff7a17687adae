"""The requests of one stage: whose they are, which way their messages go, and when they are over.

Lives on the event loop's thread. Drivers come in by gRPC; what other stages say comes from the engine
thread's ring, which keeps frames and tokens to itself. Knows what each message is for, and nothing of
what a step computes.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, cast

import grpc
import grpc.aio

from exo_cli.engine import core
from exo_cli.engine.core import Effect
from exo_cli.errors import BadData, ExoError, NotFound, TryAgain
from exo_cli.shard import translate
from exo_cli.shard.outbox import Outbox
from exo_cli.shard.ring import Address
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.hello import check_hello, hello
from exo_cli.wire.pipe import Pipe
from exo_cli.wire.status import abort

OUTBOX_BYTES: Final = 4 << 20
"""What may wait for one slow driver; more, and it is cut off."""
BACKLOG: Final = 256
"""Messages that may wait for the engine; then streams are read no further, and who sends has to wait."""
BACKLOG_LOOK_S: Final = 0.002


class Timer(Protocol):
    """Something that will be done unless it is called off."""

    def cancel(self) -> None: ...


class Beside(Protocol):
    """The stage's ring, as this thread sees it: the engine's thread does it, in this order."""

    def lead(self, chain: Sequence[Address], at: int) -> None: ...

    def send(self, to: Address, role: int, message: pb.Down) -> None: ...

    def say(self, pipe: Pipe, message: pb.Up) -> None: ...

    def trace(self, on: bool) -> None: ...


class _Way(Protocol):
    """Whoever opened a request, and hears of it."""

    def send(self, message: pb.Up) -> None: ...


@dataclass(frozen=True, slots=True)
class _Neighbour:
    """The stage before us."""

    pipe: Pipe
    ring: Beside

    def send(self, message: pb.Up) -> None:
        self.ring.say(self.pipe, message)


@dataclass(slots=True)
class _Flow:
    """A driver's stream to us."""

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
    flow: _Way
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
        ring: Beside,
        call: Callable[[Callable[[core.StageCore[Any]], list[Effect]]], None],
        backlog: Callable[[], int] = lambda: 0,
        later: "Callable[[float, Callable[[], None]], Timer] | None" = None,
    ) -> None:
        self._facts = facts
        self._ring = ring
        self._call = call
        self._backlog = backlog
        self._later = later or (lambda s, then: asyncio.get_running_loop().call_later(s, then))
        self._flows: dict[bytes, list[_Flow]] = {}
        self._known: dict[int, _Known] = {}
        self._before: dict[Pipe, _Neighbour] = {}
        self._chain: tuple[Address, ...] = ()
        self._watchers: set[bytes] = set()
        """Drivers that want to be told of every step."""
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
        """Serve one driver's stream until either side ends it."""
        first = await anext(aiter(messages), None)
        if first is None or first.WhichOneof("kind") != "start":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a flow begins with FlowStart")
        start = cast(pb.Down, first).start
        try:
            self.check(start, (pb.FlowStart.DRIVER,))
        except ExoError as error:
            await abort(context, error)
        flow = _Flow(bytes(start.driver), self._cut_off)
        yield pb.Up(ready=self.greeting)
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

    @property
    def greeting(self) -> pb.FlowReady:
        """What whoever comes to us hears first."""
        mine = hello(self._facts.node_id, self._facts.boot)
        return pb.FlowReady(hello=mine, stage_id=self._facts.stage_id)

    def greet(self, start: pb.FlowStart) -> pb.FlowReady:
        """Another stage comes; it is let in, or the reason is raised."""
        # A first stage has none before it, and no other stage is brought tokens.
        before = (pb.FlowStart.PREVIOUS, pb.FlowStart.PULSE)
        self.check(start, (pb.FlowStart.LAST,) if self._facts.first else before)
        return self.greeting

    def check(self, start: pb.FlowStart, roles: Sequence[int]) -> None:
        """Whether it is meant for us."""
        check_hello(start.hello, "the caller")
        if start.stage_id != self._facts.stage_id:
            raise NotFound(f"stage {start.stage_id} is not loaded here")
        if start.role not in roles:
            where = "the first stage" if self._facts.first else "a stage that is not the first"
            raise BadData(f"a flow of role {start.role} is none for {where}")

    def _join(self, flow: _Flow) -> None:
        self._flows.setdefault(flow.driver, []).append(flow)

    def _leave(self, flow: _Flow) -> None:
        here = self._flows.get(flow.driver, [])
        if flow in here:
            here.remove(flow)
        if not here:
            self._flows.pop(flow.driver, None)
            self._watchers.discard(flow.driver)
        # Of a driver that goes the later stages hear down the chain, behind the frames on their way.
        self._cancel_all(lambda known: known.flow is flow)

    def _cut_off(self, flow: _Flow) -> None:
        """It does not read, and its stream may hang for long: what it wanted ends now, elsewhere too."""
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
        allowed = ("open", "cancel") if self._facts.first else ()
        try:
            async for message in messages:
                kind = message.WhichOneof("kind")
                if kind not in allowed:
                    raise BadData(f"a message of kind {kind} does not belong on this flow")
                self._take(flow, message)
                if flow.out.overflowed:
                    return
                while self._backlog() > BACKLOG:  # noqa: ASYNC110 - another thread takes from it
                    await asyncio.sleep(BACKLOG_LOOK_S)
        finally:
            flow.out.close()

    def _take(self, way: _Way, message: pb.Down) -> None:
        if message.WhichOneof("kind") == "open":
            self._open(way, message.open)
        else:
            self._cancel(message.cancel.request, message.cancel.epoch)

    # -- from the ring ---------------------------------------------------------------------------

    def take(self, pipe: Pipe, message: pb.Down) -> None:
        """The stage before opens or cancels a request."""
        way = self._before.setdefault(pipe, _Neighbour(pipe, self._ring))
        self._take(way, message)

    def left(self, pipe: Pipe) -> None:
        """The stage before is gone, and with it what it brought."""
        way = self._before.pop(pipe, None)
        if way is not None:
            self._cancel_all(lambda known: known.flow is way)

    def traced(self, traces: Sequence[pb.Trace]) -> None:
        """Steps of ours or of a later stage, for the drivers that want to know."""
        for trace in traces:
            message = pb.Up(trace=trace)
            for driver in self._watchers:
                for flow in self._flows.get(driver, [])[-1:]:
                    flow.send(message)
            for way in self._before.values():
                way.send(message)

    def _open(self, flow: _Way, message: pb.Open) -> None:
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
            self._ring.lead(chain, message.hop)
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

    def _remember(self, flow: _Way, message: pb.Open) -> None:
        if message.trace:
            self._ring.trace(True)
            if self._facts.first:
                self._watchers.add(bytes(message.driver))
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
        """Send what the core says, but for what the ring has sent already."""
        finish = core.reasons(effects)
        for effect in effects:
            match effect:
                case core.OpenDown(opened):
                    self._open_down(opened.request)
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
                case core.TokensOut(tokens):
                    self._to_drivers(tokens, finish)
                case core.Closed(request, epoch):
                    self._forget(request, epoch)

    def _forget(self, request: int, epoch: int) -> None:
        known = self._known.get(request)
        if known is not None and known.epoch <= epoch:
            known.forget_deadline()
            del self._known[request]
            if known.open.trace and not any(each.open.trace for each in self._known.values()):
                self._ring.trace(False)

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

    def _next(self, message: pb.Down) -> None:
        index = next(i for i, (_, stage_id) in enumerate(self._chain) if stage_id == self._facts.stage_id)
        self._ring.send(self._chain[index + 1], pb.FlowStart.PREVIOUS, message)

    def answer(self, message: pb.Up) -> None:
        """What the stages after us say."""
        kind = message.WhichOneof("kind")
        if kind == "opened":
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
        elif kind == "trace":
            self.traced([message.trace])

    def lost(self, stage: Address, reason: str) -> None:
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
        self._call(lambda stage: stage.end_early(ended.request, known.epoch))


def _in_chain_of(stage: core.StageCore[Any], stages: int) -> list[Effect]:
    stage.scheduler.stages = stages
    return []
