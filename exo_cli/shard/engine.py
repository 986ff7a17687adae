"""One engine process, seen from the parent: starting it, hearing it, and saying why it ended.

Never imports MLX. An engine that crashes, aborts, hangs or is killed ends in a sentence here. Knows
nothing of which stage is worth loading or how much memory there is.
"""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

import msgspec

from exo_cli.errors import ExoError, Internal, SystemFailure, TryAgain
from exo_cli.schemas.first_use import shared
from exo_cli.shard.cores import pin
from exo_cli.shard.messages import AHEAD, LEAVE, Beat, Failed, Line, Progress, Ready, Start

LINE_LIMIT: Final = 1 << 20
STDERR_LINES: Final = 40
SILENT_S: Final = 5.0
"""Beats come twice a second: an engine without one for so long is frozen."""
STEP_S: Final = 5.0
STEP_FACTOR: Final = 10
WATCH_EVERY_S: Final = 0.5

State = Literal["loading", "ready", "failed", "unloading"]


class EngineFailed(Internal):
    """What the engine said or showed when it ended."""

    code = "engine-failed"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the system gives an engine process."""

    environment: Mapping[str, str] = field(default_factory=dict)
    """Beside what the parent has."""
    cores: frozenset[int] = frozenset()
    """None: any."""


class LetGo(TryAgain):
    """Somebody unloaded it meanwhile."""

    code = "let-go"

    def __init__(self) -> None:
        super().__init__("the stage was let go while it was being loaded", hint="Run the command again.")


async def spawn(surroundings: Surroundings, *, ahead: bool = False) -> asyncio.subprocess.Process:
    """A process that waits for its first line; `ahead`: it imports meanwhile what every engine needs."""
    try:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "exo_cli.shard.worker",
            *([AHEAD] if ahead else []),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=LINE_LIMIT,
            env={**os.environ, **surroundings.environment},
        )
    except OSError as error:
        raise SystemFailure(
            f"no engine can be started: {(error.strerror or str(error)).lower()}",
            hint="This machine has too little of something: processes, open files or memory.",
        ) from error


class Engine:
    """A running engine process."""

    def __init__(
        self,
        start: Start,
        *,
        surroundings: Surroundings | None = None,
        process: asyncio.subprocess.Process | None = None,
        on_end: Callable[["Engine"], None] = lambda engine: None,
    ) -> None:
        self.start_line = start
        self._surroundings = surroundings or Surroundings()
        self.state: State = "loading"
        self.failure: ExoError | None = None
        self.progress: asyncio.Queue[Progress | None] = asyncio.Queue()
        self.ready_line: Ready | None = None
        self.beat: Beat | None = None
        self._beat_s = time.monotonic()
        self._on_end = on_end
        self._stderr: deque[str] = deque(maxlen=STDERR_LINES)
        self._process = process
        """None, or one that waits for its first line already."""
        self._tasks: list[asyncio.Task[None]] = []
        self._killed_because: str | None = None
        self.known = asyncio.Event()
        """It is ready, or it has ended."""
        self.ended = asyncio.Event()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """What it ended with; negative: the signal that ended it."""
        return None if self._process is None else self._process.returncode

    @property
    def working(self) -> bool:
        """Whether requests run in it, as far as is known once it was told to leave."""
        if self.state != "ready" or self.ended.is_set():
            return False
        # What it said before it was told may have been followed by a request.
        return self.beat is None or not self.beat.leaving or self.beat.requests > 0

    def leave(self) -> None:
        """Take no new request; those that run go on."""
        if self.state == "ready" and self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(LEAVE)

    async def start(self) -> None:
        """Start the process and hand it its first line; returns at once."""
        if self._process is None:
            self._process = await spawn(self._surroundings)
        # At once: from now on it can end, and whoever waits for that has to hear of it.
        self._tasks = [
            asyncio.create_task(self._hear()),
            asyncio.create_task(self._hear_errors()),
            asyncio.create_task(self._watch()),
        ]
        # Before its first line: until then it computes nothing and has started no thread to do so.
        pin(self._process.pid, self._surroundings.cores)
        assert self._process.stdin is not None
        # That it has ended by now is the others' to say.
        with contextlib.suppress(ConnectionError):
            self._process.stdin.write(msgspec.json.encode(self.start_line) + b"\n")
            await self._process.stdin.drain()

    async def wait_ready(self) -> Ready:
        """The engine's own figures, or why there are none."""
        await self.known.wait()
        if self.ready_line is None:
            if self.state == "unloading":
                raise LetGo
            raise self.failure or EngineFailed("the engine ended before it was ready")
        return self.ready_line

    async def stop(self, grace_s: float = 2.0) -> None:
        """End it: politely, then for certain."""
        self.state = "unloading"
        if self._process is None:
            return  # it was never started
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.ended.wait(), grace_s)
        if not self.ended.is_set():
            self._kill("it did not end when it was asked to")
            await self.ended.wait()
        for task in self._tasks:
            task.cancel()

    def _kill(self, why: str) -> None:
        self._killed_because = why
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def _hear(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        said: ExoError | None = None
        async for raw in _lines(self._process.stdout):
            try:
                line: Line = msgspec.json.decode(raw, type=shared(Line))
            except msgspec.MsgspecError:
                self._stderr.append(raw.decode(errors="replace").rstrip())
                continue
            self._beat_s = time.monotonic()
            if isinstance(line, Progress):
                self.progress.put_nowait(line)
            elif isinstance(line, Ready):
                self.ready_line, self.state = line, "ready"
                self.known.set()
                self.progress.put_nowait(None)
            elif isinstance(line, Beat):
                self.beat = line
            else:
                said = _as_error(line)
        code = await self._process.wait()
        # What it said last is no longer so.
        self.beat = None
        wanted = self.state == "unloading"
        if not wanted:
            self.state = "failed"
            self.failure = said or EngineFailed(self._cause(code), hint="exo ps shows what is still loaded.")
        self.ended.set()
        self.known.set()
        self.progress.put_nowait(None)
        self._on_end(self)

    async def _hear_errors(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        async for raw in _lines(self._process.stderr):
            self._stderr.append(raw.decode(errors="replace").rstrip())

    async def _watch(self) -> None:
        """A frozen process, or a step that does not end, is killed: its requests go on elsewhere."""
        looked_s = began_s = time.monotonic()
        while not self.ended.is_set():
            await asyncio.sleep(WATCH_EVERY_S)
            now_s = time.monotonic()
            if now_s - looked_s > SILENT_S / 2:
                # We stood still ourselves (Ctrl-Z, a closed lid), and it most likely with us.
                began_s = now_s
            looked_s = now_s
            silent_s = now_s - max(self._beat_s, began_s)
            if self.state == "ready" and silent_s > SILENT_S:
                self._kill(f"it was silent for {silent_s:.0f} s")
            elif self.beat is not None and now_s - began_s > SILENT_S:
                bound_ms = max(STEP_S * 1000, STEP_FACTOR * self.beat.step_ms_p99)
                if self.beat.stepping_ms > bound_ms:
                    self._kill(f"one step ran for {self.beat.stepping_ms / 1000:.0f} s")

    def _cause(self, code: int) -> str:
        stage = self.start_line
        what = f"the engine of layers {stage.first_layer} to {stage.last_layer - 1}"
        if self._killed_because is not None:
            return f"{what} was killed: {self._killed_because}"
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"{what} was ended by {signal.Signals(-code).name}"
        last = next((line for line in reversed(self._stderr) if line.strip()), "it said nothing")
        return f"{what} ended with {code}: {last[:300]}"


async def _lines(pipe: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """What a process says; of a line without end nothing, but the pipe never fills."""
    while True:
        try:
            line = await pipe.readline()
        except ValueError:
            continue
        if not line:
            return
        yield line


def _as_error(line: Failed) -> ExoError:
    """The engine's own words, with its exit code."""
    kinds = {int(kind.exit): kind for kind in ExoError.__subclasses__()}
    error = kinds.get(line.exit, EngineFailed)(line.message, hint=line.hint)
    error.code = line.code
    for name, value in (("needed_bytes", line.bytes_needed), ("free_bytes", line.bytes_free)):
        setattr(error, name, value)
    return error
