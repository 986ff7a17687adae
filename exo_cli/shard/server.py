"""serve-shard's process: a node that takes work, until a signal. Never imports MLX."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from exo_cli.cluster import facts
from exo_cli.cluster.lifecycle import double_id, run_node
from exo_cli.cluster.membership import Change
from exo_cli.cluster.node import NodeHost, NodeOptions
from exo_cli.cluster.pairs import is_unix
from exo_cli.cluster.service import Diagnose
from exo_cli.errors import Exit
from exo_cli.fetch.locate import Locator
from exo_cli.fetch.stores import Stores
from exo_cli.schemas.events import ReadyLine
from exo_cli.schemas.plan import Plan
from exo_cli.schemas.topology import Memory
from exo_cli.shard.abilities import learn
from exo_cli.shard.ahead import Ahead
from exo_cli.shard.cores import thread_environment, usable_cores
from exo_cli.shard.engine import Surroundings
from exo_cli.shard.engines import Engines
from exo_cli.shard.rates import NEEDED_BYTES, Trial, know
from exo_cli.shard.service import ShardService
from exo_cli.shard.standing import Standing, numerics_of, own_stages
from exo_cli.trust.keyring import KeyringSource

EXPIRE_EVERY_S = 1.0
HEADROOM = 0.9
"""Of the memory that is free, what engines may take when nobody said how much."""
DRAIN_S = 30.0
"""So long a node that is told to leave waits for the requests that run."""


@dataclass(frozen=True, slots=True)
class ShardOptions:
    """What a person may say about a node that takes work."""

    weights_dir: Path
    memory_bytes: int | None = None
    data_ports: tuple[int, int] = (0, 0)
    threads: int | None = None
    """None: this machine's cores, shared among its stages."""
    cores: frozenset[int] = frozenset()
    keep_alive_s: float | None = None
    """None: 10 minutes, and for ever what a plan gave this node."""
    measures: bool = True
    """Whether it finds out how fast its engine is while nobody asks for anything."""
    plan: Plan | None = None
    numerics: Literal["exact", "fast"] | None = None
    """How the plan's stages compute; None: as the plan says."""
    diagnose: Diagnose | None = None
    """What this machine's tools say, for the doctor."""


async def serve(
    options: NodeOptions,
    shard: ShardOptions,
    source: KeyringSource,
    *,
    on_ready: Callable[[ReadyLine], None],
    ready_file: Path | None,
    warn: Callable[[str], None],
    note: Callable[[str], None] = lambda text: None,
    ahead: Ahead | None = None,
) -> tuple[signal.Signals, Exit]:
    """Run the node; returns the signal that ended it and the exit code. The first engine may have `ahead`."""
    running = _Running(options, shard, source, warn, note, ahead)

    def ready(line: ReadyLine) -> None:
        on_ready(line)
        running.learn()

    expiring = asyncio.create_task(_expire(running.engines))
    try:
        return await run_node(
            running.host,
            source,
            on_ready=ready,
            warn=warn,
            ready_file=ready_file,
            prepare=running.prepare,
            finish=running.finish,
        )
    finally:
        expiring.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await expiring
        await running.close()


class _Running:
    """The node's parts, tied together."""

    def __init__(
        self,
        options: NodeOptions,
        shard: ShardOptions,
        source: KeyringSource,
        warn: Callable[[str], None],
        note: Callable[[str], None],
        ahead: Ahead | None,
    ) -> None:
        self._shard = shard
        self._source = source
        self._warn = warn
        self._note = note
        self._stores = Stores(shard.weights_dir)
        self._standing: Standing | None = None
        self._learning: list[asyncio.Task[None]] = []
        self.engines = Engines(lambda: shard.memory_bytes or _free_bytes(self.host), ahead)
        self.host = NodeHost(options, source, on_change=self._changed, make_service=self._service)

    async def prepare(self) -> None:
        """What a plan gave this node is loaded before it says that it is ready."""
        if self._standing is not None:
            await self._standing.ready()

    def learn(self) -> None:
        """Find out what the engine can run and how fast it is; Describe says so once it is known."""
        unasked = is_unix(self.host.hosts[0])
        if self.host.me.machine.accelerator.backend != "none" and not unasked:
            self._learning = [asyncio.create_task(learn(self.host.me))]
            if self._shard.measures:
                trial = Trial(
                    self.host.me.identity.directory,
                    lambda: self.engines.surroundings(),
                    self._is_calm,
                    lambda: self.engines.free_bytes >= NEEDED_BYTES,
                    # The default first: it is what plans ask for.
                    numerics=self.host.me.machine.numerics[::-1],
                )
                self._learning.append(
                    asyncio.create_task(know(self.host.me, trial, self.host.survey.touch_self))
                )

    def _is_calm(self) -> bool:
        """Whether nobody would notice that this machine is being measured."""
        loading = any(lease.engine.state == "loading" for lease in self.engines.leases)
        return not (loading or self.host.me.draining or self.engines.busy)

    async def finish(self) -> None:
        """Let requests end that run."""
        if self._standing is not None:
            await self._standing.stop()
        cut = await self.engines.drain(DRAIN_S)
        if cut:
            self._warn(f"{cut} requests still ran after {DRAIN_S:g} s and were cut off")

    async def close(self) -> None:
        if self._standing is not None:
            await self._standing.stop()
        for task in self._learning:
            task.cancel()
        await asyncio.gather(*self._learning, return_exceptions=True)
        await self.engines.close()

    def _changed(self, change: Change) -> None:
        if change.what == "duplicate-id":
            self._warn(double_id(change))
        elif self._standing is not None and change.what in ("joined", "changed", "refuted"):
            self._standing.news()

    def _service(self, node: NodeHost) -> ShardService:
        shard, engines, me = self._shard, self.engines, node.me
        me.stages = engines.stages
        me.memory = lambda found: _given(found, shard.memory_bytes, engines)
        made = ShardService(
            me,
            self._source,
            engines,
            Locator(self._stores, self._source, lambda: neighbours(node)),
            hosts=node.hosts,
            data_ports=shard.data_ports,
            shelf=self._stores,
            keep_alive_s=shard.keep_alive_s,
        )
        made.diagnose = shard.diagnose
        # A stage that comes or goes is told to the others at once.
        engines.on_change = node.survey.touch_self
        engines.surroundings = lambda: _surroundings(shard, engines, node)
        if shard.plan is not None:
            us = (me.identity.node_id, me.identity.name)
            numerics = numerics_of(shard.plan, us, me.machine.numerics, shard.numerics)
            own = own_stages(shard.plan, *us, numerics)
            made.pinned.update(request.load_id for request in own)
            self._standing = Standing(
                own,
                made.load,
                engines.find,
                let_go=made.pinned.discard,
                warn=self._warn,
                note=self._note,
            )
        return made


def _surroundings(shard: ShardOptions, engines: Engines, node: NodeHost) -> Surroundings:
    """For an engine that is started now, beside the stages that this machine has and is about to have."""
    others = (
        max(1, len(each.stages))
        for each in node.survey.topology.nodes
        if each.host == node.me.machine.host
        and each.id != node.me.identity.node_id
        and (each.role, each.state) == ("shard", "ready")
    )
    stages = len(engines.leases) + 1 + sum(others)
    cores = len(shard.cores or usable_cores())
    return Surroundings(thread_environment(shard.threads, cores, stages, os.environ), shard.cores)


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
