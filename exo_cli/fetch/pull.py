"""The bytes that a stage needs, from a neighbour into the partial store.

First config.json and every header: they are compared with the digest that the plan names, before
anything is written. After that a file's size, its tensors and their places are no longer the peer's
word. Then the ranges, in streams side by side; each piece is on the disk and in the map before the next
one of its stream, so that a process killed at any moment goes on where it was. A file that becomes whole
is compared with the hub's sum, where the peer knows it. Knows nothing of hubs, nor of which ranges a
stage needs.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Final

import grpc.aio

from exo_cli.errors import BadData, ExoError, Internal, TryAgain
from exo_cli.fetch import pieces
from exo_cli.fetch.names import is_digest
from exo_cli.fetch.outline import STALL_S, directory_of, from_disk, write_small
from exo_cli.fetch.partial import Partial
from exo_cli.fetch.partial_writer import PartialWriter
from exo_cli.fetch.pieces import PIECE_BYTES, Span
from exo_cli.fetch.room import check_space
from exo_cli.fetch.source import Listing, Source, together
from exo_cli.fetch.verify import Follower, to_be_whole
from exo_cli.models.directory import ModelDirectory
from exo_cli.models.safetensors import shown
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.hello import hello

Progress = Callable[[int, int], None]
Wanted = Sequence[tuple[str, int, int]] | Callable[[ModelDirectory], Sequence[tuple[str, int, int]]]
"""Ranges, or what finds them once the headers are here."""

STREAMS: Final = 2
"""While one stream writes to the disk, the other receives."""
REQUEST_BYTES: Final = 16 * PIECE_BYTES
LOCK_RETRY_S: Final = 0.2


def nothing(_done: int, _total: int) -> None:
    """A progress that nobody looks at."""


async def pull_stage(
    channel: grpc.aio.Channel,
    model: pb.ModelRef,
    wanted: Wanted,
    weights: Path,
    *,
    who: str,
    from_node: pb.Hello | None = None,
    progress: Progress = nothing,
    stall_s: float = STALL_S,
) -> Path:
    """Everything small and the wanted ranges of a model, from the peer called `who`, into `weights`/digest.

    Returns the directory; nothing is asked of the peer if all of it is there. Waits while another
    process fetches the same model. `progress` hears (bytes here, bytes wanted).
    """
    if not is_digest(model.digest):
        raise BadData(f"{shown(model.digest)} is no digest of a model")
    source = Source(channel, model, who, from_node or hello(), stall_s)
    async with writing(weights, model) as writer:
        directory = await asyncio.to_thread(from_disk, writer)
        listing = None
        if directory is None:
            listing = await source.listing()
            await write_small(source, listing, writer)
            directory = await asyncio.to_thread(ModelDirectory.open, writer.path)
            if directory.digest != model.digest:
                raise Internal(f"{writer.path} does not hold the model that was written into it")
        spans = _checked(wanted(directory) if callable(wanted) else wanted, directory)
        gaps = writer.view.missing(spans)
        total = sum(span.size for span in spans)
        todo = sum(span.size for span in gaps)
        progress(total - todo, total)
        if gaps:
            await asyncio.to_thread(check_space, weights, todo)
            listing = listing or await source.listing()
            names = _their_names(directory, listing)
            await asyncio.to_thread(_name_contents, writer, names, listing, who)
            ranges = _Ranges(source, writer, names, directory, total, todo, progress)
            await _compared(writer, ranges, gaps, who)
        return writer.path


def stage_here(weights: Path, digest: str, wanted: Wanted) -> Path | None:
    """The directory of a model in the store, if all of the wanted ranges are in it. Asks nobody."""
    store = Partial.read(weights / digest) if is_digest(digest) else None
    try:
        directory = directory_of(store) if store is not None else None
    except ExoError:
        return None
    if store is None or directory is None:
        return None
    spans = _checked(wanted(directory) if callable(wanted) else wanted, directory)
    return None if store.missing(spans) else store.path


class _Ranges:
    """Missing ranges, pulled by a few streams."""

    def __init__(
        self,
        source: Source,
        writer: PartialWriter,
        names: dict[str, str],
        directory: ModelDirectory,
        total: int,
        todo: int,
        progress: Progress,
    ) -> None:
        self._source = source
        self._writer = writer
        self._names = names
        self._sizes = {header.file: header.size for header in directory.files}
        self._total = total
        self._done = total - todo
        self._progress = progress
        self.news: Callable[[], None] = lambda: None

    async def pull(self, gaps: Sequence[Span]) -> None:
        shares = iter(
            [
                Span(gap.path, *share)
                for gap in gaps
                for share in pieces.cut(gap.start, gap.end, REQUEST_BYTES)
            ]
        )

        async def stream() -> None:
            for share in shares:
                await self._pull(share)

        await together([stream() for _ in range(STREAMS)])

    async def _pull(self, share: Span) -> None:
        theirs, size = self._names[share.path], self._sizes[share.path]
        async with aclosing(self._source.stream(theirs, share.start, share.end, size)) as stream:
            async for start, data in stream:
                await asyncio.to_thread(self._writer.keep, share.path, start, data)
                self.news()
                self._done += len(data)
                self._progress(self._done, self._total)


def _their_names(directory: ModelDirectory, listing: Listing) -> dict[str, str]:
    """Our files to the peer's: the digest says nothing about names, so headers are compared."""
    theirs = {header.sha256: name for name, (header, _) in listing.headers.items()}
    return {header.file: theirs[header.sha256] for header in directory.files}


def _name_contents(writer: PartialWriter, names: dict[str, str], listing: Listing, who: str) -> None:
    """The hub's sums, as far as the peer knows them; refused if what is here in part has others."""
    etags = {}
    for ours, theirs in names.items():
        file, said = writer.file(ours), listing.sums.get(theirs, "")
        if file is not None and said and is_digest(file.etag) and said != file.etag:
            # The digest of a model says nothing of the weights' own bytes.
            raise BadData(
                f"{who} has other weights of the same shape in {theirs} than those that are here in part",
                hint="Fetch from elsewhere, or remove what is here with exo fetch --prune.",
            )
        etags[ours] = said
    writer.add({ours: listing.sizes[theirs] for ours, theirs in names.items()}, etags)


async def _compared(writer: PartialWriter, ranges: _Ranges, gaps: Sequence[Span], who: str) -> None:
    """Pull; files that become whole are compared while they grow."""
    stopped = threading.Event()
    follower = Follower(writer, to_be_whole(writer, gaps), stopped)
    ranges.news = follower.news
    follower.start()
    try:
        await ranges.pull(gaps)
    except BaseException:
        stopped.set()
        raise
    finally:
        bad = await asyncio.to_thread(follower.finish)
    for name in bad:
        await asyncio.to_thread(writer.drop, name)
    if bad:
        raise BadData(
            f"{bad[0]} is not what its sha256 says; the last of it came from {who}",
            hint="Nothing of it was kept. Try again, or fetch from elsewhere.",
        )


def _checked(wanted: Sequence[tuple[str, int, int]], directory: ModelDirectory) -> list[Span]:
    sizes = {header.file: header.size for header in directory.files}
    for path, start, end in wanted:
        if not 0 <= start <= end <= sizes.get(path, -1):
            raise BadData(f"bytes {start} to {end} of {shown(path)} are not part of this model")
    return pieces.merged(Span(*each) for each in wanted)


@asynccontextmanager
async def writing(weights: Path, model: pb.ModelRef) -> AsyncIterator[PartialWriter]:
    """The store of a model, once nobody else writes it: what they get, we need not."""
    while True:
        try:
            # Not in a thread: one that is left behind by a cancelled task would keep the lock.
            writer = PartialWriter.open(weights, model.digest, name=model.name, revision=model.revision)
            break
        except TryAgain:
            await asyncio.sleep(LOCK_RETRY_S)
    try:
        yield writer
    finally:
        writer.close()
