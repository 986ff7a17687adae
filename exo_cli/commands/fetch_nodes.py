"""`exo fetch --plan`: every node of the plan gets its part, and the hub gives each byte once."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exo_cli.commands.fetch_nodes_view import NodesView
from exo_cli.errors import BadData, ExoError, NotFound
from exo_cli.output import Output

if TYPE_CHECKING:
    import threading

    from exo_cli.fetch.hub import HubModel, Look
    from exo_cli.fetch.order import Order
    from exo_cli.fetch.pieces import Span
    from exo_cli.fetch.seek import Sought
    from exo_cli.fetch.spread import Assignment, Target
    from exo_cli.fetch.stores import Stores
    from exo_cli.models.directory import ModelDirectory
    from exo_cli.schemas.fetch import FetchForecast
    from exo_cli.schemas.plan import Plan
    from exo_cli.schemas.topology import Node
    from exo_cli.trust.keyring import KeyringSource


DRIVER = "driver"
"""What the nodes know this machine as."""


@dataclass(slots=True)
class ByPlan:
    """One fetch for the nodes of a plan."""

    output: Output
    stores: "Stores"
    plan: "Plan"
    model: str
    node: str | None
    """Only this one."""
    nodes: "Sequence[Node]"
    keyring: "KeyringSource"
    order: "Order"
    dry_run: bool

    async def run(self) -> "FetchForecast | None":
        """The forecast of a dry run; else everything is fetched, and said."""
        from exo_cli.drive.shares import Shares
        from exo_cli.fetch.aside import in_thread
        from exo_cli.fetch.ensure import asks_no_hub, seek_whole
        from exo_cli.fetch.spread import ask_all, assign, request_of

        if not self.dry_run and await self._all_there():
            return None
        sought = await asyncio.to_thread(seek_whole, self.model, self.stores.hub)
        seen = await self._look(sought)
        digest, repository = seen.heads.digest, seen.repository
        if self.plan.model.digest and self.plan.model.digest != digest:
            raise BadData(
                f"the plan is for a model with digest {self.plan.model.digest[:16]}…, but that of "
                f"{repository.name} at {repository.commit[:12]} is {digest[:16]}…",
                hint="Make the plan again, or name the revision: org/name@revision.",
            )
        targets = self._targets(seen.heads.directory(self.stores.weights))
        if not self.dry_run and sought.path is None:
            # Headers and small files, so that the nodes get them from here and ask the hub for none.
            await in_thread(lambda stopped: self._keep(sought, stopped, seen))
        ready = [node for node in self.nodes if node.state == "ready"]
        others = [self._target(node, None, ()) for node in ready]
        held = await self._held(others, digest)
        mine = await asyncio.to_thread(self._own, digest)
        elsewhere = [span for name, spans in held.items() for span in spans] + mine
        assignments = assign(targets, held, elsewhere)
        if self.dry_run:
            return await self._forecast(seen, assignments, held, mine)
        began_s = time.monotonic()
        async with AsyncExitStack() as stack:
            shares = await stack.enter_async_context(Shares(self.keyring, self.stores, (0, 0)))
            await shares.offer(ready)
            by_name = {node.name: node for node in ready}
            jobs = []
            for each in assignments:
                neighbours = [
                    f"{other.name}={_endpoint(other)}" for other in others if other.name != each.target.name
                ]
                if address := shares.address(by_name[each.target.name]):
                    neighbours.insert(0, f"{DRIVER}={address}")
                request = request_of(
                    each,
                    repository,
                    digest,
                    neighbours,
                    hub=not asks_no_hub(self.order),
                    limit_bytes_per_s=self._share_of_limit(len(assignments)),
                )
                jobs.append((each.target, request))
            view = NodesView(self.output, self.model)
            results = await ask_all(jobs, self.keyring, view.told)
        view.say(repository.commit, digest, targets, results, time.monotonic() - began_s)
        return None

    async def _all_there(self) -> bool:
        """Said, and nobody but the nodes asked: if the headers are here and they have what they need."""
        from exo_cli.fetch.swarm import without
        from exo_cli.wire import exo_pb2 as pb

        ref = self.plan.model
        directory = await asyncio.to_thread(self._outline, ref.digest)
        if directory is None or self.model != ref.name:
            return False
        targets = self._targets(directory)
        held = await self._held(targets, ref.digest)
        if any(without(each.needs, held[each.name]) for each in targets):
            return False
        there = [pb.FetchEvent(finished=True)] * len(targets)
        NodesView(self.output, self.model).say(ref.revision or "", ref.digest, targets, there, 0.0)
        return True

    def _outline(self, digest: str) -> "ModelDirectory | None":
        """The headers of the plan's model, if they are on this machine."""
        from exo_cli.fetch.outline import directory_of
        from exo_cli.fetch.partial import Partial
        from exo_cli.models.directory import ModelDirectory

        with suppress(ExoError):
            whole = self.stores.find(digest)
            if whole is not None:
                return ModelDirectory.open(whole)
            for store in (Partial.read(root / digest) for root in self.stores.roots if digest):
                if store is not None and (found := directory_of(store)) is not None:
                    return found
        return None

    async def _look(self, sought: "Sought") -> "Look":
        from exo_cli.fetch.aside import in_thread
        from exo_cli.fetch.ensure import asks_no_hub
        from exo_cli.fetch.hub_errors import offline
        from exo_cli.fetch.offline import look_at_neighbours

        if sought.path is not None or not asks_no_hub(self.order):
            return await in_thread(lambda stopped: self._model(sought, stopped).look())
        if sought.repository is None:
            raise sought.missing()
        seen = await look_at_neighbours(sought, self.order)
        if seen is None:
            raise offline(sought, asked=[peer.name for peer in self.order.peers])
        return seen

    def _model(self, sought: "Sought", stopped: "threading.Event") -> "HubModel":
        from exo_cli.fetch.bundle import FolderClient, snapshot_contents
        from exo_cli.fetch.hub import HubModel
        from exo_cli.fetch.seek import is_commit

        pace = self.order.pace(stopped)
        if sought.path is not None and sought.repository is not None and is_commit(sought.path.name):
            # Whole in this machine's cache: the hub need not be asked.
            contents = snapshot_contents(sought.path, sought.repository)
            return HubModel(sought, self.stores, pace, client=FolderClient(sought.path, contents))
        if sought.path is not None:
            raise NotFound(
                f"{sought.path} is a folder of this machine, and no repository of the hub",
                hint="exo run sends it to the nodes as it is.",
            )
        if sought.repository is None:
            raise sought.missing()
        return HubModel(sought, self.stores, pace)

    def _keep(self, sought: "Sought", stopped: "threading.Event", seen: "Look") -> None:
        from exo_cli.fetch.hub import HubModel

        with HubModel(sought, self.stores, self.order.pace(stopped)).store(seen):
            pass

    def _targets(self, directory: "ModelDirectory") -> "list[Target]":
        from exo_cli.fetch.keeping import wanted_of
        from exo_cli.fetch.pieces import merged
        from exo_cli.fetch.ranges import layers_in_model

        count = layers_in_model(directory.config)
        stages: dict[str, list[tuple[int, int]]] = {}
        for replica in self.plan.replicas:
            for stage in replica.stages:
                for rank in stage.ranks:
                    if stage.layers not in stages.setdefault(rank.node, []):
                        stages[rank.node].append(stage.layers)
        found = []
        for name, layers in stages.items():
            node = next((each for each in self.nodes if name in (each.id, each.name)), None)
            if self.node is not None and self.node not in (name, getattr(node, "name", None)):
                continue
            if node is None or node.state != "ready":
                raise NotFound(f"the plan's node {name} is not there", hint="exo discover shows who is.")
            # Stages of several replicas: what lies between them as well.
            low, high = min(first for first, _ in layers), max(last for _, last in layers)
            needs = merged(wanted_of(directory, (low, high), count))
            found.append(self._target(node, (low, high), needs))
        if not found:
            raise NotFound(f"the plan has no node {self.node}", hint="Name one that it has.")
        return found

    def _target(self, node: "Node", layers: tuple[int, int] | None, needs: "Sequence[Span]") -> "Target":
        from exo_cli.cluster.pairs import split_endpoint
        from exo_cli.fetch.spread import Target

        host, port = split_endpoint(node.endpoint)
        return Target(node.name, host, port, layers, tuple(needs))

    async def _held(self, nodes: "Sequence[Target]", digest: str) -> "dict[str, list[Span]]":
        """What each of them has by now; one that does not say has nothing."""
        from exo_cli.fetch.spread import have

        async def held(node: "Target") -> "list[Span]":
            try:
                return await have(node, digest, self.keyring)
            except ExoError as error:
                self.output.detail(error.message)
                return []

        found = await asyncio.gather(*map(held, nodes))
        return {node.name: spans for node, spans in zip(nodes, found, strict=True)}

    def _own(self, digest: str) -> "list[Span]":
        from exo_cli.fetch.names import is_weights
        from exo_cli.fetch.pieces import Span

        held = self.stores.held(digest)
        files = held.files.values() if held is not None else ()
        return [Span(file.name, *each) for file in files if is_weights(file.name) for each in file.ranges]

    def _share_of_limit(self, count: int) -> int | None:
        limit = self.order.limit_bytes_per_s
        return None if limit is None else max(1, limit // count)

    async def _forecast(
        self,
        seen: "Look",
        assignments: "Sequence[Assignment]",
        held: "Mapping[str, Sequence[Span]]",
        mine: "Sequence[Span]",
    ) -> "FetchForecast":
        from exo_cli.fetch.ensure import asks_no_hub
        from exo_cli.fetch.meter import HUB
        from exo_cli.fetch.spread import free_bytes, request_of, sources_of
        from exo_cli.schemas.fetch import FetchForecast, FetchShare

        others = {DRIVER: mine} if mine else {}
        sources = sources_of(assignments, held, others, hub=not asks_no_hub(self.order))
        shares = []
        for each in assignments:
            request = request_of(
                each, seen.repository, seen.heads.digest, (), hub=False, limit_bytes_per_s=None
            )
            try:
                free = await free_bytes(each.target, request, self.keyring)
            except ExoError as error:
                self.output.detail(error.message)
                free = None
            by_source, lacking = sources[each.target.name]
            shares.append(
                FetchShare(
                    node=each.target.name,
                    layers=each.target.layers,
                    total_bytes=sum(span.size for span in each.target.needs),
                    here_bytes=each.here_bytes,
                    hub_bytes=by_source.get(HUB, 0),
                    neighbour_bytes=sum(size for source, size in by_source.items() if source != HUB),
                    by_source=by_source,
                    lacking_bytes=lacking,
                    free_bytes=free,
                )
            )
        return FetchForecast(
            model=self.model,
            revision=seen.repository.commit,
            digest=seen.heads.digest,
            layers_in_model=seen.layers_in_model,
            metadata_bytes=seen.heads.fetched_bytes,
            hub_bytes=sum(share.hub_bytes for share in shares),
            shares=tuple(shares),
        )


def _endpoint(target: "Target") -> str:
    from exo_cli.cluster.pairs import join_endpoint

    return join_endpoint(target.host, target.port)
