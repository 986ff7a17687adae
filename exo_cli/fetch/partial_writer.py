"""The one writer of a partial store.

Bytes go to the disk first and into the map after that, so whatever the map says survives a crash. Between
two of these, which cost a wait for the disk, a journal says what was written: it survives the process, and
is not believed once the machine was started anew. One process writes at a time, under a lock that the
kernel takes back when it dies. Knows nothing of where bytes come from, nor whether they are the right ones.
"""

import os
import stat
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from exo_cli import atomic
from exo_cli.errors import BadData, Internal
from exo_cli.fetch import journal, sparse
from exo_cli.fetch.names import is_digest, is_small, is_weights
from exo_cli.fetch.partial import LOCK, MAP, Map, MapFile, Partial, with_ranges
from exo_cli.fetch.pieces import Span
from exo_cli.models.safetensors import shown


class PartialWriter:
    """The one writer of a partial store. Safe to use from several threads."""

    def __init__(self, path: Path, lock: int, store: Map) -> None:
        self.path = path
        self._lock = lock
        self._map = store
        self._files = {file.path: file for file in store.files}
        self._on_disk = dict(self._files)
        """As the map file has it; `_files` has what is only in the journal, too."""
        self._journal = journal.Journal(path)
        self._noted: list[Span] = []
        self._guard = threading.RLock()
        self._settling = threading.Lock()

    @classmethod
    def open(
        cls, weights: Path, digest: str, *, name: str = "", revision: str = "", repository: str = ""
    ) -> "PartialWriter":
        """Take the store of this digest under `weights`, made if it is missing.

        Raises TryAgain while another process writes it.
        """
        if not is_digest(digest):
            raise BadData(f"{shown(digest)} is no digest of a model")
        path = weights / digest
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise atomic.cannot_write(path, error) from error
        lock = sparse.lock(path / LOCK)
        try:
            there = Partial.read(path)
            fresh = Map(digest=digest, name=name, revision=revision, repository=repository, files=[])
            found = there.map if there is not None else fresh
            if repository:
                found = msgspec.structs.replace(found, name=name, revision=revision, repository=repository)
            writer = cls(path, lock, found)
            if os.path.lexists(path / journal.JOURNAL):
                # What a killed writer noted: to the disk and into the map before anything else.
                noted = journal.read(path).items()
                writer._noted = [
                    Span(name, *each) for name, spans in noted if name in writer._files for each in spans
                ]
                writer.settle()
            return writer
        except BaseException:
            sparse.unlock(lock)
            raise

    @property
    def view(self) -> Partial:
        """What is there now."""
        with self._guard:
            return Partial(self.path, msgspec.structs.replace(self._map, files=list(self._files.values())))

    def file(self, name: str) -> MapFile | None:
        """What is there of one file now."""
        with self._guard:
            return self._files.get(name)

    def add(self, sizes: dict[str, int], etags: dict[str, str] | None = None) -> None:
        """Make the files: as long as they will be, and empty. Those that are there stay as they are.

        A file that the hub calls otherwise than before is another one: nothing of the old one stays.
        """
        with self._guard:
            for name, size in sizes.items():
                if not (is_small(name) or is_weights(name)):
                    raise BadData(f"{shown(name)} is no file of a model")
                etag = (etags or {}).get(name, "")
                file = self._files.get(name)
                if file is None or file.size != size or (etag and file.etag not in ("", etag)):
                    self._files[name] = MapFile(name, size, [], etag)
                elif etag:
                    self._files[name] = msgspec.structs.replace(file, etag=etag)
                if is_weights(name):
                    self._make(self._files[name])
        self.settle()

    def put(self, name: str, data: bytes) -> None:
        """A small file, whole: it appears with all its bytes or not at all."""
        self.put_all({name: data})

    def put_all(self, files: Mapping[str, bytes], etags: Mapping[str, str] | None = None) -> None:
        """Several small files. With an etag: the content was compared with that."""
        made = {}
        for name, data in files.items():
            if not is_small(name):
                raise BadData(f"{shown(name)} is no small file of a model")
            atomic.replace(self.path / name, data)
            etag = (etags or {}).get(name, "")
            made[name] = MapFile(name, len(data), [(0, len(data))], etag, bool(etag))
        if made:
            with self._guard:
                self._files |= made
            self.settle()

    def write_at(self, name: str, start: int, data: bytes | bytearray) -> None:
        """Bytes at their place, on the disk when this returns; not in the map yet."""
        self.write(name, start, [data])
        sparse.sync(self.path / name)

    def write(self, name: str, start: int, parts: Sequence[sparse.Part]) -> None:
        """Bytes at their place, one part after the other; neither surely on the disk nor in the map yet."""
        file, end = self.file(name), start + sum(map(len, parts))
        if file is None or not is_weights(name) or start < 0 or end > file.size:
            raise Internal(f"{name}: bytes {start} to {end} are in no file of the store")
        sparse.write(self.path / name, start, parts)

    def note(self, name: str, start: int, end: int) -> None:
        """Put bytes that were written into the journal: cheap, and enough unless the machine itself stops."""
        with self._guard:
            if self._lock < 0:
                # A thread that outlived the fetch it worked for; another writer may be at the map by now.
                return
            self._files[name] = with_ranges(self._files[name], [(start, end)])
            self._noted.append(Span(name, start, end))
            self._journal.note(name, start, end)

    def settle(self) -> None:
        """Everything that was noted goes to the disk, and into the map."""
        with self._settling:
            with self._guard:
                if self._lock < 0:
                    return
                noted, self._noted = self._noted, []
                files = dict(self._files)
            for name in sorted({span.path for span in noted}):
                sparse.sync(self.path / name)
            with self._guard:
                self._save(files)
                self._journal.keep(self._noted)

    def mark(self, spans: Iterable[Span]) -> None:
        """Put bytes that are on the disk into the map."""
        with self._guard:
            if self._lock < 0:
                return
            for name, start, end in spans:
                self._files[name] = with_ranges(self._files[name], [(start, end)])
                self._on_disk[name] = with_ranges(self._on_disk[name], [(start, end)])
            self._save(self._on_disk)

    def keep(self, name: str, start: int, data: bytes | bytearray) -> None:
        """Write, then mark."""
        self.write_at(name, start, data)
        self.mark([Span(name, start, start + len(data))])

    def adopt(self, name: str, source: Path, *, verified: bool) -> bool:
        """Take a whole file that lies elsewhere on the same file system; False if that is not possible."""
        file = self.file(name)
        if file is None:
            raise Internal(f"{name} is no file of the store")
        new = self.path / f".{name}.adopted"
        try:
            real = source.resolve(strict=True)
            found = os.lstat(real)
            if not stat.S_ISREG(found.st_mode) or found.st_size != file.size:
                return False
            new.unlink(missing_ok=True)
            os.link(real, new)
            os.replace(new, self.path / name)
        except OSError:
            return False
        with self._guard:
            self._files[name] = msgspec.structs.replace(file, ranges=[(0, file.size)], verified=verified)
        self.settle()
        return True

    def verified(self, name: str) -> None:
        """The whole file is what the hub calls it."""
        with self._guard:
            self._files[name] = msgspec.structs.replace(self._files[name], verified=True)
        self.settle()

    def drop(self, name: str) -> None:
        """Nothing of one file is to be believed."""
        with self._guard:
            file = self._files[name]
            self._noted = [span for span in self._noted if span.path != name]
            self._files[name] = msgspec.structs.replace(file, ranges=[], verified=False)
            if is_weights(name):
                # Anew, not emptied: it may be one that was adopted.
                (self.path / name).unlink(missing_ok=True)
                self._make(self._files[name])
            # The journal first, or what it still says would be believed after a crash.
            self._journal.keep(self._noted)
            self._save({**self._on_disk, name: self._files[name]})

    def forget(self) -> None:
        """Nothing in the store is to be believed: begin anew."""
        with self._guard:
            names = list(self._files)
            self._files, self._noted = {}, []
            self._journal.keep([])
            self._save({})
            try:
                for name in names:
                    (self.path / name).unlink(missing_ok=True)
            except OSError as error:
                raise atomic.cannot_write(self.path, error) from error

    def remove(self) -> None:
        """Take the store away with all that is in it; the lock is given back."""
        self.forget()
        with self._guard:
            self._journal.close()
            try:
                for name in (MAP, journal.JOURNAL, LOCK):
                    (self.path / name).unlink(missing_ok=True)
                for each in self.path.iterdir():
                    if each.name.startswith("."):
                        each.unlink()  # what a killed writer left
                self.path.rmdir()
            except OSError as error:
                raise atomic.cannot_write(self.path, error) from error
        self.close()

    def close(self) -> None:
        with self._guard:
            self._journal.close()
            if self._lock >= 0:
                sparse.unlock(self._lock)
                self._lock = -1

    def __enter__(self) -> "PartialWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _make(self, file: MapFile) -> None:
        sparse.make(self.path / file.path, file.size, writable=not file.is_whole)

    def _save(self, files: dict[str, MapFile]) -> None:
        ordered = sorted(files.values(), key=lambda file: file.path)
        made = msgspec.structs.replace(self._map, files=ordered)
        atomic.replace(self.path / MAP, msgspec.json.encode(made) + b"\n")
        self._map, self._on_disk = made, dict(files)
