"""A model of which this machine holds a part: files at their own offsets, and a map of what is there.

The files are as long as the whole ones and sparse; the map says which bytes were written. What it does not
say is nobody's, however the file looks. Beside it may lie a journal of what was written since (journal.py).
Readers need no lock. Knows nothing of writing, of where bytes come from, nor whether they are the right ones.
"""

import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from exo_cli.errors import Internal
from exo_cli.fetch import journal, pieces
from exo_cli.fetch.names import is_digest, is_small, is_weights
from exo_cli.fetch.pieces import Range, Span
from exo_cli.schemas.first_use import shared

LOCK: Final = ".exo-lock"
MAP: Final = ".exo-map.json"
_SCHEMA: Final = "exo.map/1"


class MapFile(msgspec.Struct, frozen=True):
    """One file in the map: its whole size, and the ranges that are there."""

    path: str
    size: int
    ranges: list[Range]
    etag: str = ""
    """The hub's name for the whole file: its sha256, or what git calls it; empty if nobody said."""
    verified: bool = False
    """Whether the whole file was compared with that."""

    @property
    def is_whole(self) -> bool:
        return pieces.covers(self.ranges, 0, self.size)


class Map(msgspec.Struct, frozen=True, kw_only=True):
    """.exo-map.json."""

    schema: str = _SCHEMA
    digest: str
    name: str
    revision: str
    files: list[MapFile]
    repository: str = ""
    """The hub's, if the hub named the files."""


@dataclass(frozen=True, slots=True)
class Partial:
    """What was in the map when it was read."""

    path: Path
    map: Map

    @classmethod
    def read(cls, path: Path) -> "Partial | None":
        """The store in the directory `path`, as far as its map and its files agree; None if it is none."""
        # The journal first: what leaves it is in the map by then.
        noted = journal.read(path)
        try:
            found = msgspec.json.decode((path / MAP).read_bytes(), type=shared(Map))
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            # Without a map nothing is there: whoever fetches begins anew.
            return None
        if found.schema != _SCHEMA or found.digest != path.name or not is_digest(found.digest):
            return None
        files = [
            _believable(path, with_ranges(file, noted.get(file.path, ())))
            for file in found.files
            if is_small(file.path) or is_weights(file.path)
        ]
        return cls(path, msgspec.structs.replace(found, files=files))

    def file(self, name: str) -> MapFile | None:
        return next((file for file in self.map.files if file.path == name), None)

    def covers(self, name: str, start: int, end: int) -> bool:
        """Whether every byte from `start` to `end` of a file was written."""
        file = self.file(name)
        return file is not None and end <= file.size and pieces.covers(file.ranges, start, end)

    def missing(self, spans: Iterable[Span]) -> list[Span]:
        """What of these spans is not there."""
        found = []
        for span in pieces.merged(spans):
            file = self.file(span.path)
            if file is None or span.end > file.size or span.start < 0:
                raise Internal(f"{span.path}: bytes {span.start} to {span.end} are in no file of the store")
            gaps = pieces.missing(file.ranges, span.start, span.end)
            found += [Span(span.path, *gap) for gap in gaps]
        return found

    @property
    def is_complete(self) -> bool:
        return bool(self.map.files) and all(file.is_whole for file in self.map.files)


def coverage(path: Path) -> Callable[[str, int, int], bool]:
    """Says of a model's directory whether bytes of a file may be read as weights.

    A partial store answers by its map, and one whose map was lost says no; any other directory is whole.
    """
    if not os.path.lexists(path / LOCK):
        return lambda name, start, end: True
    store = Partial.read(path)
    return store.covers if store is not None else lambda name, start, end: False


def with_ranges(file: MapFile, more: Iterable[Range]) -> MapFile:
    """The file with further ranges."""
    ranges = [(low, high) for low, high in file.ranges]
    for low, high in more:
        ranges = pieces.add(ranges, low, high)
    return msgspec.structs.replace(file, ranges=ranges)


def _believable(path: Path, file: MapFile) -> MapFile:
    """The file as the map has it; without ranges if the file itself says otherwise."""
    try:
        found = os.lstat(path / file.path)
        right = stat.S_ISREG(found.st_mode) and found.st_size == file.size
    except OSError:
        right = False
    ranges = [(low, high) for low, high in file.ranges]
    if right and pieces.well_formed(ranges, file.size):
        return msgspec.structs.replace(file, ranges=ranges)
    return msgspec.structs.replace(file, ranges=[], verified=False)
