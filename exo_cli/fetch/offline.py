"""A model for this machine from neighbours alone: what there is to fetch from without the internet.

The neighbours say which model a name stands for. What comes is compared with the model's digest, with the
digests of its pieces, and with the hub's sums as far as a neighbour knows them. Knows nothing of how a
machine came by its neighbours.
"""

import asyncio
import hashlib
from dataclasses import dataclass
from pathlib import Path

from exo_cli.errors import NotFound
from exo_cli.fetch.around import find, held_by
from exo_cli.fetch.heads import Heads
from exo_cli.fetch.hub import Brought, Look
from exo_cli.fetch.hub_client import HubFile, Repository
from exo_cli.fetch.keeping import wanted_of
from exo_cli.fetch.meter import Meter, OnMoved
from exo_cli.fetch.names import CONFIG, is_small
from exo_cli.fetch.order import Order
from exo_cli.fetch.outline import first_listing, outlined, read_small
from exo_cli.fetch.partial import Partial
from exo_cli.fetch.pieces import Span
from exo_cli.fetch.pull import writing
from exo_cli.fetch.ranges import layers_in_model
from exo_cli.fetch.room import check_space
from exo_cli.fetch.seek import Sought, is_commit
from exo_cli.fetch.source import Listing, Source
from exo_cli.fetch.stores import Stores
from exo_cli.fetch.swarm import Peer
from exo_cli.fetch.together import Sources, complete
from exo_cli.wire import exo_pb2 as pb


async def from_neighbours(sought: Sought, stores: Stores, order: Order, told: OnMoved) -> Brought | None:
    """None where no neighbour knows a model of this name."""
    if order.keyring is None:
        return None
    ref = await find(sought, order.peers, order.keyring)
    if ref is None:
        return None
    peers = list(await held_by(order.peers, ref, order.keyring, {}))
    async with writing(stores.weights, ref) as writer:
        directory = await outlined(writer, ref, peers, order.keyring)
        wanted = wanted_of(directory, order.layers, layers_in_model(directory.config))
        todo = sum(gap.size for gap in writer.view.missing(wanted))
        await asyncio.to_thread(check_space, writer.path, todo)
        small = {file.path: b"" for file in writer.view.map.files if is_small(file.path)}
        meter = Meter(ref.name, small, wanted, writer, told)
        sources = Sources(peers, order.keyring, None, order.pace, order.limit)
        repository = Repository(ref.name, ref.revision, {})
        await complete(writer, ref, repository, wanted, sources, meter, note=order.note, own=())
        total = sum(span.size for span in wanted)
        return Brought(writer.path, ref.digest, ref.revision, total, meter.by_source)


async def look_at_neighbours(sought: Sought, order: Order) -> Look | None:
    """What the hub would list, from neighbours that know its sums; None where nobody knows the model."""
    if order.keyring is None:
        return None
    ref = await find(sought, order.peers, order.keyring)
    if ref is None:
        return None
    peers = list(await held_by(order.peers, ref, order.keyring, {}))

    async def taken(source: Source, listing: Listing) -> tuple[Listing, dict[str, bytes]]:
        return listing, await read_small(source, listing)

    listing, small = await first_listing(peers, ref, order.keyring, taken)
    names = {**{name: hashlib.sha256(data).hexdigest() for name, data in small.items()}, **listing.sums}
    unknown = next((name for name in listing.sizes if name not in names), None)
    if unknown is not None or not is_commit(ref.revision):
        raise NotFound(
            f"the nodes have {ref.name}, but do not know what the hub calls {unknown or 'its commit'}",
            hint="Without --offline the hub is asked. exo run sends what they have to each other as it is.",
        )
    headers = {name: header for name, (header, _) in listing.headers.items()}
    beginnings = {name: data for name, (_, data) in listing.headers.items()}
    heads = Heads(ref.digest, small, headers, beginnings, 0)
    files = {name: HubFile(name, size, names[name]) for name, size in listing.sizes.items()}
    directory = heads.directory(Path(ref.name))
    count = layers_in_model(directory.config)
    repository = Repository(ref.name, ref.revision, files)
    return Look(repository, heads, count, None, wanted_of(directory, None, count))


@dataclass(frozen=True, slots=True)
class Seen:
    """What neighbours hold of a model, before anything of it is fetched."""

    ref: pb.ModelRef
    layers_in_model: int
    total_bytes: int
    gaps: list[Span]
    held: dict[Peer, list[Span]]


async def seen_at_neighbours(sought: Sought, stores: Stores, order: Order) -> Seen | None:
    """None where no neighbour knows a model of this name; only headers are asked for, and not kept."""
    if order.keyring is None:
        return None
    ref = await find(sought, order.peers, order.keyring)
    if ref is None:
        return None
    held = await held_by(order.peers, ref, order.keyring, {})

    async def taken(_: Source, listing: Listing) -> Listing:
        return listing

    listing = await first_listing(list(held), ref, order.keyring, taken)
    headers = {name: header for name, (header, _) in listing.headers.items()}
    directory = Heads(ref.digest, {CONFIG: listing.config}, headers, {}, 0).directory(stores.weights)
    count = layers_in_model(directory.config)
    wanted = wanted_of(directory, order.layers, count)
    store = await asyncio.to_thread(Partial.read, stores.weights / ref.digest)
    known = store is not None and all(store.file(span.path) is not None for span in wanted)
    gaps = store.missing(wanted) if store is not None and known else wanted
    small = sum(size for name, size in listing.sizes.items() if is_small(name))
    return Seen(ref, count, small + sum(span.size for span in wanted), gaps, held)
