"""A node in the foreground: ready, until a signal; the first one drains, a second one ends it at once.

SIGTERM lets work end that has begun; whoever types Ctrl-C does not want to wait. Meanwhile it says what
is wrong with its surroundings. Knows nothing of terminals, and not what the work is.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import msgspec

from exo_cli import atomic
from exo_cli.cluster.beacon import PORT
from exo_cli.cluster.membership import Change
from exo_cli.cluster.node import NodeHost
from exo_cli.errors import Exit
from exo_cli.schemas.events import ReadyLine
from exo_cli.trust.keyring import KeyringSource

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LOOK_EVERY_S = 2.0


async def run_node(
    host: NodeHost,
    source: KeyringSource,
    *,
    on_ready: Callable[[ReadyLine], None],
    warn: Callable[[str], None],
    ready_file: Path | None = None,
    prepare: Callable[[], Awaitable[None]] | None = None,
    finish: Callable[[], Awaitable[None]] | None = None,
) -> tuple[signal.Signals, Exit]:
    """Serve until a signal; returns it and the exit code it means.

    `prepare` runs before the node is ready, `finish` when it has told everybody that it leaves.
    """
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
    if ready_file is not None:
        # What a killed run left would say that this one is ready.
        _remove(ready_file)
    await host.start()
    try:
        ready = ReadyLine(
            id=host.identity.node_id, name=host.identity.name, endpoint=host.endpoint, pid=os.getpid()
        )
        if prepare is not None:
            await _unless(stop, prepare)
        if not stop.is_set():
            with _written(ready_file, ready):
                on_ready(ready)
                await _watch(host, source, stop, warn)
        await host.drain()
        if finish is not None and got[0] == signal.SIGTERM:
            await finish()
    finally:
        await host.stop()
    return got[0], Exit.INTERRUPTED if got[0] == signal.SIGINT else Exit.OK


async def _unless(stop: asyncio.Event, work: Callable[[], Awaitable[None]]) -> None:
    """Do it, or as much of it as there is time for."""
    doing = asyncio.ensure_future(work())
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((doing, stopping), return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            doing.result()
    finally:
        for each in (doing, stopping):
            each.cancel()
        await asyncio.gather(doing, stopping, return_exceptions=True)


def double_id(change: Change) -> str:
    """What to say of two nodes with one id."""
    peer = change.peer
    places = ", ".join(ip for ip in peer.ips() if ip) or "another process"
    return (
        f"two nodes have the id {peer.node_id} ({peer.name}, at {places}): a state directory was copied; "
        f"on one of them remove nodes/{peer.name} below the exo state directory and start it again"
    )


@contextlib.contextmanager
def _written(ready_file: Path | None, ready: ReadyLine) -> Iterator[None]:
    if ready_file is None:
        yield
        return
    atomic.replace(ready_file, msgspec.json.encode(ready) + b"\n")
    try:
        yield
    finally:
        _remove(ready_file)


def _remove(ready_file: Path) -> None:
    # Never a device or a directory that somebody named by mistake; one that is not ours says so later.
    with contextlib.suppress(OSError):
        if ready_file.is_file():
            ready_file.unlink()


async def _watch(
    host: NodeHost, source: KeyringSource, stop: asyncio.Event, warn: Callable[[str], None]
) -> None:
    """Until the end: say each trouble when it comes, once."""
    kind, said = source.current().kind, set[str]()
    while not stop.is_set():
        troubles = set(_troubles(host, source, kind))
        for text in sorted(troubles - said):
            warn(text)
        said = troubles
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), LOOK_EVERY_S)


def _troubles(host: NodeHost, source: KeyringSource, kind: str) -> Iterator[str]:
    now = source.current().kind
    if now != kind:
        yield f"the cluster key changed from {kind} to {now}: start this node again to use it"
    if source.problem is not None:
        yield f"{source.problem.message}; the key read before stays in use"
    if host.survey.problem is not None:
        yield f"what is found is not kept: {host.survey.problem.message}"
    deaf = host.station.radio.deaf
    if deaf is not None:
        yield f"beacons of others are not heard, UDP port {PORT} cannot be shared: {deaf.strerror or deaf}"
