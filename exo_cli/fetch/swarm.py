"""The pieces of one model from several neighbours at once, the rarest first; what nobody has, from the hub.

Each neighbour says which pieces it holds, again and again while it fetches itself. A piece is compared
with the digest that comes with it before it is kept, and only what is kept is offered on. A bad one is
thrown away and asked of others, and the neighbour that sent it is named. Pieces that nobody holds or
brings are asked of the hub, a few at a time. Knows nothing of how a node came by its neighbours.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Final

from exo_cli.errors import BadData, ExoError, Unavailable
from exo_cli.fetch import pieces
from exo_cli.fetch.limit import Limit
from exo_cli.fetch.names import is_weights
from exo_cli.fetch.partial_writer import PartialWriter
from exo_cli.fetch.pieces import PIECE_BYTES, Range, Span
from exo_cli.fetch.source import Source
from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.channels import dial
from exo_cli.wire.hello import hello

DIAL_S: Final = 5.0
LOOK_S: Final = 0.3
"""Until a neighbour is asked again what it holds by now."""
STARVED_S: Final = 8.0
"""So long nothing may come from any neighbour before the hub is asked for what was to come from them."""
STREAMS: Final = 2
STALL_S: Final = 20.0
STRIKES: Final = 3
"""Bad pieces after which a neighbour is asked for nothing more."""
MOST_PIECES: Final = 4
"""That follow each other, in one request; one where there is a limit to how fast bytes may come."""
_HUB_PIECES: Final = 32

FromHub = Callable[[Sequence[Span]], Awaitable[None]]
Told = Callable[[Span, str], None]


@dataclass(frozen=True, slots=True)
class Peer:
    """A neighbour that may hold some of it."""

    name: str
    host: str
    port: int


@dataclass(eq=False, slots=True)
class _Known:
    """What one neighbour holds, as it last said."""

    peer: Peer
    ranges: dict[str, list[Range]] = field(default_factory=dict)
    strikes: int = 0
    refused: set[Span] = field(default_factory=set)
    """What it sent wrong."""

    def holds(self, unit: Span) -> bool:
        return pieces.covers(self.ranges.get(unit.path, ()), unit.start, unit.end)


class Swarm:
    """One fetch. Everything runs on one loop; `run` returns when nothing is missing."""

    def __init__(
        self,
        writer: PartialWriter,
        model: pb.ModelRef,
        source: KeyringSource,
        *,
        told: Told,
        note: Callable[[str], None],
        from_hub: FromHub | None,
        tensor_edges: Iterable[tuple[str, int]],
        limit: Limit,
    ) -> None:
        self._writer = writer
        self._model = model
        self._source = source
        self._told = told
        self._note = note
        self._from_hub = from_hub
        self._tensor_edges = frozenset(tensor_edges)
        self._limit = limit
        self._most_pieces = 1 if limit.is_set else MOST_PIECES
        self._sizes = {file.path: file.size for file in writer.view.map.files}
        self._pending: set[Span] = set()
        self._working = 0
        self._known: list[_Known] = []
        self._moved_s = time.monotonic()
        self._reasons: dict[str, ExoError] = {}
        self._dice = random.SystemRandom()
        self.served: dict[str, set[str]] = {}
        """By file, the neighbours whose pieces are in it."""

    async def run(self, gaps: Sequence[Span], peers: Sequence[Peer], hub: Sequence[Span] = ()) -> None:
        """Bring the gaps; those in `hub` are this node's own to bring from there."""
        rest = without(gaps, hub)
        mine = without(gaps, rest)
        self._pending = set(_units(rest))
        tasks = [asyncio.create_task(self._neighbour(peer)) for peer in peers] if self._pending else []
        try:
            if mine and self._from_hub is not None:
                tasks.append(self._start_hub(mine))
            else:
                self._pending |= set(_units(mine))
            await self._until_done(tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _until_done(self, tasks: list[asyncio.Task[None]]) -> None:
        while self._pending or self._working:
            alive = [task for task in tasks if not task.done()]
            for task in tasks:
                if task.done() and not task.cancelled() and task.exception() is not None:
                    task.result()
            starved = time.monotonic() - self._moved_s > STARVED_S
            if self._pending and not self._working and (starved or not alive):
                if self._from_hub is None:
                    raise self._nobody()
                few = self._dice.sample(sorted(self._pending), min(_HUB_PIECES, len(self._pending)))
                self._pending -= set(few)
                tasks.append(self._start_hub(few))
            elif alive:
                await asyncio.wait(alive, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done() and not task.cancelled():
                task.result()

    def _start_hub(self, units: Iterable[Span]) -> asyncio.Task[None]:
        # Counted from now on, not from when the task first runs.
        self._working += 1
        return asyncio.create_task(self._hub(sorted(units)))

    async def _hub(self, units: Sequence[Span]) -> None:
        assert self._from_hub is not None
        try:
            await self._from_hub(pieces.merged(units))
            self._moved_s = time.monotonic()
        finally:
            self._working -= 1

    async def _neighbour(self, peer: Peer) -> None:
        """One neighbour, for as long as it is of use; that it is not is no failure of the fetch."""
        known = _Known(peer)
        try:
            channel = await dial(peer.host, peer.port, self._source.current(), timeout_s=DIAL_S)
            async with channel:
                source = Source(channel, self._model, peer.name, hello(), STALL_S)
                await self._look(known, source)
                self._known.append(known)
                streams = [asyncio.create_task(self._stream(known, source)) for _ in range(STREAMS)]
                looks = asyncio.create_task(self._look_on(known, source))
                try:
                    await asyncio.gather(*streams)
                finally:
                    for task in (looks, *streams):
                        task.cancel()
                    await asyncio.gather(looks, *streams, return_exceptions=True)
        except ExoError as error:
            self._reasons[peer.name] = error
        finally:
            with suppress(ValueError):
                self._known.remove(known)

    async def _look_on(self, known: _Known, source: Source) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            with suppress(ExoError):
                await self._look(known, source)

    async def _look(self, known: _Known, source: Source) -> None:
        held = await source.held()
        ranges = {}
        for file in held.files:
            ours = self._writer.file(file.path)
            if not is_weights(file.path) or ours is None or ours.size != file.size:
                continue
            if file.sha256 and ours.etag and file.sha256 != ours.etag:
                # Another model with the same shape: the digest says nothing of the weights' own bytes.
                continue
            ranges[file.path] = [(span.start, span.end) for span in spans_held(file)]
        known.ranges = ranges
        self._cut_at({(path, edge) for path, held in ranges.items() for each in held for edge in each})

    def _cut_at(self, edges: set[tuple[str, int]]) -> None:
        """A neighbour may hold a part of a piece for good, up to where a stage's tensors begin or end."""
        for path, edge in edges & self._tensor_edges:
            for unit in [
                each for each in self._pending if each.path == path and each.start < edge < each.end
            ]:
                self._pending.remove(unit)
                self._pending |= {Span(path, unit.start, edge), Span(path, edge, unit.end)}

    async def _stream(self, known: _Known, source: Source) -> None:
        while known.strikes < STRIKES:
            run = self._next(known)
            if not run:
                if not self._pending and not self._working:
                    return
                await asyncio.sleep(LOOK_S / 3)
                continue
            self._working += 1
            try:
                await self._bring(known, source, run)
                wait_s = self._limit.take(sum(unit.size for unit in run))
                if self._pending:
                    # Between two requests: nobody is left waiting in the middle of one.
                    await asyncio.sleep(wait_s)
            finally:
                self._working -= 1

    def _next(self, known: _Known) -> list[Span]:
        """The rarest piece that this neighbour holds, and those that follow it in the file."""
        mine = [unit for unit in self._pending if known.holds(unit) and unit not in known.refused]
        if not mine:
            return []
        counts = Counter({unit: sum(other.holds(unit) for other in self._known) for unit in mine})
        least = min(counts.values())
        run = [self._dice.choice(sorted(unit for unit in mine if counts[unit] == least))]
        there = {(unit.path, unit.start): unit for unit in mine}
        while len(run) < self._most_pieces and (after := there.get((run[0].path, run[-1].end))) is not None:
            run.append(after)
        self._pending -= set(run)
        return run

    async def _bring(self, known: _Known, source: Source, run: list[Span]) -> None:
        left = list(run)
        path, size = run[0].path, self._sizes[run[0].path]
        try:
            async with aclosing(source.stream(path, run[0].start, run[-1].end, size)) as stream:
                async for start, data in stream:
                    await asyncio.to_thread(self._keep, path, start, data)
                    span = Span(path, start, start + len(data))
                    left = [unit for unit in left if not _inside(unit, span)]
                    self._moved_s = time.monotonic()
                    self.served.setdefault(path, set()).add(known.peer.name)
                    self._told(span, known.peer.name)
        except BadData as error:
            known.strikes += 1
            known.refused.add(left[0])
            self._note(f"{error.message}; it is asked of others")
        finally:
            self._pending |= set(left)

    def _keep(self, path: str, start: int, data: bytearray) -> None:
        self._writer.write(path, start, [data])
        self._writer.note(path, start, start + len(data))

    def _nobody(self) -> ExoError:
        missing = sum(unit.size for unit in self._pending)
        said = "; ".join(error.message for error in self._reasons.values()) or "no neighbour holds them"
        return Unavailable(
            f"{missing:,} bytes of {self._model.name or 'the model'} are to be had nowhere: {said}",
            hint="Let the hub be asked, or start the node that has them. What came is kept.",
        )


def spans_held(file: pb.FilePieces) -> list[Span]:
    """What the message says is there of a file; nothing if it says nothing sensible."""
    edges = list(file.edges)
    ranges = list(zip(edges[::2], edges[1::2], strict=False))
    if len(edges) % 2 or not pieces.well_formed(ranges, file.size):
        return []
    return [Span(file.path, *each) for each in ranges]


def without(spans: Sequence[Span], others: Sequence[Span]) -> list[Span]:
    """The bytes of `spans` that are in none of the others."""
    ranges: dict[str, list[Range]] = {}
    for span in others:
        ranges[span.path] = pieces.add(ranges.get(span.path, []), span.start, span.end)
    return [
        Span(span.path, *gap)
        for span in spans
        for gap in pieces.missing(ranges.get(span.path, []), span.start, span.end)
    ]


def _units(spans: Sequence[Span]) -> list[Span]:
    return [
        Span(span.path, *share) for span in spans for share in pieces.cut(span.start, span.end, PIECE_BYTES)
    ]


def _inside(unit: Span, span: Span) -> bool:
    return unit.path == span.path and span.start <= unit.start and unit.end <= span.end
