"""A node in the foreground: ready, until a signal; the first one drains, a second one ends it at once."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec

from exo_cli import atomic
from exo_cli.cluster.node import NodeHost
from exo_cli.errors import Exit
from exo_cli.schemas.events import ReadyLine

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


async def run_node(
    host: NodeHost,
    *,
    on_ready: Callable[[ReadyLine], None],
    ready_file: Path | None = None,
    meanwhile: Callable[[asyncio.Event], "asyncio.Future[None] | None"] = lambda stop: None,
) -> tuple[signal.Signals, Exit]:
    """Serve until a signal; returns it and the exit code it means."""
    stop = asyncio.Event()
    got: list[signal.Signals] = []
    loop = asyncio.get_running_loop()

    def received(number: signal.Signals) -> None:
        if got:
            # Whoever asks twice does not want to wait: no clean-up is worth a hanging terminal.
            os._exit(Exit.INTERRUPTED if number == signal.SIGINT else Exit.TERMINATED)
        got.append(number)
        stop.set()

    for number in SIGNALS:
        loop.add_signal_handler(number, received, number)
    await host.start()
    try:
        ready = ReadyLine(
            id=host.identity.node_id, name=host.identity.name, endpoint=host.endpoint, pid=os.getpid()
        )
        if ready_file is not None:
            atomic.replace(ready_file, msgspec.json.encode(ready) + b"\n")
        on_ready(ready)
        side = meanwhile(stop)
        await stop.wait()
        if side is not None:
            await side
        await host.drain()
    finally:
        await host.stop()
        if ready_file is not None:
            await asyncio.to_thread(ready_file.unlink, missing_ok=True)
    return got[0], Exit.INTERRUPTED if got[0] == signal.SIGINT else Exit.OK
