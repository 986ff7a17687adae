"""A model made ready to answer, whatever that takes: found, described, placed, loaded, connected.

The steps are told to `Telling`, whoever that is. A chain that broke is made anew for the next request,
and for the one that runs (`recovery`). Knows nothing of terminals and of what is asked.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal

from msgspec import structs

from exo_cli.cluster.facts import host_id
from exo_cli.cluster.remote import shards
from exo_cli.cluster.topology_file import TopologyFile
from exo_cli.drive.chain import Chain, Recover
from exo_cli.drive.choose import Around, Choice, choose_roomy
from exo_cli.drive.load import LoadedStage, Progress, addresses, load
from exo_cli.drive.numerics import Numerics, numerics_of
from exo_cli.drive.private import private_node
from exo_cli.drive.recover import Lost, blame, who
from exo_cli.drive.shares import Shares
from exo_cli.drive.size import ModelSize, size_of
from exo_cli.drive.split import Need
from exo_cli.errors import DoesNotFit, ExoError, TryAgain, Unavailable, hinting
from exo_cli.fetch.ensure import ensure
from exo_cli.fetch.meter import Moved
from exo_cli.fetch.stores import Stores
from exo_cli.models.directory import ModelDirectory
from exo_cli.models.random_model import RandomModel
from exo_cli.schemas.plan import ModelRef, Plan
from exo_cli.schemas.topology import Node
from exo_cli.text.chat import Language
from exo_cli.trust.keyring import KeyringSource

MENDS: Final = 2
"""While one chain is mended, another of its nodes may fail; then it is looked once more who is left."""
PAUSE_S: Final = 0.8
"""Until nodes have cleared away what is left of a request; then they are asked again."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a person may say about where a model runs, and where this machine keeps its files."""

    model: str | RandomModel
    """A name or a directory; or random weights, which every node makes for itself."""
    weights_dir: Path
    nodes_dir: Path
    topology: Path
    plan: Plan | None = None
    """One for another model with as many layers will do where the weights are random."""
    peers: tuple[tuple[str, int], ...] = ()
    nodes: int | None = None
    """How many nodes to begin on; an answer whose node is lost goes on on what is left."""
    data_ports: tuple[int, int] = (0, 0)
    """The TCP ports on which our files may be offered, both included; (0, 0): any free one."""
    numerics: Numerics | None = None
    """None: `fast` where every node of a chain offers it, else `exact`; a plan may say which."""
    kv_bits: Literal[8] | None = None
    """Of a number in the caches; None: as the plan says, or as it is computed."""
    alone: bool = False
    """On a node of our own, whoever answers."""
    private: tuple[str, ...] = ()
    """Further options of serve-shard for that node."""


@dataclass(frozen=True, slots=True)
class Telling:
    """Who hears what is going on."""

    chosen: Callable[[Choice], None] = lambda choice: None
    progress: Callable[[Progress], None] = lambda progress: None
    downloaded: Callable[[Moved], None] = lambda progress: None
    loaded: Callable[[tuple[LoadedStage, ...]], None] = lambda stages: None
    """The chain is there."""
    recovered: Callable[[str], None] = lambda said: None
    """An answer goes on elsewhere: why, and where."""


class Driver:
    """`async with` it; `chain` then gives a chain in working order."""

    def __init__(self, settings: Settings, source: KeyringSource, telling: Telling | None = None) -> None:
        self.stages: tuple[LoadedStage, ...] = ()
        self.context = 0
        self.concurrency = 1
        """How many requests of the length that is asked for are to have room; for chains made from now on."""
        self._settings = settings
        self._source = source
        self._telling = telling or Telling()
        self._undo = AsyncExitStack()
        self._chain_undo = AsyncExitStack()
        self._chain: Chain | None = None
        self._met: dict[str, Node] = {}
        self._shares: Shares | None = None
        self._mending = asyncio.Lock()
        self._private: Node | None = None
        self._private_undo = AsyncExitStack()
        self._random = settings.model if isinstance(settings.model, RandomModel) else None
        self.directory: ModelDirectory
        self.language: Language
        """Of a model in words; random weights have none."""
        self.size: ModelSize

    async def __aenter__(self) -> "Driver":
        if self._random is not None:
            self.directory = await asyncio.to_thread(self._random.directory)
            self.size = size_of(self.directory)
            return self
        stores = Stores(self._settings.weights_dir)

        def read(path: Path) -> tuple[ModelDirectory, Language, ModelSize]:
            directory = stores.open(path)
            return directory, Language.load(directory.path), size_of(directory)

        with hinting("Fetch the model again, or name another one."):
            path = await ensure(str(self._settings.model), stores, on_progress=self._telling.downloaded)
            self.directory, self.language, self.size = await asyncio.to_thread(read, path)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._chain_undo.aclose()
        await self._private_undo.aclose()
        await self._undo.aclose()

    async def chain(self, needed: int) -> Chain:
        """The chain, with room for so many tokens; made if there is none that works."""
        async with self._mending:
            there = self._chain
            if there is not None and there.broken is None and not there.failed and needed <= self.context:
                return there
            return await self._make(needed, self._telling.chosen)

    def recovery(self, chain: Chain, needed: int) -> Recover:
        """How one request, which runs on `chain`, finds another one when that fails."""
        used = chain

        async def recover(error: ExoError) -> Chain:
            nonlocal used
            async with self._mending:
                there = self._chain
                if there is None or there is used or there.broken is not None or there.failed:
                    there = await self._mend(error, needed)
                used = there
                return used

        return recover

    @property
    def name(self) -> str:
        """The model's, as other nodes show it."""
        model = self._settings.model
        if isinstance(model, RandomModel):
            return model.name
        return self.directory.path.name if Path(model).is_dir() else model

    # -- making a chain --------------------------------------------------------------------------

    async def _make(
        self,
        needed: int,
        chosen: Callable[[Choice], None],
        avoid: frozenset[str] | None = None,
        *,
        on_failed: Callable[[Node], None] = lambda node: None,
    ) -> Chain:
        """Choose, load, connect. With `avoid`: among the nodes that are known already, without those."""
        await self._chain_undo.aclose()
        self._chain_undo, self._chain = AsyncExitStack(), None
        topology = await asyncio.to_thread(TopologyFile(self._settings.topology).read)
        around = Around(
            topology,
            self._source,
            self._settings.nodes_dir,
            self._settings.peers,
            known=()
            if avoid is None
            else tuple({**{node.id: node for node in shards(topology)}, **self._met}.values()),
            avoid=avoid or frozenset(),
            alone=self._settings.alone,
        )
        model = ModelRef(name=self.name, revision=None, digest=self.directory.digest)
        nodes = self._settings.nodes if avoid is None else None
        kv_bits = self._settings.kv_bits
        need = Need(
            model,
            self.size,
            needed,
            concurrency=self.concurrency,
            kv_bits=kv_bits,
            nodes=nodes,
            exact=self._settings.numerics == "exact",
        )
        plan = self._settings.plan
        if plan is not None and self._random is not None:
            # It says where the layers go; whose they are to be makes no difference.
            plan = structs.replace(plan, model=model)
        choice = await choose_roomy(need, around, needed, plan=plan, private=self._private_node)
        chosen(choice)
        if not choice.alone:
            self._met.update(choice.nodes)
        if self._random is None:
            await self._offer(choice)
        self.stages = await self._load(choice, on_failed)
        self._telling.loaded(self.stages)
        self.context = choice.plan.context
        chain = Chain(addresses(self.stages, choice.links), self._source)
        self._chain = await self._chain_undo.enter_async_context(chain)
        return self._chain

    async def _offer(self, choice: Choice) -> None:
        """Our own files, to the nodes that may lack them."""
        if self._shares is None:
            mine = Shares(self._source, self.directory, self._settings.data_ports)
            self._shares = await self._undo.enter_async_context(mine)
        await self._shares.offer(choice.nodes.values())

    async def _load(self, choice: Choice, on_failed: Callable[[Node], None]) -> tuple[LoadedStage, ...]:
        failed: list[Node] = []
        work = partial(
            load,
            choice.plan,
            choice.nodes,
            self.size.layers,
            self._source,
            weights_from=self._shares.address if self._shares is not None else lambda node: "",
            random=self._random,
            numerics=numerics_of(choice, self._settings.numerics),
            on_progress=self._telling.progress,
            on_failed=failed.append,
        )
        try:
            return await work()
        except TryAgain:
            # A node learns only now and then that what it holds is idle, and may be let go.
            await asyncio.sleep(PAUSE_S)
            failed.clear()
            return await work()
        finally:
            for node in failed:
                on_failed(node)

    async def _private_node(self) -> Node:
        if self._private is None:
            made = private_node(self._source, options=self._settings.private)
            self._private = await self._private_undo.enter_async_context(made)
        return self._private

    # -- making another one ----------------------------------------------------------------------

    async def _mend(self, error: ExoError, needed: int) -> Chain:
        """A chain on what is left, and a word about it; where there is none, why, and who failed."""
        if self._chain is not None:
            self._chain.abandon(error)
        await self._chain_undo.aclose()
        if isinstance(error, TryAgain):
            await asyncio.sleep(PAUSE_S)
        lost: dict[str, Lost] = {}
        said, problem = error.message, error
        for _ in range(MENDS):
            if not isinstance(error, TryAgain):
                found = await blame(self.stages, (self.directory.digest, self.name), self._source)
                lost.update({each.node.id: each for each in found})
                said = ", ".join(each.said(self._private) for each in lost.values()) or said
            await self._drop_private(lost)
            choices: list[Choice] = []
            try:
                chain = await self._elsewhere(needed, choices.append, list(lost.values()))
            except Unavailable as again:
                problem = again
            except ExoError as none:
                problem = none
                break
            else:
                choice = choices[-1]
                on = "this machine" if choice.alone else who(choice.plan, choice.nodes, host_id())
                self._telling.recovered(f"{said}; going on on {on}")
                return chain
        tried = "the plan's nodes were tried again" if self._settings.plan else "no other nodes can go on"
        raise Unavailable(f"{said}, and {tried}: {problem.message}", hint=problem.hint) from problem

    async def _drop_private(self, lost: Mapping[str, Lost]) -> None:
        """Our own node, if that is gone: the next one is another."""
        if self._private is not None and self._private.id in lost and lost[self._private.id].gone:
            await self._private_undo.aclose()
            self._private_undo, self._private = AsyncExitStack(), None

    async def _elsewhere(self, needed: int, chosen: Callable[[Choice], None], lost: Sequence[Lost]) -> Chain:
        if self._settings.plan is not None:
            # Somebody said where: an engine that ended is loaded again there, and nowhere else.
            return await self._make(needed, chosen)
        gone = frozenset(each.node.id for each in lost if each.gone)
        failed = frozenset(each.node.id for each in lost)
        try:
            return await self._among_the_willing(needed, chosen, failed)
        except (DoesNotFit, Unavailable, TryAgain):
            if failed == gone:
                raise
        return await self._among_the_willing(needed, chosen, gone)

    async def _among_the_willing(
        self, needed: int, chosen: Callable[[Choice], None], avoid: frozenset[str]
    ) -> Chain:
        """A node that does not do its part of a load is left out the next time."""
        unwilling: set[str] = set()
        while True:
            before = len(unwilling)
            try:
                return await self._make(
                    needed, chosen, avoid | unwilling, on_failed=lambda node: unwilling.add(node.id)
                )
            except ExoError:
                if len(unwilling) == before:
                    raise
