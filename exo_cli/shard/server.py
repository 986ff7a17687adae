"""serve-shard's process: a node that takes work, until a signal. Never imports MLX."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from exo_cli.cluster import facts
from exo_cli.cluster.lifecycle import double_id, run_node
from exo_cli.cluster.membership import Change
from exo_cli.cluster.node import NodeHost, NodeOptions
from exo_cli.errors import Exit
from exo_cli.fetch.locate import Locator
from exo_cli.fetch.stores import Stores
from exo_cli.schemas.events import ReadyLine
from exo_cli.schemas.topology import Memory
from exo_cli.shard.engines import Engines
from exo_cli.shard.service import ShardService
from exo_cli.trust.keyring import KeyringSource

EXPIRE_EVERY_S = 1.0
HEADROOM = 0.9
"""Of the memory that is free, what engines may take when nobody said how much."""


@dataclass(frozen=True, slots=True)
class ShardOptions:
    """What a person may say about a node that takes work."""

    weights_dir: Path
    memory_bytes: int | None = None
    data_ports: tuple[int, int] = (0, 0)


async def serve(
    options: NodeOptions,
    shard: ShardOptions,
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

    engines = Engines(lambda: shard.memory_bytes or _free_bytes(host))
    stores = Stores(shard.weights_dir)

    def service(node: NodeHost) -> ShardService:
        node.me.stages = engines.stages
        node.me.memory = lambda found: _given(found, shard.memory_bytes, engines)
        locator = Locator(stores, source, lambda: neighbours(node))
        made = ShardService(
            node.me, source, engines, locator, hosts=node.hosts, data_ports=shard.data_ports, shelf=stores
        )
        # A stage that comes or goes is told to the others at once.
        engines.on_change = node.survey.touch_self
        return made

    host = NodeHost(options, source, on_change=changed, make_service=service)
    expiring = asyncio.create_task(_expire(engines))
    try:
        return await run_node(host, source, on_ready=on_ready, warn=warn, ready_file=ready_file)
    finally:
        expiring.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await expiring
        await engines.close()


def neighbours(node: NodeHost) -> Sequence[tuple[str, str, int]]:
    """The nodes that are alive, for asking them for weights."""
    alive = node.station.membership.alive()
    return [(peer.name, ip, peer.port) for peer in alive for ip in peer.ips()[:1]]


def _given(found: Memory, limit: int | None, engines: Engines) -> Memory:
    """What this node may still give away: within --memory, and not promised to an engine yet."""
    if limit is None and not engines.leases:
        return found
    # What is free stays what the system says; what is promised already lowers the limit.
    return msgspec.structs.replace(found, limit_bytes=min(found.limit_bytes, engines.free_bytes))


def _free_bytes(host: NodeHost) -> int:
    """The smallest of the three numbers, less some headroom for the system."""
    now = facts.memory(host.me.machine.accelerator)
    return int(min(now.ram_bytes, now.limit_bytes, now.free_bytes) * HEADROOM)


async def _expire(engines: Engines) -> None:
    while True:
        await asyncio.sleep(EXPIRE_EVERY_S)
        await engines.expire()
