"""How far a fetch is: by file, in total, by where bytes came from. Knows nothing of how it is shown."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from exo_cli.fetch.partial_writer import PartialWriter
from exo_cli.fetch.pieces import Span

HUB: Final = "hub"
DISK: Final = "this disk"
TELL_EVERY_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Moved:
    """How far a fetch is; bytes that were here already count as done."""

    repository: str
    file: str
    source: str
    done_bytes: int
    total_bytes: int
    file_done_bytes: int
    file_total_bytes: int


OnMoved = Callable[[Moved], None]


def nobody(_: Moved) -> None:
    """Tells nobody."""


class Meter:
    """Adds up what arrives. Safe to use from several threads."""

    def __init__(
        self,
        name: str,
        small: Mapping[str, bytes],
        wanted: Sequence[Span],
        writer: PartialWriter,
        told: OnMoved,
    ) -> None:
        self._name = name
        self._told = told
        self._guard = threading.Lock()
        self._last_s: dict[str, float] = {}
        self._file_total = {name: len(data) for name, data in small.items()}
        self._file_done = dict(self._file_total)
        self.by_source: dict[str, int] = {}
        for span in wanted:
            self._file_total[span.path] = self._file_total.get(span.path, 0) + span.size
            self._file_done.setdefault(span.path, 0)
            self._file_done[span.path] += span.size
        for gap in writer.view.missing(wanted):
            self._file_done[gap.path] -= gap.size
        for name in self._file_total:
            self._tell(name, DISK)

    def count(self, source: str, size: int) -> None:
        """Bytes that came before this began."""
        with self._guard:
            if size:
                self.by_source[source] = self.by_source.get(source, 0) + size

    def arrived(self, span: Span, source: str) -> None:
        with self._guard:
            self.by_source[source] = self.by_source.get(source, 0) + span.size
            self._file_done[span.path] += span.size
            now_s = time.monotonic()
            done = self._file_done[span.path] >= self._file_total[span.path]
            if not done and now_s - self._last_s.get(span.path, 0.0) < TELL_EVERY_S:
                return
            self._last_s[span.path] = now_s
            self._tell(span.path, source)

    def lost(self, name: str) -> None:
        """A file has to be fetched again."""
        with self._guard:
            self._file_done[name] = 0

    def _tell(self, name: str, source: str) -> None:
        self._told(
            Moved(
                self._name,
                name,
                source,
                sum(self._file_done.values()),
                sum(self._file_total.values()),
                self._file_done[name],
                self._file_total[name],
            )
        )
