"""serve-shard's process: a node that takes work, until a signal. Never imports MLX."""

import asyncio
import contextlib
import signal
from collections.abc import Callable
from pathlib import Path

from exo_cli.cluster.lifecycle import run_node
from exo_cli.cluster.membership import Change
from exo_cli.cluster.node import NodeHost, NodeOptions
from exo_cli.errors import Exit
from exo_cli.schemas.events import ReadyLine
from exo_cli.trust.keyring import KeyringSource

KEY_CHECK_S = 2.0


async def serve(
    options: NodeOptions,
    source: KeyringSource,
    *,
    on_ready: Callable[[ReadyLine], None],
    ready_file: Path | None,
    warn: Callable[[str], None],
) -> tuple[signal.Signals, Exit]:
    """Run the node; returns the signal that ended it and the exit code."""

    def changed(change: Change) -> None:
        if change.what == "duplicate-id":
            warn(double_id(change))

    host = NodeHost(options, source, on_change=changed)
    return await run_node(
        host,
        on_ready=on_ready,
        ready_file=ready_file,
        meanwhile=lambda stop: asyncio.ensure_future(_watch_key(source, stop, warn)),
    )


def double_id(change: Change) -> str:
    """What to say of two nodes with one id."""
    peer = change.peer
    places = ", ".join(peer.ips()) or "another process"
    return (
        f"two nodes have the id {peer.node_id} ({peer.name}, at {places}): a state directory was copied; "
        f"on one of them remove nodes/{peer.name} below the exo state directory and start it again"
    )


async def _watch_key(source: KeyringSource, stop: asyncio.Event, warn: Callable[[str], None]) -> None:
    """Say it when the key file cannot be used, or when a key appears that this node cannot use yet."""
    kind, said = source.current().kind, ""
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), KEY_CHECK_S)
        text, now = "", source.current().kind
        if now != kind:
            text = f"the cluster key changed from {kind} to {now}: start serve-shard again to use it"
        elif source.problem is not None:
            text = f"{source.problem.message}; the key read before stays in use"
        if text and text != said:
            warn(text)
        said = text
