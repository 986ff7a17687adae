"""Missing ranges of a model, from the hub into the partial store, over a few connections side by side.

What arrives is written at its place and noted before the next of its connection is looked at; every
second it goes to the disk for good. Whole files are compared with the hub's sha256 while they grow. A
connection that breaks, stalls or is cut off is taken up at the byte where it ended. Knows nothing of
which ranges are wanted, nor of neighbours.
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from exo_cli.errors import ExoError
from exo_cli.fetch import pieces
from exo_cli.fetch.crew import side_by_side
from exo_cli.fetch.hub_client import Client, HubFile, IgnoresRange, Repository
from exo_cli.fetch.limit import Limit
from exo_cli.fetch.partial_writer import PartialWriter
from exo_cli.fetch.patience import Passing, Patience, Stopped
from exo_cli.fetch.pieces import PIECE_BYTES, Span

CONNECTIONS: Final = 4
SHARE_BYTES: Final = 16 * PIECE_BYTES
"""What one request asks for at most."""
LAST_BYTES: Final = 2 * SHARE_BYTES
LAST_SHARE_BYTES: Final = 4 * PIECE_BYTES
"""The last ones are smaller: connections that end one soon after the other leave little to compare."""
_FLUSH_BYTES: Final = 256 * 1024
SETTLE_EVERY_S: Final = 1.0

Arrived = Callable[[Span], None]
"""Hears of bytes that were kept, on some thread."""
Waiting = Callable[[ExoError, float], None]
"""Hears why something is asked for again, and after how many seconds."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How a transfer goes about it."""

    stopped: threading.Event
    limit: Limit
    connections: int = CONNECTIONS
    on_wait: Waiting = lambda error, wait_s: None

    def patience(self, tries: int | None = None) -> Patience:
        return Patience(self.stopped, self.on_wait, tries=tries)


class Transfer:
    """From one repository into one store."""

    def __init__(
        self,
        client: Client,
        repository: Repository,
        writer: PartialWriter,
        pace: Pace,
        arrived: Arrived,
    ) -> None:
        self._client = client
        self._files = repository.files
        self._writer = writer
        self._pace = pace
        self._arrived = arrived
        self._whole: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()

    def run(self, gaps: Sequence[Span]) -> None:
        """Bring all of it; returns when it is on the disk and in the map."""
        shares = _shares(sorted(gaps, key=self._order))
        with _settling(self._writer):
            side_by_side(
                self._share,
                shares,
                most=max(1, min(self._pace.connections, len(shares))),
                stopped=self._pace.stopped,
            )

    def _order(self, gap: Span) -> tuple[int, int]:
        return list(self._files).index(gap.path), gap.start

    def _share(self, share: Span) -> None:
        patience, at = self._pace.patience(), share.start
        file = self._files[share.path]
        while at < share.end:
            before = at
            try:
                with self._client.open(file, at, share.end) as chunks:
                    self._take(file, at, share.end, chunks)
                at = self._reached(share)
                if at < share.end:
                    raise Passing(self._client.short(file, at))
            except IgnoresRange:
                self._all_of(file)
                return
            except Passing as passing:
                # What came in part was kept.
                at = self._reached(share)
                if at > before:
                    patience.moved()
                patience.failed(passing)

    def _reached(self, share: Span) -> int:
        gaps = self._writer.view.missing([share])
        return gaps[0].start if gaps else share.end

    def _take(self, file: HubFile, at: int, end: int, chunks: Iterable[bytes]) -> None:
        """Keep what comes, also if the connection then breaks."""
        parts: list[bytes] = []
        begun = at
        try:
            for chunk in chunks:
                if self._pace.stopped.is_set():
                    raise Stopped
                parts.append(chunk[: end - at])
                at += len(parts[-1])
                if at - begun >= _FLUSH_BYTES:
                    full, parts = parts, []
                    self._keep(file.name, begun, at, full)
                    begun = at
                self._slow_down(len(chunk))
        finally:
            if parts:
                self._keep(file.name, begun, at, parts)

    def _slow_down(self, count: int) -> None:
        wait_s = self._pace.limit.take(count)
        if wait_s and self._pace.stopped.wait(wait_s):
            raise Stopped

    def _keep(self, name: str, begun: int, at: int, parts: Sequence[bytes]) -> None:
        self._writer.write(name, begun, parts)
        self._writer.note(name, begun, at)
        self._arrived(Span(name, begun, at))

    def _all_of(self, file: HubFile) -> None:
        """From a server that knows no ranges: once through, keeping what is missing."""
        with self._guard:
            lock = self._whole.setdefault(file.name, threading.Lock())
        with lock:
            patience = self._pace.patience()
            while self._writer.view.missing([Span(file.name, 0, file.size)]):
                try:
                    with self._client.open(file, 0, file.size) as chunks:
                        if not self._through(file, chunks, patience):
                            raise Passing(self._client.short(file, 0))
                except Passing as passing:
                    patience.failed(passing)

    def _through(self, file: HubFile, chunks: Iterable[bytes], patience: Patience) -> bool:
        at = 0
        for chunk in chunks:
            if self._pace.stopped.is_set():
                raise Stopped
            chunk = chunk[: file.size - at]
            for gap in self._writer.view.missing([Span(file.name, at, at + len(chunk))]):
                self._keep(file.name, gap.start, gap.end, [chunk[gap.start - at : gap.end - at]])
                patience.moved()
            at += len(chunk)
            self._slow_down(len(chunk))
        return at == file.size


def _shares(gaps: Sequence[Span]) -> list[Span]:
    """What the gaps are asked for in."""
    left = sum(gap.size for gap in gaps)
    shares = []
    for gap in gaps:
        for share in pieces.cut(gap.start, gap.end, SHARE_BYTES):
            small = LAST_SHARE_BYTES if left <= LAST_BYTES else SHARE_BYTES
            shares += [Span(gap.path, *each) for each in pieces.cut(*share, small)]
            left -= share[1] - share[0]
    return shares


class _settling:  # noqa: N801 - used like a function
    """While it lasts, what was noted goes to the disk every second, on a thread of its own."""

    def __init__(self, writer: PartialWriter) -> None:
        self._writer = writer
        self._ended = threading.Event()
        self._failure: ExoError | None = None
        self._thread = threading.Thread(target=self._run, name="settle", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if kind is None:
            if self._failure is not None:
                raise self._failure
            self._writer.settle()

    def _run(self) -> None:
        last_s = time.monotonic()
        while not self._ended.wait(max(0.0, last_s + SETTLE_EVERY_S - time.monotonic())):
            last_s = time.monotonic()
            try:
                self._writer.settle()
            except ExoError as error:
                self._failure = error
                return
