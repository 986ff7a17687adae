"""What of a model is in a store before its weights: config.json, the small files, the header of every file.

Written once the headers of a neighbour were compared with the digest, and looked at again before anything
is believed of a store. Knows nothing of byte ranges.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from exo_cli.errors import BadData, ExoError, NotFound
from exo_cli.fetch import pieces
from exo_cli.fetch.names import CONFIG, is_small, is_weights
from exo_cli.fetch.partial import Partial
from exo_cli.fetch.partial_writer import PartialWriter
from exo_cli.fetch.pieces import Span
from exo_cli.fetch.room import check_space
from exo_cli.fetch.source import Listing, Source
from exo_cli.fetch.swarm import DIAL_S, Peer
from exo_cli.models.directory import ModelDirectory
from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.channels import dial
from exo_cli.wire.hello import hello

T = TypeVar("T")

STALL_S: Final = 30.0
"""How long a neighbour may send nothing. There is no bound in total: lines are slow."""


async def first_listing(
    peers: Sequence[Peer],
    model: pb.ModelRef,
    keyring: KeyringSource,
    use: Callable[[Source, Listing], Awaitable[T]],
) -> T:
    """What `use` makes of the first listing that is one of the model; raises NotFound if there is none."""
    tried: list[ExoError] = []
    for peer in peers:
        try:
            channel = await dial(peer.host, peer.port, keyring.current(), timeout_s=DIAL_S)
            async with channel:
                source = Source(channel, model, peer.name, hello(), STALL_S)
                return await use(source, await source.listing())
        except ExoError as error:
            tried.append(error)
    said = "; ".join(error.message for error in tried) or "no neighbour was named"
    raise NotFound(f"nobody gives the headers of {model.name}: {said}")


async def outlined(
    writer: PartialWriter,
    model: pb.ModelRef,
    peers: Sequence[Peer],
    keyring: KeyringSource,
    check: Callable[[Listing, str], None] = lambda listing, who: None,
) -> ModelDirectory:
    """The model as the store has it, once all of its outline is there: from the first who has it."""
    directory = await asyncio.to_thread(from_disk, writer)
    if directory is not None:
        return directory

    async def written(source: Source, listing: Listing) -> None:
        check(listing, source.who)
        await write_small(source, listing, writer)

    await first_listing(peers, model, keyring, written)
    return await asyncio.to_thread(ModelDirectory.open, writer.path)


async def read_small(source: Source, listing: Listing) -> dict[str, bytes]:
    """config.json and the tokenizer's files, as they were listed."""
    small = {CONFIG: listing.config}
    for name, size in listing.sizes.items():
        if is_small(name) and name != CONFIG:
            if not listing.sha256[name]:
                raise NotFound(f"{source.who} does not hold {name} whole", hint="Fetch from elsewhere.")
            small[name] = await source.read(name, 0, size, size)
            if listing.sha256[name] != hashlib.sha256(small[name]).hexdigest():
                raise BadData(f"{source.who} sent {name} otherwise than it listed it", hint="Try again.")
    return small


async def write_small(source: Source, listing: Listing, writer: PartialWriter) -> None:
    """Headers, config.json and the tokenizer's files; called with everything checked."""
    await asyncio.to_thread(_keep_small, writer, await read_small(source, listing), listing)


def _keep_small(writer: PartialWriter, small: dict[str, bytes], listing: Listing) -> None:
    check_space(writer.path, sum(map(len, small.values())))
    # Whatever an earlier attempt left under other names or sizes is not mixed in.
    known = {file.path: file.size for file in writer.view.map.files}
    if any(listing.sizes.get(name) != size for name, size in known.items()):
        writer.forget()
    writer.add(listing.sizes, listing.sums)
    for name, (_, data) in listing.headers.items():
        writer.write_at(name, 0, data)
    writer.mark([Span(name, 0, len(data)) for name, (_, data) in listing.headers.items()])
    for name, data in small.items():
        writer.put(name, data)


def from_disk(writer: PartialWriter) -> ModelDirectory | None:
    """What is in the store already; emptied if somebody changed it beside us."""
    try:
        return directory_of(writer.view)
    except ExoError:
        writer.forget()
        return None


def directory_of(store: Partial) -> ModelDirectory | None:
    """The model in a store, if every small file and every header is there; its digest is checked again."""
    files = store.map.files
    if not files or not all(
        pieces.covers(file.ranges, 0, file.size) for file in files if is_small(file.path)
    ):
        return None
    if not all(pieces.covers(file.ranges, 0, 8) for file in files if is_weights(file.path)):
        return None
    directory = ModelDirectory.open(store.path)
    if directory.digest != store.map.digest:
        raise BadData(f"the model in {store.path} was changed")
    whole = all(store.covers(header.file, 0, header.data_start) for header in directory.files)
    return directory if whole else None
