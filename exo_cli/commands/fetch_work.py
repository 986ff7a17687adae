"""The work of `exo fetch MODEL`: on this machine, or on every node of a plan."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from exo_cli.commands.fetch_view import Bars, event
from exo_cli.commands.session import Session
from exo_cli.errors import Exit
from exo_cli.output import Output

if TYPE_CHECKING:
    from exo_cli.fetch.hub import Brought
    from exo_cli.fetch.order import Order
    from exo_cli.fetch.stores import Stores
    from exo_cli.schemas.fetch import FetchForecast, FetchShare
    from exo_cli.schemas.topology import Node


@dataclass(frozen=True, slots=True)
class Work:
    """One call."""

    session: Session
    stores: "Stores"
    model: str | None
    layers: tuple[int, int] | None
    plan: Path | None
    node: str | None
    dry_run: bool
    offline: bool
    limit_bytes_per_s: int | None
    connections: int
    insecure: bool

    def run(self) -> int:
        import asyncio

        if self.plan is not None:
            asyncio.run(self._by_plan(self.plan))
        elif self.dry_run:
            asyncio.run(self._look(self.model or ""))
        else:
            asyncio.run(self._here(self.model or ""))
        return Exit.OK

    def _order(self, bars: Bars) -> "Order":
        from dataclasses import replace

        from exo_cli.fetch.order import Order

        order = Order(
            layers=self.layers,
            offline=self.offline,
            limit_bytes_per_s=self.limit_bytes_per_s,
            connections=self.connections,
            on_wait=bars.waits,
            note=bars.note,
        )
        if not self.session.topology.exists():
            return order
        from exo_cli.cluster.pairs import is_unix, split_endpoint
        from exo_cli.fetch.swarm import Peer
        from exo_cli.trust.keyring import KeyringSource

        places = [(node.name, *split_endpoint(node.endpoint)) for node in self._nodes()]
        peers = [Peer(name, host, port) for name, host, port in places if not is_unix(host)]
        return replace(order, peers=peers, keyring=KeyringSource(self.insecure) if peers else None)

    def _nodes(self) -> "list[Node]":
        from exo_cli.cluster.remote import shards
        from exo_cli.cluster.topology_file import TopologyFile

        return shards(TopologyFile(self.session.topology).read())

    async def _here(self, model: str) -> None:
        from exo_cli.fetch.ensure import fetch

        bars, began_s = Bars(self.session.output), time.monotonic()
        brought = await fetch(model, self.stores, self._order(bars), on_progress=bars.moved)
        fetched(self.session.output, None, model, self.layers, brought, time.monotonic() - began_s)

    async def _look(self, model: str) -> None:
        from exo_cli.fetch.forecast import look

        bars = Bars(self.session.output)
        forecast = await look(model, self.stores, self._order(bars))
        show_forecast(self.session.output, forecast)

    async def _by_plan(self, path: Path) -> None:
        from exo_cli.commands.fetch_nodes import ByPlan
        from exo_cli.drive.plans import read_plan
        from exo_cli.trust.keyring import KeyringSource

        plan = read_plan(path)
        work = ByPlan(
            output=self.session.output,
            stores=self.stores,
            plan=plan,
            model=self.model or plan.model.name,
            node=self.node,
            nodes=self._nodes(),
            keyring=KeyringSource(self.insecure),
            order=self._order(Bars(self.session.output)),
            dry_run=self.dry_run,
        )
        forecast = await work.run()
        if forecast is not None:
            show_forecast(self.session.output, forecast)


def fetched(
    output: Output,
    node: str | None,
    model: str,
    layers: tuple[int, int] | None,
    brought: "Brought",
    elapsed_s: float,
) -> None:
    """The last words."""
    from exo_cli.schemas.fetch import Fetched
    from exo_cli.views.figures import bytes_text

    if output.json:
        said = Fetched(
            node=node,
            model=model,
            revision=brought.commit,
            digest=brought.digest,
            path=str(brought.path),
            layers=layers,
            total_bytes=brought.total_bytes,
            by_source=brought.by_source,
            elapsed_s=round(elapsed_s, 3),
        )
        event(output, said)
        return
    came = {source: size for source, size in brought.by_source.items() if size}
    if came:
        where = ", ".join(f"{bytes_text(size)} from {source}" for source, size in came.items())
        output.note(f"fetched {where}, in {elapsed_s:.1f} s")
    else:
        output.detail("everything was here")
    output.line(str(brought.path))


def show_forecast(output: Output, forecast: "FetchForecast") -> None:
    """What it would cost, a row a machine."""
    from exo_cli.views.figures import bytes_text

    if output.json:
        event(output, forecast)
        return
    rows = []
    for share in forecast.shares:
        layers = "all" if share.layers is None else f"{share.layers[0]}-{share.layers[1] - 1}"
        free = bytes_text(share.free_bytes) if share.free_bytes is not None else "-"
        figures = (share.total_bytes, share.here_bytes, share.hub_bytes)
        rows.append((share.node, layers, *map(bytes_text, figures), _from_neighbours(share), free))
    output.rows(("node", "layers", "wanted", "here", "from hub", "from neighbours", "disk free"), rows)
    output.note(f"{bytes_text(forecast.hub_bytes)} would come from the hub; nothing was fetched")
    for share in forecast.shares:
        if share.lacking_bytes:
            output.warning(
                f"{bytes_text(share.lacking_bytes)} for {share.node} are to be had from nobody here"
            )


def _from_neighbours(share: "FetchShare") -> str:
    """How much, and from whom."""
    from exo_cli.fetch.meter import HUB
    from exo_cli.views.figures import bytes_text

    each = [f"{name} {bytes_text(size)}" for name, size in share.by_source.items() if name != HUB]
    return ", ".join(each) or bytes_text(0)
