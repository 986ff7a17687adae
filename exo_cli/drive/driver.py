"""A model made ready to answer, whatever that takes: found, described, placed, loaded, connected.

The steps are told to `Telling`, whoever that is. A chain that broke is made anew for the next request.
Knows nothing of terminals and of what is asked.
"""

import asyncio
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from exo_cli.cluster.pairs import join_endpoint, split_endpoint
from exo_cli.cluster.topology_file import TopologyFile
from exo_cli.drive.chain import Chain
from exo_cli.drive.choose import Around, Choice, choose_roomy
from exo_cli.drive.load import LoadedStage, Progress, addresses, load
from exo_cli.drive.private import private_node
from exo_cli.drive.size import ModelSize, size_of
from exo_cli.drive.split import Need
from exo_cli.fetch.share import LocalShare
from exo_cli.fetch.stores import Stores
from exo_cli.models.directory import ModelDirectory
from exo_cli.schemas.plan import ModelRef, Plan
from exo_cli.schemas.topology import Node
from exo_cli.text.chat import Language
from exo_cli.trust.keyring import KeyringSource


@dataclass(frozen=True, slots=True)
class Settings:
    """What a person may say about where a model runs, and where this machine keeps its files."""

    model: str
    weights_dir: Path
    nodes_dir: Path
    topology: Path
    plan: Plan | None = None
    peers: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Telling:
    """Who hears what is going on."""

    chosen: Callable[[Choice], None] = lambda choice: None
    progress: Callable[[Progress], None] = lambda progress: None


class Driver:
    """`async with` it; `chain` then gives a chain in working order."""

    def __init__(self, settings: Settings, source: KeyringSource, telling: Telling | None = None) -> None:
        self.stages: tuple[LoadedStage, ...] = ()
        self.context = 0
        self._settings = settings
        self._source = source
        self._telling = telling or Telling()
        self._undo = AsyncExitStack()
        self._chain_undo = AsyncExitStack()
        self._chain: Chain | None = None
        self._private: Node | None = None
        self._share: LocalShare | None = None
        self.directory: ModelDirectory
        self.language: Language
        self.size: ModelSize

    async def __aenter__(self) -> "Driver":
        settings = self._settings
        stores = Stores(settings.weights_dir)

        def read() -> tuple[ModelDirectory, Language, ModelSize]:
            directory = stores.open(stores.resolve(settings.model))
            return directory, Language.load(directory.path), size_of(directory)

        self.directory, self.language, self.size = await asyncio.to_thread(read)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._chain_undo.aclose()
        await self._undo.aclose()

    async def chain(self, needed: int) -> Chain:
        """The chain, with room for so many tokens; made if there is none that works."""
        if self._chain is not None and self._chain.broken is None and needed <= self.context:
            return self._chain
        await self._chain_undo.aclose()
        self._chain_undo, self._chain = AsyncExitStack(), None
        topology = await asyncio.to_thread(TopologyFile(self._settings.topology).read)
        around = Around(topology, self._source, self._settings.nodes_dir, self._settings.peers)
        model = ModelRef(name=self.name, revision=None, digest=self.directory.digest)
        need = Need(model, self.size, needed)
        choice = await choose_roomy(
            need, around, needed, plan=self._settings.plan, private=self._private_node
        )
        self._telling.chosen(choice)
        await self._share_directory(choice)
        self.stages = await load(
            choice.plan,
            choice.nodes,
            self.size.layers,
            self._source,
            weights_from=self._weights_from,
            on_progress=self._telling.progress,
        )
        self.context = choice.plan.context
        chain = Chain(addresses(self.stages, choice.links), self._source)
        self._chain = await self._chain_undo.enter_async_context(chain)
        return self._chain

    @property
    def name(self) -> str:
        """The model's, as other nodes show it."""
        return self.directory.path.name if Path(self._settings.model).is_dir() else self._settings.model

    async def _private_node(self) -> Node:
        if self._private is None:
            self._private = await self._undo.enter_async_context(private_node(self._source))
        return self._private

    async def _share_directory(self, choice: Choice) -> None:
        """Offer our files to the nodes that may lack them, on the addresses by which they reach us."""
        if self._share is not None:
            return
        hosts = sorted({_our_address(node) for node in choice.nodes.values()} - {""})
        if hosts:
            share = LocalShare(self._source, self.directory, hosts=hosts)
            self._share = await self._undo.enter_async_context(share)

    def _weights_from(self, node: Node) -> str:
        host = _our_address(node)
        return join_endpoint(host, self._share.port) if self._share is not None and host else ""


def _our_address(node: Node) -> str:
    """The address of this machine on the way to a node; nothing is sent."""
    host, port = split_endpoint(node.endpoint)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, port))
            return str(probe.getsockname()[0])
        except OSError:
            return ""
