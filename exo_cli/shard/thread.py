"""The engine's thread, the only one that touches MLX: lazy arrays belong to the thread that made them.

It loads, then waits for whatever comes first, a call from the event loop or a message of a neighbour, and
gives away what comes of it. Knows nothing of the process around it, nor of what it loads.
"""

import asyncio
import os
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar, cast

from exo_cli.engine.core import Effect, StageCore
from exo_cli.errors import Exit, ExoError
from exo_cli.shard.messages import Beat
from exo_cli.shard.ring import Call, Ring

RECENT_STEPS: Final = 256
Facts = TypeVar("Facts")


class EngineThread(Generic[Facts]):
    """`load` gives the stage and what is to be known of it; on the thread."""

    def __init__(
        self, load: Callable[[], tuple[StageCore[Any], Facts]], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._load_stage = load
        self._loop = loop
        self._deliver: Callable[[list[Effect]], None] = lambda effects: None
        self._ring: Ring
        self._core: StageCore[Any] | None = None
        self.ready: asyncio.Future[Facts] = loop.create_future()
        self.times_ms: deque[float] = deque(maxlen=RECENT_STEPS)
        self.stepping_since = 0.0
        self.busy_s = time.monotonic()
        self.thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def call(self, work: Call) -> None:
        """Let the engine thread do this with its core; from any thread."""
        self._ring.inbox.put(work)

    def backlog(self) -> int:
        """Calls that wait for the thread."""
        return len(self._ring.inbox)

    def begin(self, ring: Ring, deliver: Callable[[list[Effect]], None]) -> None:
        self._ring, self._deliver = ring, deliver
        self.thread.start()

    def _run(self) -> None:
        try:
            core = self._load()
            if core is not None:
                self.serve(core)
        except Exception:  # noqa: BLE001 - the edge of the thread: the process must not live on without its engine
            if self._loop.is_closed():
                return  # the process is at its end, and nobody is left to tell
            import traceback

            traceback.print_exc()
            os._exit(Exit.INTERNAL)

    def _load(self) -> StageCore[Any] | None:
        """The stage, said to be ready; None where it was said why it cannot be."""
        try:
            self._core, facts = self._load_stage()
        except ExoError as error:
            self._loop.call_soon_threadsafe(self.ready.set_exception, error)
            return None
        # Where one token takes seconds, the first step is not taken for a hang.
        self.times_ms.append(self._core.step_s * 1000)
        self._loop.call_soon_threadsafe(self.ready.set_result, facts)
        return self._core

    def serve(self, core: StageCore[Any]) -> None:
        """Do what comes, until a call raises."""
        due: float | None = None
        while True:
            wait_s = None if due is None else max(0.0, due - time.monotonic())
            for work in self._ring.wait(wait_s):
                self._give(self._timed(work, core))
            due = self._poll(core) if core.first else None

    def _poll(self, core: StageCore[Any]) -> float | None:
        """One step of ours at most: what came in meanwhile is looked at between two."""
        effects = self._timed(lambda stage: cast("list[Effect]", stage.poll(time.monotonic())), core)
        if effects is None or isinstance(effects, float):
            return effects
        self._give(effects)
        # After a step that failed as well: the other requests do not wait for news.
        return time.monotonic()

    def _timed(self, work: Call, core: StageCore[Any]) -> Any:
        before = core.steps
        began_ns = time.monotonic_ns()
        self.stepping_since = began_ns / 1e9
        effects = work(core)
        self.stepping_since = 0.0
        if core.steps > before:
            self.times_ms.append((time.monotonic_ns() - began_ns) / 1e6)
            if self._ring.tracer.on:
                step, parts = core.latest
                rows = sum(part.n for part in parts)
                self._ring.tracer.computed(step, rows, [part.request for part in parts], began_ns)
        if core.ledger.entries:
            self.busy_s = time.monotonic()
        return effects

    def _give(self, effects: list[Effect]) -> None:
        if effects and (left := self._ring.carry(effects)):
            self._loop.call_soon_threadsafe(self._deliver, left)

    def beat(self) -> Beat:
        """What is known without disturbing the thread."""
        core, since = self._core, self.stepping_since
        now_s = time.monotonic()
        # At once: the thread opens and closes requests while we count.
        entries = list(core.ledger.entries.values()) if core else []
        times = sorted(self.times_ms)
        return Beat(
            requests=len(entries),
            kv_used_bytes=sum(entry.bytes for entry in entries),
            steps=core.steps if core else 0,
            tokens=core.rows if core else 0,
            stepping_ms=int((now_s - since) * 1000) if since else 0,
            step_ms_p50=statistics.median(times) if times else 0.0,
            step_ms_p99=times[int(len(times) * 0.99)] if times else 0.0,
            idle_ms=int((now_s - self.busy_s) * 1000),
        )


def _nothing(_: StageCore[Any]) -> list[Effect]:
    return []
