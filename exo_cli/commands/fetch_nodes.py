"""`exo fetch --plan`: every node of the plan gets its part, and the hub gives each byte once."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from exo_cli.commands.fetch_view import Bars, event
from exo_cli.errors import BadData, ExoError, NotFound
from exo_cli.output import Output

if TYPE_CHECKING:
    from exo_cli.fetch.hub import HubModel, Look
    from exo_cli.fetch.order import Order
    from exo_cli.fetch.pieces import Span
    from exo_cli.fetch.seek import Sought
    from exo_cli.fetch.spread import Assignment, Target
    from exo_cli.fetch.stores import Stores
    from exo_cli.schemas.fetch import FetchForecast
    from exo_cli.schemas.plan import Plan
    from exo_cli.schemas.topology import Node
    from exo_cli.trust.keyring import KeyringSource
    from exo_cli.wire import exo_pb2 as pb


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
    _bars: dict[str, Bars] = field(default_factory=dict)
    _came: dict[str, dict[str, int]] = field(default_factory=dict)

    async def run(self) -> "FetchForecast | None":
        """The forecast of a dry run; else everything is fetched, and said."""
        from exo_cli.drive.shares import Shares
        from exo_cli.fetch.aside import in_thread
        from exo_cli.fetch.ensure import seek_whole
        from exo_cli.fetch.spread import ask_all, assign, have, request_of

        sought = await asyncio.to_thread(seek_whole, self.model, self.stores.hub)
        seen = await in_thread(lambda stopped: self._model(sought, stopped).look())
        digest, repository = seen.heads.digest, seen.repository
        if self.plan.model.digest and self.plan.model.digest != digest:
            raise BadData(
                f"the plan is for a model with digest {self.plan.model.digest[:16]}…, but that of "
                f"{repository.name} at {repository.commit[:12]} is {digest[:16]}…",
                hint="Make the plan again, or name the revision: org/name@revision.",
            )
        targets = self._targets(seen)
        if not self.dry_run and sought.path is None:
            # Headers and small files, so that the nodes get them from here and ask the hub for none.
            await in_thread(lambda stopped: self._keep(self._model(sought, stopped), seen))
        ready = [node for node in self.nodes if node.state == "ready"]
        others = [self._target(node, None, ()) for node in ready]
        held = dict(
            zip(
                (each.name for each in others),
                await asyncio.gather(*(self._held(have(each, digest, self.keyring)) for each in others)),
                strict=True,
            )
        )
        mine = await asyncio.to_thread(self._own, digest)
        elsewhere = [span for name, spans in held.items() for span in spans] + mine
        assignments = assign(targets, held, elsewhere)
        if self.dry_run:
            return await self._forecast(seen, assignments)
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
                    neighbours.insert(0, f"driver={address}")
                request = request_of(
                    each,
                    repository,
                    digest,
                    neighbours,
                    hub=not self.order.offline,
                    limit_bytes_per_s=self._share_of_limit(len(assignments)),
                )
                jobs.append((each.target, request))
            results = await ask_all(jobs, self.keyring, self._told)
        self._say(seen, assignments, results, time.monotonic() - began_s)
        return None

    def _model(self, sought: "Sought", stopped: object) -> "HubModel":
        import threading

        from exo_cli.fetch.bundle import FolderClient, snapshot_contents
        from exo_cli.fetch.hub import HubModel
        from exo_cli.fetch.hub_errors import offline
        from exo_cli.fetch.seek import is_commit

        assert isinstance(stopped, threading.Event)
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
        if self.order.offline:
            raise offline(sought)
        return HubModel(sought, self.stores, pace)

    def _keep(self, model: "HubModel", seen: "Look") -> None:
        with model.store(seen):
            pass

    def _targets(self, seen: "Look") -> "list[Target]":
        from exo_cli.fetch.keeping import wanted_of
        from exo_cli.fetch.pieces import merged

        directory = seen.heads.directory(self.stores.weights)
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
            needs = merged(wanted_of(directory, (low, high), seen.layers_in_model))
            found.append(self._target(node, (low, high), needs))
        if not found:
            raise NotFound(f"the plan has no node {self.node}", hint="Name one that it has.")
        return found

    def _target(self, node: "Node", layers: tuple[int, int] | None, needs: "Sequence[Span]") -> "Target":
        from exo_cli.cluster.pairs import split_endpoint
        from exo_cli.fetch.spread import Target

        host, port = split_endpoint(node.endpoint)
        return Target(node.name, host, port, layers, tuple(needs))

    async def _held(self, asking: "object") -> "list[Span]":
        from collections.abc import Awaitable

        assert isinstance(asking, Awaitable)
        try:
            found: list[Span] = await asking
        except ExoError as error:
            self.output.detail(error.message)
            return []
        return found

    def _own(self, digest: str) -> "list[Span]":
        from exo_cli.fetch.names import is_weights
        from exo_cli.fetch.pieces import Span

        held = self.stores.held(digest)
        files = held.files.values() if held is not None else ()
        return [Span(file.name, *each) for file in files if is_weights(file.name) for each in file.ranges]

    def _share_of_limit(self, count: int) -> int | None:
        limit = self.order.limit_bytes_per_s
        return None if limit is None else max(1, limit // count)

    def _told(self, target: "Target", said: "pb.FetchEvent") -> None:
        from exo_cli.fetch.meter import Moved

        bars = self._bars.setdefault(target.name, Bars(self.output, target.name))
        if said.error:
            bars.note(f"{target.name}: {said.error}")
        elif said.moved:
            self._came.setdefault(target.name, {})[said.source] = said.moved
        elif not said.finished:
            moved = Moved(
                self.model, said.path, said.source, said.all_done, said.all_total, said.done, said.total
            )
            bars.moved(moved)

    async def _forecast(self, seen: "Look", assignments: "Sequence[Assignment]") -> "FetchForecast":
        from exo_cli.fetch.spread import free_bytes, request_of
        from exo_cli.schemas.fetch import FetchForecast, FetchShare

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
            shares.append(
                FetchShare(
                    node=each.target.name,
                    layers=each.target.layers,
                    total_bytes=sum(span.size for span in each.target.needs),
                    here_bytes=each.here_bytes,
                    hub_bytes=each.hub_bytes,
                    neighbour_bytes=each.neighbour_bytes,
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

    def _say(
        self,
        seen: "Look",
        assignments: "Sequence[Assignment]",
        results: "Sequence[pb.FetchEvent | ExoError]",
        elapsed_s: float,
    ) -> None:
        from exo_cli.schemas.fetch import Fetched
        from exo_cli.views.figures import bytes_text

        failed: list[ExoError] = []
        for each, result in zip(assignments, results, strict=True):
            name = each.target.name
            if isinstance(result, ExoError):
                failed.append(result)
                continue
            came = {source: size for source, size in self._came.get(name, {}).items() if size}
            if self.output.json:
                said = Fetched(
                    node=name,
                    model=self.model,
                    revision=seen.repository.commit,
                    digest=seen.heads.digest,
                    path=result.path,
                    layers=each.target.layers,
                    total_bytes=sum(span.size for span in each.target.needs),
                    by_source=came,
                    elapsed_s=round(elapsed_s, 3),
                )
                event(self.output, said)
            else:
                text = ", ".join(f"{bytes_text(size)} from {source}" for source, size in came.items())
                self.output.line(f"{name}: {text or 'everything was there'}")
        for error in failed[1:]:
            self.output.warning(error.message)
        if failed:
            raise failed[0]


def _endpoint(target: "Target") -> str:
    from exo_cli.cluster.pairs import join_endpoint

    return join_endpoint(target.host, target.port)
