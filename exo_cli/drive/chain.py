"""The chain as its driver talks to it: one flow to the first stage, one to the last, many requests.

Opens and cancels go down the flow to stage 0, whose answers come back up it; tokens come up the flow
to the last stage. In a chain of one stage both are the same flow. What arrives is handed to the
requests' state machines, and what those say is done here. A flow that ends breaks the whole chain; a
request may then go on over another one. Knows nothing of how stages are loaded, nor of text.
"""

import asyncio
import os
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Final

import msgspec

from exo_cli.drive.failures import refusal
from exo_cli.drive.flow import Flow, StageAddress, ended
from exo_cli.drive.requests import (
    Action,
    Ask,
    Done,
    Emit,
    Reason,
    Replay,
    Request,
    SendCancel,
    SendOpen,
    Token,
)
from exo_cli.errors import BadData, ExoError, Unavailable, VersionMismatch
from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.frames import MAX_MESSAGE_BYTES

TICK_S: Final = 0.25


class Chain:
    """A chain in use; `async with` opens its flows and closes them. It does not outlive a lost flow."""

    def __init__(self, stages: Sequence[StageAddress], source: KeyringSource) -> None:
        if not stages:
            raise ValueError("a chain has at least one stage")
        self.stages = tuple(stages)
        self.broken: ExoError | None = None
        self.failed = False
        """Whether it failed a request. It may look well from here: a stage between its ends is not seen."""
        self.traces: list[pb.Trace] = []
        """What the stages told of their steps while a request asked for it."""
        self._source = source
        self._driver = os.urandom(16)
        self._flows: list[Flow] = []
        self._live: dict[int, Generation] = {}
        self._ticker: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Chain":
        ends = self.stages[:1] if len(self.stages) == 1 else (self.stages[0], self.stages[-1])
        flows = [Flow(stage, self._driver, self._take, self._lost) for stage in ends]
        opened = await asyncio.gather(*(flow.open(self._source) for flow in flows), return_exceptions=True)
        failures = [each for each in opened if isinstance(each, BaseException)]
        if failures:
            await asyncio.gather(*(flow.close() for flow in flows))
            # What no other try will mend comes before what another try may.
            raise min(failures, key=lambda failure: not isinstance(failure, VersionMismatch))
        self._flows = flows
        for flow in flows:
            flow.run()
        self._ticker = asyncio.create_task(self._tick())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End every request and both flows."""
        for live in list(self._live.values()):
            live.cancel()
        if self._ticker is not None:
            await ended(self._ticker)
        await asyncio.gather(*(flow.close() for flow in self._flows))

    def abandon(self, error: ExoError) -> None:
        """It is of no use any more: whoever still waits for it goes on elsewhere."""
        self._lost(error)

    def generate(self, ask: Ask, *, recover: "Recover | None" = None) -> "Generation":
        """Begin a request; its tokens are read from what is returned, and closing that ends it."""
        return Generation(self, ask, recover)

    # -- for Generation --------------------------------------------------------------------------

    def join(self, live: "Generation") -> None:
        if self.broken is not None:
            raise self.broken
        self._live[live.number] = live

    def leave(self, live: "Generation") -> None:
        self._live.pop(live.number, None)

    async def send_open(self, number: int, ask: Ask, action: SendOpen) -> None:
        message = pb.Open(
            request=number,
            epoch=action.epoch,
            prompt=action.ids,
            emitted=action.emitted,
            sampler=_sampler(ask),
            max_tokens=action.max_tokens,
            stop_ids=sorted(ask.stop_ids),
            deadline_ms=action.deadline_ms,
            keep_prefix=ask.keep_prefix,
            route=[pb.Hop(endpoint=stage.reached, stage_id=stage.stage_id) for stage in self.stages],
            driver=self._driver,
            trace=ask.trace,
        )
        if message.ByteSize() > MAX_MESSAGE_BYTES:
            raise BadData(
                f"the prompt has {len(ask.prompt)} tokens, which is more than one message carries",
                hint="Give a shorter prompt.",
            )
        await self._flows[0].send(pb.Down(open=message))

    def send_cancel(self, number: int, epoch: int) -> None:
        if self.broken is None:
            self._flows[0].send_soon(pb.Down(cancel=pb.Cancel(request=number, epoch=epoch)))

    # -- what comes up ---------------------------------------------------------------------------

    def _take(self, message: pb.Up) -> None:
        now_s = asyncio.get_running_loop().time()
        match message.WhichOneof("kind"):
            case "tokens":
                for row in message.tokens.rows:
                    if (live := self._live.get(row.request)) is not None:
                        live.do(live.request.token(_token(row), now_s))
            case "opened":
                opened = message.opened
                if (live := self._live.get(opened.request)) is not None:
                    live.do(live.request.opened(opened.epoch, opened.prefix))
            case "prefilled":
                if (live := self._live.get(message.prefilled.request)) is not None:
                    live.request.prefilled(message.prefilled.epoch, now_s)
            case "refused":
                refused = message.refused
                if (live := self._live.get(refused.request)) is not None:
                    live.do(live.request.refused(refused.epoch, refusal(refused)))
            case "trace":
                self.traces.append(message.trace)
            case "finished":
                ended = message.finished
                if (live := self._live.get(ended.request)) is not None:
                    live.do(live.request.finished(ended.epoch, ended.reason, self._named(ended.message)))

    def _named(self, message: str) -> str:
        """Stages know each other by address; people know nodes by name."""
        for stage in self.stages:
            message = message.replace(f" at {stage.reached}:", f" at {stage.node}:")
        return message

    def _lost(self, error: ExoError) -> None:
        if self.broken is None:
            self.broken = error
            for live in list(self._live.values()):
                live.do(live.request.lost(error))

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(TICK_S)
            for live in list(self._live.values()):
                live.do(live.request.tick(loop.time()))


Recover = Callable[[ExoError], Awaitable[Chain]]
"""Another chain for a request whose chain failed, or the reason why there is none, raised."""


class Generation:
    """One request in flight. Iterate over it for its tokens; leaving early cancels it.

    Tokens that nobody has read yet wait here, at most `max_tokens` of them: a slow reader slows down
    no other request of the chain.
    """

    def __init__(self, chain: Chain, ask: Ask, recover: Recover | None) -> None:
        self.number = secrets.randbits(63)
        self.request = Request(ask)
        self.reason: Reason | None = None
        """Why it ended, once it has."""
        self._chain = chain
        self._recover = recover
        self._news: asyncio.Queue[Token | Replay | Done | asyncio.Task[None]] = asyncio.Queue()
        self._opening: asyncio.Task[None] | None = None
        self._recovering: asyncio.Task[None] | None = None

    async def tokens(self) -> AsyncGenerator[Token, None]:
        """Every token once, in order; raises what ended the request, after the last one that came."""
        loop = asyncio.get_running_loop()
        try:
            try:
                self._chain.join(self)
            except ExoError as broken:  # since somebody chose it
                self.request.start(loop.time())
                self.do(self.request.lost(broken))
            else:
                self.do(self.request.start(loop.time()))
            while True:
                news = await self._news.get()
                match news:
                    case Token():
                        yield news
                    case Replay(error):
                        # Beside us: whoever does not want the rest must not wait for another chain.
                        self._recovering = asyncio.create_task(self._go_on_elsewhere(error))
                        self._recovering.add_done_callback(self._news.put_nowait)
                    case Done(reason, problem):
                        self.reason = reason
                        if problem is not None:
                            raise problem
                        return
                    case asyncio.Task():
                        news.result()
        finally:
            self.cancel()
            for task in (self._opening, self._recovering):
                if task is not None:
                    await ended(task)

    def cancel(self) -> None:
        """Nobody wants the rest; does not wait for the chain to say yes."""
        self.do(self.request.cancel())

    def do(self, actions: Sequence[Action]) -> None:
        """Carry out what the state machine says."""
        for action in actions:
            match action:
                case SendOpen():
                    self._opening = asyncio.create_task(self._open(self._chain, action))
                case SendCancel(epoch):
                    self._chain.send_cancel(self.number, epoch)
                case Emit(token):
                    self._news.put_nowait(token)
                case Replay() | Done():
                    self._chain.leave(self)
                    if isinstance(action, Replay):
                        self._chain.failed = True
                    self._news.put_nowait(action)

    async def _open(self, chain: Chain, action: SendOpen) -> None:
        try:
            await chain.send_open(self.number, self.request.ask, action)
        except ExoError as error:
            self.do(self.request.refused(action.epoch, error))

    async def _go_on_elsewhere(self, error: ExoError) -> None:
        loop = asyncio.get_running_loop()
        if self._recover is None:
            self.do(self.request.give_up(error))
            return
        try:
            async with asyncio.timeout_at(self.request.until_s) as until:
                chain = await self._recover(error)
            if self.request.state == "waiting":
                chain.join(self)
                self._chain = chain
                self.do(self.request.reopen(loop.time()))
        except TimeoutError:
            late = Unavailable("the nodes that are left did not answer in time")
            self.do(self.request.tick(loop.time()) if until.expired() else self.request.give_up(late))
        except ExoError as none:
            self.do(self.request.give_up(none))


def _sampler(ask: Ask) -> pb.Sampler:
    it = ask.sampling
    return pb.Sampler(**{**msgspec.structs.asdict(it), "logit_bias": dict(it.logit_bias)})


def _token(row: pb.TokenOut) -> Token:
    top = tuple(zip(row.top_ids, row.top_logprobs, strict=False))
    return Token(row.epoch, row.position, row.id, row.logprob, top, row.finish)
