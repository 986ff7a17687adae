"""The engine process: loads one stage, serves its data stream, ends with its parent.

One thread loads, warms up and computes (`thread`); the main thread runs the event loop and the drivers'
streams. Run as
`python -m exo_cli.shard.worker` with a Start line on standard input. Knows nothing of discovery, of
other stages of this node, or of the cluster's secret.
"""

import asyncio
import contextlib
import ctypes
import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import grpc.aio
import msgspec

from exo_cli.cluster.pairs import is_unix, join_endpoint
from exo_cli.cluster.ports import free_port, is_free
from exo_cli.engine.core import StageCore
from exo_cli.errors import Exit, ExoError, SystemFailure
from exo_cli.fetch.partial import coverage
from exo_cli.schemas.first_use import shared
from exo_cli.shard import translate
from exo_cli.shard.flows import StageFacts, StageFlows
from exo_cli.shard.links import Door
from exo_cli.shard.messages import AHEAD, LEAVE, Beat, Failed, LeafText, Line, Progress, Ready, Start
from exo_cli.shard.neighbours import Neighbours
from exo_cli.shard.ring import Ring
from exo_cli.shard.thread import EngineThread
from exo_cli.trust.authority import Leaf
from exo_cli.wire import exo_pb2_grpc as glue
from exo_cli.wire.channels import SERVER_OPTIONS, leaf_server_credentials
from exo_cli.wire.hello import hello

BEAT_S: Final = 0.5
RANDOM_PORTS: Final = 64
_FRAME_SOCKET: Final = 1 << 22
"""Beside our process's number, which is below it, in the name of a socket of the file system."""
_PR_SET_PDEATHSIG: Final = 1


def say(line: Line) -> None:
    """One line to the parent; a parent that is gone needs none."""
    with contextlib.suppress(OSError):
        os.write(sys.stdout.fileno(), msgspec.json.encode(line) + b"\n")


def load(start: Start) -> tuple[StageCore[Any], Ready]:
    """The stage, on the thread that is to run it."""
    try:
        from exo_cli.engine import stage

        core, ready = stage.load(
            start.model_dir,
            layers=(start.first_layer, start.last_layer),
            layers_in_model=start.layers_in_model,
            memory_bytes=start.memory_bytes,
            wire_dtype=start.wire_dtype,
            context=start.context,
            concurrency=start.concurrency,
            numerics=start.numerics,
            kv_bits=start.kv_bits,
            alone=True,
            random=start.random,
            covers=coverage(Path(start.model_dir)),
            progress=lambda doing, done, total: say(Progress(doing=doing, done=done, total=total)),
        )
    except ExoError as error:
        error.hint = error.hint or "Fetch the model again, or name another one."
        raise
    return core, Ready(data_port=0, frame_port=0, **ready)


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
    engine = EngineThread(lambda: load(start), loop)
    facts = StageFacts(
        stage_id=start.stage_id,
        node_id=start.node_id,
        node_name=start.node_name,
        boot=start.boot,
        first=start.first_layer == 0,
        last=start.last_layer == start.layers_in_model,
        reach=translate.Reach(unix=is_unix(start.hosts[0]), private_only=start.private_only),
    )
    us = hello(start.node_id, start.boot)
    beside = Neighbours(engine.call, loop, us, leaves)
    flows = StageFlows(facts, beside, engine.call, engine.backlog)
    ring = Ring(
        beside,
        loop.call_soon_threadsafe,
        node_name=start.node_name,
        stage_id=start.stage_id,
        first=facts.first,
    )
    beside.begin(ring, flows)
    door = Door(leaves, start.node_name, flows.greet, beside.admit)

    def leave() -> None:
        flows.leave()
        say(_beat(engine, flows))

    loop.add_signal_handler(LEAVE, leave)
    engine.begin(ring, flows.deliver)
    try:
        ready = await engine.ready
        server = grpc.aio.server(options=list(SERVER_OPTIONS))
        cast(Any, glue).add_StageServicer_to_server(_Servicer(flows), server)
        data_port = _bind(server, start, leaves)
        frame_port = _open(door, start, besides=data_port)
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
    say(msgspec.structs.replace(ready, data_port=data_port, frame_port=frame_port))
    while not stop.is_set():
        say(_beat(engine, flows))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), BEAT_S)
    await door.close()
    beside.close()
    await server.stop(0.5)
    return Exit.OK


def _beat(engine: EngineThread[Ready], flows: StageFlows) -> Beat:
    beat = engine.beat()
    if not flows.leaving:
        return beat
    # One that is on its way to the engine counts: nobody may end us under it.
    return msgspec.structs.replace(beat, leaving=True, requests=max(beat.requests, flows.requests))


def _bind(server: grpc.aio.Server, start: Start, leaves: list[Leaf]) -> int:
    """Where drivers come in."""
    if is_unix(start.hosts[0]):
        # A socket of our own in the node's directory: our id names it as a port would.
        server.add_secure_port(join_endpoint(start.hosts[0], os.getpid()), leaf_server_credentials(leaves))
        return os.getpid()
    for port in _candidates(start):
        try:
            for host in start.hosts:
                server.add_secure_port(join_endpoint(host, port), leaf_server_credentials(leaves))
        except RuntimeError:
            continue
        return port
    raise _no_port(start)


def _open(door: Door, start: Start, *, besides: int) -> int:
    """Where other stages come in."""
    if is_unix(start.hosts[0]):
        door.listen(start.hosts, _FRAME_SOCKET + os.getpid())
        return _FRAME_SOCKET + os.getpid()
    for port in _candidates(start):
        if port != besides:
            with contextlib.suppress(OSError):
                door.listen(start.hosts, port)
                return port
    raise _no_port(start)


def _candidates(start: Start) -> Iterator[int]:
    """All hosts or none: a server that listens on half of its hosts cannot be undone."""
    low, high = start.ports
    for port in range(low, high + 1) if low else (free_port() for _ in range(RANDOM_PORTS)):
        if all(is_free(host, port) for host in start.hosts):
            yield port


def _no_port(start: Start) -> SystemFailure:
    low, high = start.ports
    return SystemFailure(
        f"of the data ports {low} to {high} too few are free on {', '.join(start.hosts)}: a stage needs two",
        hint="Give serve-shard a wider --data-ports.",
    )


def _leaf(text: LeafText) -> Leaf:
    return Leaf(text.name, text.key_pem.encode(), text.certificate_pem.encode(), text.authority_pem.encode())


def _ahead(pipe: BinaryIO) -> bytes:
    """The first line; until it comes, import what every engine needs, on a CPU the kernels' compiler too."""
    from exo_cli.engine import stage

    if not stage.on_cpu():
        return pipe.readline()
    lines: list[bytes] = []

    def hear() -> None:
        lines.append(pipe.readline())
        if lines[0]:
            _touch(msgspec.json.decode(lines[0], type=shared(Start)))

    # Imported before there is a thread: two that import the same wait for each other.
    from exo_cli.engine.cpu import large_pages

    hearing = threading.Thread(target=hear, name="first line")
    hearing.start()
    try:
        stage.kernels_ahead()
    except ImportError:
        hearing.join()
        large_pages.PIECES.settle()
    hearing.join()
    return lines[0]


def _touch(start: Start) -> None:
    """Have memory ready for weights that are converted: about what their files have."""
    from exo_cli.engine.cpu import large_pages

    whole = start.last_layer - start.first_layer == start.layers_in_model
    if not large_pages.ADVICE or start.numerics != "fast" or not whole or start.random is not None:
        return
    with contextlib.suppress(OSError):
        size = sum(file.stat().st_size for file in Path(start.model_dir).glob("*.safetensors"))
        if 0 < size <= start.memory_bytes:
            large_pages.PIECES.expect(size)


def _end_with_parent() -> Start:
    """Read the first line; when the pipe ends, so does this process, whatever it is doing."""
    if sys.platform == "linux":
        # A native call may hold the interpreter for long: then only the kernel can end us.
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    pipe = sys.stdin.buffer
    if sys.argv[1:] == [AHEAD]:
        # What is imported stays: nobody needs to look through it again and again, a fifth of the time.
        gc.disable()
        line = _ahead(pipe)
        gc.freeze()
        gc.enable()
    else:
        line = pipe.readline()
    if not line:
        sys.exit(Exit.OK)  # nobody needed us
    start = msgspec.json.decode(line, type=shared(Start))

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
