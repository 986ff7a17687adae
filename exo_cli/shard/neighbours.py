"""Between the two threads of an engine process: connections made here are used there, and what is said
there and is no frame is heard here.

Lives on the event loop's thread. Knows nothing of what requests are.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, Protocol

from exo_cli.errors import ExoError
from exo_cli.shard import pulse
from exo_cli.shard.links import go_to
from exo_cli.shard.ring import Address, Call, Ring
from exo_cli.trust.authority import Leaf
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.pipe import Pipe, PipeEnded, Stranger

SOAK_EVERY_S: Final = 0.002
"""A buffer of the kernel's holds what comes in so long a time."""


class Listener(Protocol):
    """Who knows the requests."""

    def lost(self, stage: Address, reason: str) -> None: ...

    def left(self, pipe: Pipe) -> None: ...

    def take(self, pipe: Pipe, message: pb.Down) -> None: ...

    def answer(self, message: pb.Up) -> None: ...

    def traced(self, traces: Sequence[pb.Trace]) -> None: ...


class Neighbours:
    """The ring's owner, and the way to the ring for everybody on this thread."""

    def __init__(
        self,
        call: Callable[[Call], None],
        loop: asyncio.AbstractEventLoop,
        us: pb.Hello,
        leaves: Sequence[Leaf],
    ) -> None:
        self._call = call
        self._loop = loop
        self._us = us
        self._leaves = leaves
        self._ring: Ring
        self._listener: Listener
        self._going: set[asyncio.Task[None]] = set()
        self._open: set[Pipe] = set()
        self._soaking: set[Pipe] = set()
        self._pulses: dict[Pipe, asyncio.Task[None]] = {}
        """By the connection beside which they are."""
        self._ways: dict[bytes, Pipe] = {}
        self._closed = False

    def begin(self, ring: Ring, listener: Listener) -> None:
        self._ring, self._listener = ring, listener

    def close(self) -> None:
        """Everything ends; on the thread that uses it, for a descriptor may not vanish under a reader."""
        self._closed = True
        for task in self._going:
            task.cancel()
        self._in_ring(lambda ring: ring.end())

    # -- for the ring ----------------------------------------------------------------------------

    def connect(self, to: Address, role: int) -> None:
        if self._closed:
            return  # what still ends has words for a neighbour that nobody carries any more
        self._spawn(self._go(to, role))

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._going.add(task)
        task.add_done_callback(self._going.discard)
        return task

    async def _go(self, to: Address, role: int) -> None:
        way = os.urandom(16)
        try:
            pipe = await self._greeted(to, role, way)
        except ExoError as error:
            reason = error.message
            self._in_ring(lambda ring: ring.miss(to, reason))
            return
        self._keep(pipe)
        self._in_ring(lambda ring: ring.attach(to, pipe))
        if role == pb.FlowStart.PREVIOUS:
            self._pulses[pipe] = self._spawn(self._ask(to, pipe, way))

    async def _ask(self, to: Address, pipe: Pipe, way: bytes) -> None:
        """Whether the stage that we send to lives, as long as the way there is open."""
        heard = self._loop.time()
        while True:
            try:
                beside = await self._greeted(to, pb.FlowStart.PULSE, way)
                try:
                    await pulse.ask(beside)
                    break
                except PipeEnded:
                    heard = self._loop.time()  # it ended, which is no silence: that begins anew
                finally:
                    beside.close()
            except PipeEnded:
                if self._loop.time() - heard > pulse.ANSWER_S:
                    break
                await asyncio.sleep(pulse.EVERY_S)
            except ExoError:
                return  # it has no pulse that is for us: the way itself tells when it ends
        self._give_up(pipe)

    async def _answer(self, pipe: Pipe, way: bytes) -> None:
        """Tell the stage before that we live, and notice when it does not any more."""
        try:
            await pulse.answer(pipe)
        except PipeEnded:
            return
        if way in self._ways:
            self._give_up(self._ways[way])

    def _give_up(self, pipe: Pipe) -> None:
        self._in_ring(lambda ring: ring.drop(pipe, f"it has been silent for {pulse.SILENCE_S:g} s"))

    async def _greeted(self, to: Address, role: int, way: bytes) -> Pipe:
        """A stage that was loaded before a rotation knows one key of ours and not the other."""
        for leaf in self._leaves[:-1]:
            with contextlib.suppress(Stranger):
                return await go_to(to, role, self._us, leaf, way)
        return await go_to(to, role, self._us, self._leaves[-1], way)

    def admit(self, pipe: Pipe, start: pb.FlowStart) -> None:
        """A neighbour came, and was greeted."""
        role, way = start.role, bytes(start.way)
        if role == pb.FlowStart.PULSE:
            # Whatever becomes of the task: one that is cancelled early never begins.
            self._spawn(self._answer(pipe, way)).add_done_callback(lambda _: pipe.close())
            return
        if way:
            self._ways[way] = pipe
        self._keep(pipe)
        self._in_ring(lambda ring: ring.admit(pipe, role))

    def _keep(self, pipe: Pipe) -> None:
        self._open.add(pipe)
        pipe.on_waiting = lambda each: self._loop.call_soon_threadsafe(self._flush, each)

    def _flush(self, pipe: Pipe) -> None:
        """The engine's thread does not wait for a slow connection; this one does."""
        if pipe in self._open:
            if pipe.flush():
                self._loop.remove_writer(pipe.fileno())
            else:
                self._loop.add_writer(pipe.fileno(), self._flush, pipe)

    def soak(self, pipe: Pipe) -> None:
        """While the engine's thread computes, what comes meanwhile is taken in here."""
        if pipe not in self._soaking:
            self._soaking.add(pipe)
            self._soak(pipe)

    def _soak(self, pipe: Pipe) -> None:
        if pipe in self._open and pipe.soak():
            self._loop.call_later(SOAK_EVERY_S, self._soak, pipe)
        else:
            self._soaking.discard(pipe)

    def done_with(self, pipe: Pipe) -> None:
        if pipe in self._open:
            self._open.discard(pipe)
            if pipe in self._pulses:
                self._pulses.pop(pipe).cancel()
            self._ways = {way: each for way, each in self._ways.items() if each is not pipe}
            # What was said last still goes, as far as it goes at once.
            pipe.flush()
            self._loop.remove_writer(pipe.fileno())
            pipe.close()

    def lost(self, to: Address, reason: str) -> None:
        self._listener.lost(to, reason)

    def left(self, pipe: Pipe) -> None:
        self._listener.left(pipe)

    def take(self, pipe: Pipe, message: pb.Down) -> None:
        self._listener.take(pipe, message)

    def answer(self, message: pb.Up) -> None:
        self._listener.answer(message)

    def traced(self, traces: Sequence[pb.Trace]) -> None:
        self._listener.traced(traces)

    # -- to the ring -----------------------------------------------------------------------------

    def lead(self, chain: Sequence[Address], at: int) -> None:
        self._in_ring(lambda ring: ring.lead(chain, at))

    def send(self, to: Address, role: int, message: pb.Down) -> None:
        self._in_ring(lambda ring: ring.send(to, role, message))

    def say(self, pipe: Pipe, message: pb.Up) -> None:
        self._in_ring(lambda ring: ring.answer(pipe, message))

    def trace(self, on: bool) -> None:
        self._in_ring(lambda ring: ring.trace(on))

    def _in_ring(self, work: Callable[[Ring], None]) -> None:
        def call(_: Any) -> list[Any]:
            work(self._ring)
            return []

        self._call(call)
