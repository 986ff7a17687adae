"""`discover` without a terminal: watch for a while, wait for a number of nodes, or watch on.

Knows nothing of how it is shown.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from exo_cli.cluster.interfaces import EVERY_INTERFACE, Choice
from exo_cli.cluster.membership import Change
from exo_cli.cluster.station import Station, watcher
from exo_cli.cluster.survey import Survey
from exo_cli.cluster.topology_file import TopologyFile
from exo_cli.errors import TryAgain, Unavailable
from exo_cli.schemas.topology import Topology
from exo_cli.trust.keyring import KeyringSource

POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class LookoutOptions:
    """Where to look."""

    nodes_dir: Path
    topology: Path
    choice: Choice = EVERY_INTERFACE
    peers: tuple[tuple[str, int], ...] = ()


class Lookout:
    """A watcher with its survey."""

    def __init__(
        self,
        options: LookoutOptions,
        source: KeyringSource,
        *,
        on_change: Callable[[Change], None] = lambda change: None,
        on_topology: Callable[[Topology], None] = lambda topology: None,
    ) -> None:
        self.options = options
        self.source = source
        self.doubles: list[Change] = []
        self._on_change = on_change
        self.station = Station(
            watcher(),
            source,
            nodes_dir=options.nodes_dir,
            choice=options.choice,
            peers=options.peers,
            on_change=lambda change: self.survey.heard(change),
        )
        self.survey = Survey(
            self.station,
            source,
            TopologyFile(options.topology),
            on_change=self._heard,
            on_topology=on_topology,
        )

    def _heard(self, change: Change) -> None:
        if change.what == "duplicate-id":
            self.doubles.append(change)
        self._on_change(change)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Lookout"]:
        await self.station.start()
        try:
            if not self.station.radio.interfaces and not self.options.peers:
                raise Unavailable(
                    "this machine has no network interface that is up",
                    hint="Bring one up, or name a node with --peer HOST.",
                )
            await self.survey.start()
            try:
                yield self
            finally:
                await self.survey.stop()
        finally:
            await self.station.stop()

    def ready_nodes(self) -> int:
        return sum(1 for node in self.survey.described.values() if node.state == "ready")

    async def look(self, seconds: float) -> None:
        """Listen for a while; what did not answer by then is taken for dead."""
        await asyncio.sleep(seconds / 2)
        # One packet may be lost.
        self.survey.knock_on_silent()
        await asyncio.sleep(seconds / 2)
        await self.survey.settle()
        self.survey.mark_silent()
        await self.survey.settle()

    async def wait_for(self, nodes: int, timeout_s: float) -> None:
        """Return as soon as so many nodes are ready."""
        until = time.monotonic() + timeout_s
        while self.ready_nodes() < nodes:
            if time.monotonic() > until:
                found = self.ready_nodes()
                raise TryAgain(
                    f"{found} of {nodes} nodes are ready after {timeout_s:g} s",
                    hint="exo discover --explain says why the others are not seen.",
                )
            await asyncio.sleep(POLL_S)
        await self.survey.settle()
