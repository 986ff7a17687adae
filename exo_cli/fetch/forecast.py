"""What a fetch for this machine would cost, by source, before anything is spent.

Of the hub only metadata is asked, and kept for the fetch; neighbours are asked what they hold. Knows
nothing of how it is shown, nor of plans.
"""

import asyncio
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from exo_cli.fetch.aside import in_thread
from exo_cli.fetch.ensure import asks_no_hub, found_here, seek_whole
from exo_cli.fetch.hub import HubModel, Look
from exo_cli.fetch.hub_errors import offline
from exo_cli.fetch.meter import HUB
from exo_cli.fetch.order import Order
from exo_cli.fetch.pieces import Span
from exo_cli.fetch.room import free_bytes
from exo_cli.fetch.seek import Sought
from exo_cli.fetch.stores import Stores
from exo_cli.schemas.fetch import FetchForecast, FetchShare

if TYPE_CHECKING:
    from exo_cli.fetch.offline import Seen

THIS_MACHINE: Final = "this machine"


async def look(name: str, stores: Stores, order: Order) -> FetchForecast:
    """For a model, or some of its layers."""
    sought = await asyncio.to_thread(seek_whole, name, stores.hub)
    here = await asyncio.to_thread(found_here, sought, stores, order)
    if here is not None:
        share = _share(stores, order, here.total_bytes, 0, {}, 0)
        return _forecast(name, here.commit, here.digest, 0, 0, share)
    if sought.repository is None:
        raise sought.missing()
    if asks_no_hub(order):
        return await _from_neighbours(name, sought, stores, order)

    def work(stopped: threading.Event) -> tuple[Look, list[Span]]:
        model = HubModel(sought, stores, order.pace(stopped))
        seen = model.look(order.layers)
        return seen, model.missing(seen)

    seen, gaps = await in_thread(work)
    from_each: Mapping[str, int] = {}
    from_hub = sum(span.size for span in gaps)
    if order.peers and order.keyring is not None and gaps:
        # Only now: what speaks to neighbours takes as long to start as all the rest.
        from exo_cli.fetch.around import held_by, shared_out
        from exo_cli.wire import exo_pb2 as pb

        ref = pb.ModelRef(digest=seen.heads.digest)
        held = await held_by(order.peers, ref, order.keyring, seen.repository.etags)
        from_each, from_hub = shared_out(gaps, {peer.name: spans for peer, spans in held.items()})
    share = _share(stores, order, seen.total_bytes, from_hub, from_each, 0)
    commit, digest = seen.repository.commit, seen.heads.digest
    return _forecast(name, commit, digest, seen.layers_in_model, seen.heads.fetched_bytes, share)


async def _from_neighbours(name: str, sought: Sought, stores: Stores, order: Order) -> FetchForecast:
    seen: Seen | None = None
    if order.peers:
        from exo_cli.fetch.offline import seen_at_neighbours

        seen = await seen_at_neighbours(sought, stores, order)
    if seen is None:
        raise offline(sought, asked=[peer.name for peer in order.peers])
    from exo_cli.fetch.around import shared_out

    held: Mapping[str, Sequence[Span]] = {peer.name: spans for peer, spans in seen.held.items()}
    from_each, nobodys = shared_out(seen.gaps, held)
    share = _share(stores, order, seen.total_bytes, 0, from_each, nobodys)
    return _forecast(name, seen.ref.revision, seen.ref.digest, seen.layers_in_model, 0, share)


def _share(
    stores: Stores,
    order: Order,
    total_bytes: int,
    hub_bytes: int,
    from_each: Mapping[str, int],
    nobodys: int,
) -> FetchShare:
    neighbour_bytes = sum(from_each.values())
    return FetchShare(
        node=THIS_MACHINE,
        layers=order.layers,
        total_bytes=total_bytes,
        here_bytes=total_bytes - hub_bytes - neighbour_bytes - nobodys,
        hub_bytes=hub_bytes,
        neighbour_bytes=neighbour_bytes,
        by_source={HUB: hub_bytes, **from_each} if hub_bytes else dict(from_each),
        lacking_bytes=nobodys,
        free_bytes=free_bytes(stores.hub),
    )


def _forecast(
    name: str, commit: str, digest: str, count: int, metadata_bytes: int, share: FetchShare
) -> FetchForecast:
    return FetchForecast(
        model=name,
        revision=commit,
        digest=digest,
        layers_in_model=count,
        metadata_bytes=metadata_bytes,
        hub_bytes=share.hub_bytes,
        shares=(share,),
    )
