"""The bytes that a stage needs, from a neighbour into the partial store.

First config.json and every header: they are compared with the digest that the plan names, before
anything is written. After that a file's size, its tensors and their places are no longer the peer's
word. Then the ranges, in streams side by side; each piece is on the disk and in the map before the next
one of its stream, so that a process killed at any moment goes on where it was. Each piece, or what of it
was asked for, is compared with the digest that comes with it. Knows nothing of hubs, nor of which ranges a
stage needs.
"""

import asyncio
import hashlib
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc.aio

from exo_cli import atomic
from exo_cli.errors import BadData, CannotCreate, ExoError, Internal, NotFound, TryAgain, Unavailable
from exo_cli.fetch import pieces
from exo_cli.fetch.names import CONFIG, check_listing, is_digest, is_small, is_weights
from exo_cli.fetch.partial import Partial, PartialWriter
from exo_cli.fetch.pieces import MESSAGE_BYTES, PIECE_BYTES, Span
from exo_cli.models.digest import model_digest
from exo_cli.models.directory import ModelDirectory
from exo_cli.models.safetensors import MAX_HEADER_BYTES, Header, header_length, parse_header, shown
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.hello import hello
from exo_cli.wire.status import translated
from exo_cli.wire.stubs import control

T = TypeVar("T")
Progress = Callable[[int, int], None]
Wanted = Sequence[tuple[str, int, int]] | Callable[[ModelDirectory], Sequence[tuple[str, int, int]]]
"""Ranges, or what finds them once the headers are here."""

STREAMS: Final = 2
"""While one stream writes to the disk, the other receives."""
REQUEST_BYTES: Final = 16 * PIECE_BYTES
HEADERS_AT_ONCE: Final = 8
MAX_HEADERS_BYTES: Final = 4 * MAX_HEADER_BYTES
STALL_S: Final = 30.0
"""How long a peer may send nothing. There is no bound in total: lines are slow."""
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
    async with _writing(weights, model) as writer:
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
            names = _their_names(directory, listing or await source.listing())
            await _Ranges(source, writer, names, directory, total, todo, progress).pull(gaps)
        return writer.path


def stage_here(weights: Path, digest: str, wanted: Wanted) -> Path | None:
    """The directory of a model in the store, if all of the wanted ranges are in it. Asks nobody."""
    store = Partial.read(weights / digest) if is_digest(digest) else None
    try:
        directory = _opened(store) if store is not None else None
    except ExoError:
        return None
    if store is None or directory is None:
        return None
    spans = _checked(wanted(directory) if callable(wanted) else wanted, directory)
    return None if store.missing(spans) else store.path


@dataclass(frozen=True, slots=True)
class Listing:
    """What a peer holds, once its headers agree with the digest."""

    sizes: dict[str, int]
    sha256: dict[str, str]
    """Of small files, as the peer says."""
    config: bytes
    headers: dict[str, tuple[Header, bytes]]
    """By the peer's name of the file: the checked header, and its bytes as they stand."""


class Source:
    """One peer, asked for one model."""

    def __init__(
        self, channel: grpc.aio.Channel, model: pb.ModelRef, who: str, me: pb.Hello, stall_s: float
    ) -> None:
        self.who = who
        self._stub = control(channel)
        self._model = model
        self._me = me
        self._stall_s = stall_s

    async def held(self) -> pb.HeldModel:
        """What the peer has of the model now, by its own word."""
        with translated(self.who):
            reply: pb.HaveReply = await self._stub.Have(
                pb.HaveRequest(hello=self._me, model=self._model), timeout=self._stall_s
            )
        held = next((each for each in reply.models if each.model.digest == self._model.digest), None)
        if held is None:
            raise NotFound(f"{self.who} does not have {self._model.name or 'this model'}")
        return held

    async def listing(self) -> Listing:
        """The peer's files and headers; refused unless they are those of the model's digest."""
        held = await self.held()
        sizes = check_listing(((file.path, file.size) for file in held.files), self.who)
        config = await self.read(CONFIG, 0, sizes[CONFIG], sizes[CONFIG])
        names = [name for name in sizes if is_weights(name)]
        room = _Room(MAX_HEADERS_BYTES, self.who)
        slots = asyncio.Semaphore(HEADERS_AT_ONCE)

        async def one(name: str) -> tuple[Header, bytes]:
            async with slots:
                return await self._header(name, sizes[name], room)

        headers = await _together([one(name) for name in names])
        digest = model_digest(config, (header.sha256 for header, _ in headers))
        if digest != self._model.digest:
            raise BadData(
                f"{self.who} sent config.json and headers of another model: their digest is {digest[:16]}…, "
                f"not {self._model.digest[:16]}…",
                hint="Make the plan again, or look at the files there.",
            )
        sha256 = {file.path: file.sha256 for file in held.files if is_small(file.path)}
        return Listing(sizes, sha256, config, dict(zip(names, headers, strict=True)))

    async def read(self, name: str, start: int, end: int, size: int) -> bytes:
        """A few bytes, into memory."""
        found = bytearray()
        async with aclosing(self.stream(name, start, end, size)) as stream:
            async for _, data in stream:
                found += data
        return bytes(found)

    async def stream(
        self, name: str, start: int, end: int, size: int
    ) -> AsyncGenerator[tuple[int, bytearray], None]:
        """Bytes `start` to `end` of a file of `size` bytes: (place, bytes) by piece, each one checked."""
        call = self._stub.Weights(
            pb.WeightsRequest(hello=self._me, model=self._model, path=name, offset=start, size=end - start)
        )
        at, begun, data = start, start, bytearray()
        try:
            while at < end:
                message = await self._next(call, name, at)
                piece = pieces.piece_of(at + 1, size)
                stop = at + len(message.data)
                if message.offset != at or not at < stop <= min(end, piece[1]) or stop - at > MESSAGE_BYTES:
                    raise BadData(
                        f"{self.who} sent bytes of {name} that were not asked for "
                        f"({message.offset} to {message.offset + len(message.data)} at {at})"
                    )
                data += message.data
                at = stop
                if at == piece[1] or at == end:
                    await asyncio.to_thread(self._check, name, begun, data, message.sha256)
                    yield begun, data
                    begun, data = at, bytearray()
        finally:
            call.cancel()

    async def _next(self, call: Any, name: str, at: int) -> pb.WeightsPiece:
        try:
            async with asyncio.timeout(self._stall_s):
                with translated(self.who):
                    message = await call.read()
        except TimeoutError as error:
            raise TryAgain(
                f"{self.who} has sent nothing of {name} for {self._stall_s:g} s",
                hint="Try again: what came is kept.",
            ) from error
        if message is grpc.aio.EOF:
            raise Unavailable(
                f"{self.who} stopped sending {name} at byte {at}", hint="Try again: what came is kept."
            )
        assert isinstance(message, pb.WeightsPiece)
        return message

    def _check(self, name: str, start: int, data: bytearray, said: bytes) -> None:
        if hashlib.sha256(data).digest() != said:
            raise BadData(
                f"{self.who} sent a bad piece of {name}: bytes {start} to {start + len(data)} are not what "
                "their digest says",
                hint="Nothing of it was kept. Try again, or fetch from elsewhere.",
            )

    async def _header(self, name: str, size: int, room: "_Room") -> tuple[Header, bytes]:
        prefix = await self.read(name, 0, min(8, size), size)
        try:
            length = header_length(prefix, file=name, size=size)
            room.take(length)
            data = prefix + (await self.read(name, 8, 8 + length, size) if length else b"")
            return await asyncio.to_thread(parse_header, data, file=name, size=size), data
        except BadData as error:
            if self.who in error.message:
                raise
            raise BadData(f"{self.who}: {error.message}", hint=error.hint) from error


class _Room:
    """How much of one peer's headers is taken into memory."""

    def __init__(self, left_bytes: int, who: str) -> None:
        self._left_bytes = left_bytes
        self._who = who

    def take(self, size: int) -> None:
        self._left_bytes -= size
        if self._left_bytes < 0:
            raise BadData(f"the headers that {self._who} announces have more than {MAX_HEADERS_BYTES} bytes")


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

        await _together([stream() for _ in range(STREAMS)])

    async def _pull(self, share: Span) -> None:
        theirs, size = self._names[share.path], self._sizes[share.path]
        async with aclosing(self._source.stream(theirs, share.start, share.end, size)) as stream:
            async for start, data in stream:
                await asyncio.to_thread(self._writer.keep, share.path, start, data)
                self._done += len(data)
                self._progress(self._done, self._total)


async def write_small(source: Source, listing: Listing, writer: PartialWriter) -> None:
    """Headers, config.json and the tokenizer's files; called with everything checked."""
    small = {CONFIG: listing.config}
    for name, size in listing.sizes.items():
        if is_small(name) and name != CONFIG:
            if not listing.sha256[name]:
                raise NotFound(f"{source.who} does not hold {name} whole", hint="Fetch from elsewhere.")
            small[name] = await source.read(name, 0, size, size)
            if listing.sha256[name] != hashlib.sha256(small[name]).hexdigest():
                raise BadData(f"{source.who} sent {name} otherwise than it listed it", hint="Try again.")
    await asyncio.to_thread(_keep_small, writer, small, listing)


def _keep_small(writer: PartialWriter, small: dict[str, bytes], listing: Listing) -> None:
    check_space(writer.path, sum(map(len, small.values())))
    # Whatever an earlier attempt left under other names or sizes is not mixed in.
    known = {file.path: file.size for file in writer.view.map.files}
    if any(listing.sizes.get(name) != size for name, size in known.items()):
        writer.forget()
    writer.add(listing.sizes)
    for name, (_, data) in listing.headers.items():
        writer.write_at(name, 0, data)
    writer.mark([Span(name, 0, len(data)) for name, (_, data) in listing.headers.items()])
    for name, data in small.items():
        writer.put(name, data)


def from_disk(writer: PartialWriter) -> ModelDirectory | None:
    """What is in the store already; emptied if somebody changed it beside us."""
    try:
        return _opened(writer.view)
    except ExoError:
        writer.forget()
        return None


def _opened(store: Partial) -> ModelDirectory | None:
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


def _their_names(directory: ModelDirectory, listing: Listing) -> dict[str, str]:
    """Our files to the peer's: the digest says nothing about names, so headers are compared."""
    theirs = {header.sha256: name for name, (header, _) in listing.headers.items()}
    return {header.file: theirs[header.sha256] for header in directory.files}


def _checked(wanted: Sequence[tuple[str, int, int]], directory: ModelDirectory) -> list[Span]:
    sizes = {header.file: header.size for header in directory.files}
    for path, start, end in wanted:
        if not 0 <= start <= end <= sizes.get(path, -1):
            raise BadData(f"bytes {start} to {end} of {shown(path)} are not part of this model")
    return pieces.merged(Span(*each) for each in wanted)


def check_space(path: Path, needed: int) -> None:
    try:
        free = shutil.disk_usage(path).free
    except OSError as error:
        raise atomic.cannot_write(path, error) from error
    if needed > free:
        raise CannotCreate(
            f"{path} has {free / 1e9:.2f} GB free and {needed / 1e9:.2f} GB are to be fetched",
            hint="Free some space there, or set XDG_CACHE_HOME to another place.",
        )


@asynccontextmanager
async def _writing(weights: Path, model: pb.ModelRef) -> AsyncIterator[PartialWriter]:
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


async def _together(jobs: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All of them side by side; the first failure ends the others, and is the one that is raised."""
    tasks = [asyncio.create_task(job) for job in jobs]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
