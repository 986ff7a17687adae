"""The engine process: loads one stage, serves its data stream, ends with its parent.

One engine thread loads, warms up and runs everything that touches MLX, because its lazy arrays belong
to the thread that made them; the main thread runs the event loop and the streams. Run as
`python -m exo_cli.shard.worker` with a Start line on standard input. Knows nothing of discovery, of
other stages of this node, or of the cluster's secret.
"""

import asyncio
import contextlib
import ctypes
import os
import queue
import signal
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, cast

import grpc.aio
import msgspec

from exo_cli.cluster.pairs import is_unix, join_endpoint
from exo_cli.cluster.ports import free_port, is_free
from exo_cli.engine.core import Effect, StageCore
from exo_cli.errors import Exit, ExoError, SystemFailure
from exo_cli.fetch.partial import coverage
from exo_cli.shard import translate
from exo_cli.shard.flows import StageFacts, StageFlows
from exo_cli.shard.messages import LEAVE, Beat, Failed, LeafText, Line, Progress, Ready, Start
from exo_cli.trust.authority import Leaf
from exo_cli.wire import exo_pb2_grpc as glue
from exo_cli.wire.channels import SERVER_OPTIONS, leaf_server_credentials

BEAT_S: Final = 0.5
RECENT_STEPS: Final = 256
RANDOM_PORTS: Final = 64
_PR_SET_PDEATHSIG: Final = 1

Call = Callable[[StageCore[Any]], list[Effect]]


def say(line: Line) -> None:
    """One line to the parent; a parent that is gone needs none."""
    with contextlib.suppress(OSError):
        os.write(sys.stdout.fileno(), msgspec.json.encode(line) + b"\n")


class EngineThread:
    """The only thread that touches MLX."""

    def __init__(self, start: Start, loop: asyncio.AbstractEventLoop) -> None:
        self._start = start
        self._loop = loop
        self._inbox: queue.SimpleQueue[Call] = queue.SimpleQueue()
        self._deliver: Callable[[list[Effect]], None] = lambda effects: None
        self._core: StageCore[Any] | None = None
        self.ready: asyncio.Future[Ready] = loop.create_future()
        self.times_ms: deque[float] = deque(maxlen=RECENT_STEPS)
        self.stepping_since = 0.0
        self.busy_s = time.monotonic()
        self.tokens = 0
        self.thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def call(self, work: Call) -> None:
        """Let the engine thread do this with its core; from any thread."""
        self._inbox.put(work)

    def backlog(self) -> int:
        """Calls that wait for the thread."""
        return self._inbox.qsize()

    def begin(self, deliver: Callable[[list[Effect]], None]) -> None:
        self._deliver = deliver
        self.thread.start()

    @property
    def core(self) -> StageCore[Any] | None:
        return self._core

    def _run(self) -> None:
        try:
            core = self._load()
            if core is not None:
                self._serve(core)
        except Exception:  # noqa: BLE001 - the edge of the thread: the process must not live on without its engine
            import traceback

            traceback.print_exc()
            os._exit(Exit.INTERNAL)

    def _load(self) -> StageCore[Any] | None:
        """The stage, said to be ready; None where it was said why it cannot be."""
        try:
            from exo_cli.engine.stage import load

            self._core, ready = load(
                self._start.model_dir,
                layers=(self._start.first_layer, self._start.last_layer),
                layers_in_model=self._start.layers_in_model,
                memory_bytes=self._start.memory_bytes,
                wire_dtype=self._start.wire_dtype,
                context=self._start.context,
                concurrency=self._start.concurrency,
                alone=True,
                covers=coverage(Path(self._start.model_dir)),
                progress=lambda doing, done, total: say(Progress(doing=doing, done=done, total=total)),
            )
        except ExoError as error:
            error.hint = error.hint or "Fetch the model again, or name another one."
            self._loop.call_soon_threadsafe(self.ready.set_exception, error)
            return None
        # Where one token takes seconds, the first step is not taken for a hang.
        self.times_ms.append(self._core.step_s * 1000)
        self._loop.call_soon_threadsafe(self.ready.set_result, Ready(data_port=0, **ready))
        return self._core

    def _serve(self, core: StageCore[Any]) -> None:
        due: float | None = None
        while True:
            try:
                wait_s = None if due is None else max(0.0, due - time.monotonic())
                work = self._inbox.get(timeout=wait_s)
            except queue.Empty:
                work = _nothing
            while True:
                self._give(self._timed(work, core))
                try:
                    work = self._inbox.get_nowait()
                except queue.Empty:
                    break
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
        began_s = self.stepping_since = time.monotonic()
        effects = work(core)
        self.stepping_since = 0.0
        if core.steps > before:
            self.times_ms.append((time.monotonic() - began_s) * 1000)
        if core.ledger.entries:
            self.busy_s = time.monotonic()
        return effects

    def _give(self, effects: list[Effect]) -> None:
        if effects:
            self._loop.call_soon_threadsafe(self._deliver, effects)

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


class _Servicer(glue.StageServicer):
    def __init__(self, flows: StageFlows) -> None:
        self._flows = flows

    async def Flow(self, messages: Any, context: Any) -> Any:
        async for message in self._flows.flow(messages, context):
            yield message


async def serve(start: Start) -> int:
    """Load, listen, and serve until the parent's pipe ends or SIGTERM comes."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    leaves = [_leaf(each) for each in start.leaves]
    engine = EngineThread(start, loop)
    facts = StageFacts(
        stage_id=start.stage_id,
        node_id=start.node_id,
        node_name=start.node_name,
        boot=start.boot,
        first=start.first_layer == 0,
        last=start.last_layer == start.layers_in_model,
        reach=translate.Reach(unix=is_unix(start.hosts[0]), private_only=start.private_only),
    )
    flows = StageFlows(facts, leaves[0], engine.call, engine.backlog)

    def leave() -> None:
        flows.leave()
        say(_beat(engine, flows))

    loop.add_signal_handler(LEAVE, leave)
    engine.begin(flows.deliver)
    try:
        ready = await engine.ready
        server = grpc.aio.server(options=list(SERVER_OPTIONS))
        cast(Any, glue).add_StageServicer_to_server(_Servicer(flows), server)
        port = _bind(server, start, leaves)
        await server.start()
    except ExoError as error:
        say(
            Failed(
                code=error.code,
                message=error.message,
                hint=error.hint,
                exit=int(error.exit),
                bytes_needed=getattr(error, "needed_bytes", 0),
                bytes_free=getattr(error, "free_bytes", 0),
            )
        )
        return int(error.exit)
    say(msgspec.structs.replace(ready, data_port=port))
    while not stop.is_set():
        say(_beat(engine, flows))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), BEAT_S)
    flows.close()
    await server.stop(0.5)
    return Exit.OK


def _beat(engine: EngineThread, flows: StageFlows) -> Beat:
    beat = engine.beat()
    if not flows.leaving:
        return beat
    # One that is on its way to the engine counts: nobody may end us under it.
    return msgspec.structs.replace(beat, leaving=True, requests=max(beat.requests, flows.requests))


def _bind(server: grpc.aio.Server, start: Start, leaves: list[Leaf]) -> int:
    if is_unix(start.hosts[0]):
        # A socket of our own in the node's directory: our id names it as a port would.
        server.add_secure_port(join_endpoint(start.hosts[0], os.getpid()), leaf_server_credentials(leaves))
        return os.getpid()
    low, high = start.ports
    candidates = range(low, high + 1) if low else (free_port() for _ in range(RANDOM_PORTS))
    for port in candidates:
        # All of them or none: a server that listens on half of its hosts cannot be undone.
        if not all(is_free(host, port) for host in start.hosts):
            continue
        try:
            for host in start.hosts:
                bracketed = f"[{host}]" if ":" in host else host
                server.add_secure_port(f"{bracketed}:{port}", leaf_server_credentials(leaves))
        except RuntimeError:
            continue
        return port
    raise SystemFailure(
        f"no data port between {low} and {high} is free on {', '.join(start.hosts)}",
        hint="Give serve-shard a wider --data-ports.",
    )


def _leaf(text: LeafText) -> Leaf:
    return Leaf(text.name, text.key_pem.encode(), text.certificate_pem.encode(), text.authority_pem.encode())


def _end_with_parent() -> Start:
    """Read the first line; when the pipe ends, so does this process, whatever it is doing."""
    if sys.platform == "linux":
        # A native call may hold the interpreter for long: then only the kernel can end us.
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    pipe = sys.stdin.buffer
    start = msgspec.json.decode(pipe.readline(), type=Start)

    def watch() -> None:
        # Not through the buffer: the interpreter cannot end while a thread holds its lock, and aborts.
        while os.read(pipe.fileno(), 4096):
            pass
        os._exit(Exit.OK)

    threading.Thread(target=watch, name="parent", daemon=True).start()
    return start


def main() -> int:
    return asyncio.run(serve(_end_with_parent()))


if __name__ == "__main__":
    sys.exit(main())
