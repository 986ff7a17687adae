"""A model for this machine from neighbours that hold some of it, and from the hub what none of them does."""

import asyncio
import threading
from contextlib import ExitStack

from exo_cli.fetch.around import held_by
from exo_cli.fetch.aside import in_thread
from exo_cli.fetch.hub import Brought, HubModel
from exo_cli.fetch.hub_client import HubClient
from exo_cli.fetch.keeping import finished
from exo_cli.fetch.meter import HUB, Meter, OnMoved
from exo_cli.fetch.order import Order
from exo_cli.fetch.seek import Sought
from exo_cli.fetch.stores import Stores
from exo_cli.fetch.swarm import without
from exo_cli.fetch.together import Sources, complete
from exo_cli.wire import exo_pb2 as pb


async def from_several(sought: Sought, stores: Stores, order: Order, told: OnMoved) -> Brought | None:
    """None where no neighbour has anything of it."""
    assert order.keyring is not None

    def model(stopped: threading.Event) -> HubModel:
        return HubModel(sought, stores, order.pace(stopped), told)

    seen = await in_thread(lambda stopped: model(stopped).look(order.layers))
    repository = seen.repository
    ref = pb.ModelRef(name=repository.name, revision=repository.commit, digest=seen.heads.digest)
    missing = await asyncio.to_thread(model(threading.Event()).missing, seen)
    held = await held_by(order.peers, ref, order.keyring, repository.etags)
    if not held:
        return None
    own = without(missing, [span for spans in held.values() for span in spans])
    client = HubClient(sought).pinned(repository.commit)
    sources = Sources(list(held), order.keyring, client, order.pace, order.limit)
    with ExitStack() as stack:
        writer = await in_thread(lambda stopped: stack.enter_context(model(stopped).store(seen)))
        meter = Meter(repository.name, seen.heads.small, seen.wanted, writer, told)
        meter.count(HUB, seen.heads.fetched_bytes)
        await complete(writer, ref, repository, seen.wanted, sources, meter, note=order.note, own=own)
        path, digest = await asyncio.to_thread(finished, writer, stores.hub, sought.revision)
    return Brought(path, digest, repository.commit, seen.total_bytes, meter.by_source)
