"""A stage's connections to its neighbours, as the engine's thread has them: frames and tokens go straight
from one stage's thread to the next one's, and all else is handed to the event loop's.

What is said to a neighbour goes through here in one order, whatever it is. Knows nothing of drivers, nor
of how a connection is made.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from google.protobuf.message import DecodeError

from exo_cli.engine import core
from exo_cli.engine.core import Effect, StageCore
from exo_cli.errors import BadData
from exo_cli.shard import translate
from exo_cli.shard.inbox import Inbox
from exo_cli.shard.trace import Tracer
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire import frames
from exo_cli.wire.frames import FrameReader, FrameRefused
from exo_cli.wire.pipe import Pipe, PipeEnded

LINK_BYTES: Final = 2 * frames.MAX_FRAME_BYTES
"""What may wait for a stage that does not read: the largest frame, and some."""
ANSWER_BYTES: Final = 4 << 20
"""The same for the stage before, to which only answers go."""
BACKLOG: Final = 256
"""What may be said at once to the event loop's thread without looking whether it takes it."""
CATCH_UP_S: Final = 1.0
SOAK_FROM_BYTES: Final = 256 << 10
"""Frames of this size take a while: what is sent behind them does not wait for us to be done."""

Address = tuple[str, str]
"""Where a stage is reached, and its id."""
Call = Callable[[StageCore[Any]], list[Effect]]
_ALLOWED: Final[dict[int, tuple[str, ...]]] = {
    pb.FlowStart.PREVIOUS: ("open", "frame", "cancel"),
    pb.FlowStart.LAST: ("tokens",),
}


class Owner(Protocol):
    """Who makes connections and knows the requests; called on the event loop's thread."""

    def connect(self, to: Address, role: int) -> None:
        """Something waits to be sent there."""

    def lost(self, to: Address, reason: str) -> None:
        """A stage that we send to is gone, with what was sent."""

    def left(self, pipe: Pipe) -> None:
        """A stage that sends to us is gone."""

    def take(self, pipe: Pipe, message: pb.Down) -> None:
        """What a stage says that is neither a frame nor tokens."""

    def answer(self, message: pb.Up) -> None:
        """What comes back from a stage that we send to."""

    def traced(self, traces: Sequence[pb.Trace]) -> None:
        """Steps of ours, for whoever asked for them."""

    def soak(self, pipe: Pipe) -> None:
        """We compute and do not read for a while."""

    def done_with(self, pipe: Pipe) -> None:
        """Nobody reads or writes it any more."""


@dataclass(slots=True)
class _Out:
    """A way to another stage. Until it is connected what is to be sent waits here."""

    to: Address
    pipe: Pipe | None = None
    waiting: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class _In:
    """A neighbour that came to us."""

    role: int
    reader: FrameReader = field(default_factory=FrameReader)


class Ring:
    """For the engine's thread alone; `post` has something done on the event loop's."""

    def __init__(
        self, owner: Owner, post: Callable[..., object], *, node_name: str, stage_id: str, first: bool
    ) -> None:
        self.inbox: Inbox[Call, Pipe] = Inbox()
        self.tracer = Tracer(stage_id, first=first)
        self._owner = owner
        self._post = post
        self._node_name = node_name
        self._first = first
        self._out: dict[Address, _Out] = {}
        self._pipes: dict[Pipe, _Out | _In] = {}
        self._unheard: list[Pipe] = []
        """Of these there is something to hear of which their sockets do not tell."""
        self._next: Address | None = None
        self._begin: Address | None = None
        self._ended = False

    # -- who is beside us --------------------------------------------------------------------------

    def lead(self, chain: Sequence[Address], at: int) -> None:
        """We are the stage `at` of this chain."""
        self._begin = chain[0]
        self._next = chain[at + 1] if at + 1 < len(chain) else None

    def attach(self, to: Address, pipe: Pipe) -> None:
        """The way there is open: what waited goes first."""
        link = self._out.get(to)
        if link is None or link.pipe is not None:
            # Given up meanwhile, and maybe gone to once more.
            self._post(self._owner.done_with, pipe)
            return
        link.pipe = pipe
        self._watch(pipe, link)
        for data in link.waiting:
            pipe.send(data)
        link.waiting = []

    def end(self) -> None:
        """Let go of every connection, and of those that come after this."""
        self._ended = True
        for pipe in list(self._pipes):
            self._forget(pipe)
        self._out.clear()

    def miss(self, to: Address, reason: str) -> None:
        """There is no way there."""
        if self._out.pop(to, None) is not None:
            self._post(self._owner.lost, to, reason)

    def admit(self, pipe: Pipe, role: int) -> None:
        """A neighbour came, and was greeted."""
        self._watch(pipe, _In(role))

    def _watch(self, pipe: Pipe, whose: "_Out | _In") -> None:
        if self._ended:
            self._post(self._owner.done_with, pipe)
            return
        self._pipes[pipe] = whose
        self.inbox.watch(pipe)
        # What came with the greeting will not show as something to read.
        self._unheard.append(pipe)

    def drop(self, pipe: Pipe, reason: str) -> None:
        """It is of no use any more; whose it was is told."""
        whose = self._forget(pipe)
        if isinstance(whose, _In):
            self._post(self._owner.left, pipe)
        elif whose is not None and self._out.get(whose.to) is whose:
            del self._out[whose.to]
            self._post(self._owner.lost, whose.to, reason)

    def _forget(self, pipe: Pipe) -> "_Out | _In | None":
        """Nobody reads it any more, and its descriptor is closed."""
        whose = self._pipes.pop(pipe, None)
        if whose is not None:
            self.inbox.forget(pipe)
            self._post(self._owner.done_with, pipe)
        return whose

    def trace(self, on: bool) -> None:
        """Tell of every step from now on, or of none."""
        if not on:
            self._tell(all_of_them=True)
        self.tracer.switch(on)

    def _tell(self, *, all_of_them: bool = False) -> None:
        traces = self.tracer.take(all_of_them=all_of_them)
        if traces:
            self._post(self._owner.traced, traces)

    # -- out ---------------------------------------------------------------------------------------

    def send(self, to: Address, role: int, message: pb.Down) -> None:
        """Send after what was sent before; one that does not read is given up."""
        self._send(to, role, message.SerializeToString())

    def _send(self, to: Address, role: int, data: bytes) -> int:
        """How much went, or waits to go."""
        if self._ended:
            return 0
        link = self._out.get(to)
        if link is None:
            link = self._out[to] = _Out(to)
            self._post(self._owner.connect, to, role)
        if link.pipe is None:
            link.waiting.append(data)
            if sum(map(len, link.waiting)) > LINK_BYTES:
                self.miss(to, "it does not read")
            return len(data)
        link.pipe.send(data)
        if link.pipe.waiting_bytes > LINK_BYTES:
            self.drop(link.pipe, "it does not read")
        return len(data)

    def answer(self, pipe: Pipe, message: pb.Up) -> None:
        """Say something to a neighbour that came to us."""
        if pipe in self._pipes:
            pipe.send(message.SerializeToString())
            if pipe.waiting_bytes > ANSWER_BYTES:
                self.drop(pipe, "it does not read")

    def carry(self, effects: Sequence[Effect]) -> list[Effect]:
        """Send what goes to a neighbour's thread; what is left is the event loop's business."""
        left: list[Effect] = []
        sent = 0
        for effect in effects:
            if isinstance(effect, core.FrameDown):
                assert self._next is not None
                for piece in frames.encode(effect.frame):
                    data = pb.Down(frame=piece).SerializeToString()
                    sent += self._send(self._next, pb.FlowStart.PREVIOUS, data)
            elif isinstance(effect, core.TokensBack):
                assert self._begin is not None
                back = translate.tokens_out(effect.tokens, core.reasons(effects), effect.step)
                data = pb.Down(tokens=back).SerializeToString()
                sent += self._send(self._begin, pb.FlowStart.LAST, data)
            else:
                left.append(effect)
        if self.tracer.on:
            self.tracer.sent(sent, alone=not sent)
            self._tell()
        return left

    # -- in ----------------------------------------------------------------------------------------

    def wait(self, timeout_s: float | None) -> list[Call]:
        """What there is to do now: what other threads ask for first, then what came."""
        calls, ready = self.inbox.wait(0 if self._unheard else timeout_s)
        ready = list(dict.fromkeys([*self._unheard, *ready]))
        self._unheard = []
        for pipe in ready:
            calls += self._heard(pipe)
        return calls

    def _heard(self, pipe: Pipe) -> list[Call]:
        """What a neighbour said, as calls; a stream that ends or makes no sense is dropped."""
        whose = self._pipes.get(pipe)
        if whose is None:
            return []
        calls: list[Call] = []
        try:
            messages = pipe.receive()
            for data in messages:
                if isinstance(whose, _Out):
                    self._post(self._owner.answer, pb.Up.FromString(data))
                elif (call := self._said(pipe, whose, data)) is not None:
                    calls.append(call)
            if pipe.has_more:
                self._unheard.append(pipe)
            if len(messages) - len(calls) > BACKLOG:
                self._catch_up()
        except PipeEnded as ended:
            self.drop(pipe, ended.message)
        except DecodeError:
            self._refuse(pipe, BadData("what came is no message"))
        except BadData as error:
            self._refuse(pipe, error)
        return calls

    def _catch_up(self) -> None:
        """Read no further before the event loop took what it was given: who sends so much has to wait."""
        taken = threading.Event()
        self._post(taken.set)
        taken.wait(CATCH_UP_S)

    def _refuse(self, pipe: Pipe, error: BadData) -> None:
        """The stream is of no use: say why, and end it."""
        self.answer(pipe, pb.Up(refused=translate.refused(0, 0, error, self._node_name)))
        self.drop(pipe, error.message)

    def _said(self, pipe: Pipe, whose: _In, data: bytes) -> Call | None:
        message = pb.Down.FromString(data)
        kind = message.WhichOneof("kind")
        if kind not in _ALLOWED[whose.role]:
            raise BadData(f"a message of kind {kind} does not belong on this flow")
        if kind == "frame":
            return self._frame(pipe, whose.reader, message.frame, len(data))
        if kind == "tokens":
            return self._tokens(translate.tokens_back(message.tokens), len(data))
        self._post(self._owner.take, pipe, message)
        return None

    def _frame(self, pipe: Pipe, reader: FrameReader, message: pb.Frame, size: int) -> Call | None:
        try:
            frame = reader.feed(message)
        except FrameRefused as error:
            if not message.parts:
                raise
            self._refuse_parts(pipe, message.parts[: frames.MAX_PARTS], error)
            return None
        if frame is None:
            return None
        received_ns = time.monotonic_ns()

        def run(stage: StageCore[Any]) -> list[Effect]:
            self.tracer.arrived(received_ns, size)
            if frame.tensor is None or len(frame.tensor.data) < SOAK_FROM_BYTES:
                return self._run(stage, pipe, frame)
            pipe.let_soak(True)
            self._post(self._owner.soak, pipe)
            try:
                return self._run(stage, pipe, frame)
            finally:
                pipe.let_soak(False)
                self._unheard.append(pipe)

        return run

    def _tokens(self, back: core.TokensBack, size: int) -> Call:
        received_ns = time.monotonic_ns()

        def go_on(stage: StageCore[Any]) -> list[Effect]:
            self.tracer.returned(back.step, [each.request for each in back.tokens], received_ns, size)
            return stage.tokens_back(back, time.monotonic())

        return go_on

    def _run(self, stage: StageCore[Any], pipe: Pipe, frame: frames.FrameData) -> list[Effect]:
        """Run a frame; one that breaks a rule changes nothing and is answered."""
        try:
            return stage.frame(frame, time.monotonic())
        except BadData as error:
            # A step out of turn, or a tensor that is not what this cut sends: nothing was computed.
            self._refuse_parts(pipe, frame.parts, error)
            return []

    def _refuse_parts(self, pipe: Pipe, parts: Sequence[pb.Part | frames.Part], error: BadData) -> None:
        """The requests that a frame names are told; its stream and all others go on."""
        for part in parts:
            refused = translate.refused(part.request, part.epoch, error, self._node_name)
            self.answer(pipe, pb.Up(refused=refused))
