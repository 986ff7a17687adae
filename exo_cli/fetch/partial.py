"""A model of which this machine holds a part: files at their own offsets, and a map of what is there.

The files are as long as the whole ones and sparse; the map says which bytes were written. Bytes go to
the disk first and into the map after that, so whatever the map says survives a crash; what it does not
say is nobody's, however the file looks. One process writes at a time, under a lock that the kernel
takes back when it dies; readers need none, since the map is only ever replaced whole. Knows nothing of
where bytes come from, nor whether they are the right ones.
"""

import errno
import fcntl
import os
import stat
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from exo_cli import atomic
from exo_cli.errors import BadData, Internal, TryAgain
from exo_cli.fetch import pieces
from exo_cli.fetch.names import is_digest, is_small, is_weights
from exo_cli.fetch.pieces import Range, Span
from exo_cli.models.safetensors import shown

LOCK: Final = ".exo-lock"
MAP: Final = ".exo-map.json"
_SCHEMA: Final = "exo.map/1"
# macOS has no fdatasync.
_sync: Final[Callable[[int], None]] = getattr(os, "fdatasync", os.fsync)


class MapFile(msgspec.Struct, frozen=True):
    """One file in the map: its whole size, and the ranges that are there."""

    path: str
    size: int
    ranges: list[Range]


class Map(msgspec.Struct, frozen=True, kw_only=True):
    """.exo-map.json."""

    schema: str = _SCHEMA
    digest: str
    name: str
    revision: str
    files: list[MapFile]


@dataclass(frozen=True, slots=True)
class Partial:
    """What was in the map when it was read."""

    path: Path
    map: Map

    @classmethod
    def read(cls, path: Path) -> "Partial | None":
        """The store in the directory `path`, as far as its map and its files agree; None if it is none."""
        try:
            found = msgspec.json.decode((path / MAP).read_bytes(), type=Map)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            # Without a map nothing is there: whoever fetches begins anew.
            return None
        if found.schema != _SCHEMA or found.digest != path.name or not is_digest(found.digest):
            return None
        files = [
            _believable(path, file) for file in found.files if is_small(file.path) or is_weights(file.path)
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
        files = self.map.files
        return bool(files) and all(pieces.covers(file.ranges, 0, file.size) for file in files)


def coverage(path: Path) -> Callable[[str, int, int], bool]:
    """Says of a model's directory whether bytes of a file may be read as weights.

    A partial store answers by its map, and one whose map was lost says no; any other directory is whole.
    """
    if not os.path.lexists(path / LOCK):
        return lambda name, start, end: True
    store = Partial.read(path)
    return store.covers if store is not None else lambda name, start, end: False


class PartialWriter:
    """The one writer of a partial store. Safe to use from several threads."""

    def __init__(self, path: Path, lock: int, store: Map) -> None:
        self.path = path
        self._lock = lock
        self._map = store
        self._guard = threading.Lock()

    @classmethod
    def open(cls, weights: Path, digest: str, *, name: str = "", revision: str = "") -> "PartialWriter":
        """Take the store of this digest under `weights`, made if it is missing.

        Raises TryAgain while another process writes it.
        """
        if not is_digest(digest):
            raise BadData(f"{shown(digest)} is no digest of a model")
        path = weights / digest
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise atomic.cannot_write(path / LOCK, error) from error
        try:
            _take(lock, path)
            there = Partial.read(path)
            fresh = Map(digest=digest, name=name, revision=revision, files=[])
            return cls(path, lock, there.map if there is not None else fresh)
        except BaseException:
            os.close(lock)
            raise

    @property
    def view(self) -> Partial:
        """What is there now."""
        return Partial(self.path, self._map)

    def add(self, sizes: dict[str, int]) -> None:
        """Make the files: as long as they will be, and empty. Those that are there stay as they are."""
        with self._guard:
            known = {file.path: file for file in self._map.files}
            for name, size in sizes.items():
                if not (is_small(name) or is_weights(name)):
                    raise BadData(f"{shown(name)} is no file of a model")
                file = known.get(name)
                if file is None or file.size != size:
                    known[name] = MapFile(name, size, [])
                if is_weights(name):
                    self._make(name, size)
            self._save(list(known.values()))

    def put(self, name: str, data: bytes) -> None:
        """A small file, whole: it appears with all its bytes or not at all."""
        if not is_small(name):
            raise BadData(f"{shown(name)} is no small file of a model")
        atomic.replace(self.path / name, data)
        self.add({name: len(data)})
        self.mark([Span(name, 0, len(data))])

    def write_at(self, name: str, start: int, data: bytes | bytearray) -> None:
        """Bytes at their place, on the disk when this returns; not in the map yet."""
        file = self.view.file(name)
        if file is None or not is_weights(name) or start < 0 or start + len(data) > file.size:
            raise Internal(f"{name}: bytes {start} to {start + len(data)} are in no file of the store")
        try:
            descriptor = os.open(self.path / name, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                rest = memoryview(data)
                while rest:
                    written = os.pwrite(descriptor, rest, start)
                    rest, start = rest[written:], start + written
                _sync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise atomic.cannot_write(self.path / name, error) from error

    def mark(self, spans: Iterable[Span]) -> None:
        """Put bytes that are on the disk into the map."""
        with self._guard:
            if self._lock < 0:
                # A thread that outlived the fetch it worked for; another writer may be at the map by now.
                return
            files = {file.path: file for file in self._map.files}
            for name, start, end in spans:
                file = files[name]
                files[name] = MapFile(name, file.size, pieces.add(file.ranges, start, end))
            self._save(list(files.values()))

    def keep(self, name: str, start: int, data: bytes | bytearray) -> None:
        """Write, then mark."""
        self.write_at(name, start, data)
        self.mark([Span(name, start, start + len(data))])

    def forget(self) -> None:
        """Nothing in the store is to be believed: begin anew."""
        with self._guard:
            names = [file.path for file in self._map.files]
            self._save([])
            try:
                for name in names:
                    (self.path / name).unlink(missing_ok=True)
            except OSError as error:
                raise atomic.cannot_write(self.path, error) from error

    def close(self) -> None:
        with self._guard:
            if self._lock >= 0:
                # Closing is enough unless a forked child has it open, too; where there is no flock
                # there is nothing to give back.
                with suppress(OSError):
                    fcntl.flock(self._lock, fcntl.LOCK_UN)
                os.close(self._lock)
                self._lock = -1

    def __enter__(self) -> "PartialWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _make(self, name: str, size: int) -> None:
        try:
            descriptor = os.open(
                self.path / name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644
            )
            try:
                if os.fstat(descriptor).st_size != size:
                    os.ftruncate(descriptor, 0)
                    os.ftruncate(descriptor, size)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise atomic.cannot_write(self.path / name, error) from error

    def _save(self, files: list[MapFile]) -> None:
        made = msgspec.structs.replace(self._map, files=sorted(files, key=lambda file: file.path))
        atomic.replace(self.path / MAP, msgspec.json.encode(made) + b"\n")
        self._map = made


def _believable(path: Path, file: MapFile) -> MapFile:
    """The file as the map has it; without ranges if the file itself says otherwise."""
    try:
        found = os.lstat(path / file.path)
        right = stat.S_ISREG(found.st_mode) and found.st_size == file.size
    except OSError:
        right = False
    ranges = [(low, high) for low, high in file.ranges]
    return MapFile(file.path, file.size, ranges if right and pieces.well_formed(ranges, file.size) else [])


def _take(lock: int, path: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise TryAgain(
            f"another process is fetching this model into {path}", hint="Try again when it is through."
        ) from error
    except OSError as error:
        # Some network file systems have no flock. Two writers there write the same bytes.
        if error.errno not in (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL):
            raise atomic.cannot_write(path / LOCK, error) from error
