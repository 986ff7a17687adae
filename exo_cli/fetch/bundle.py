"""A model in a plain folder, for machines without the internet: written whole, taken in and verified.

The folder holds the files under their own names, as any program of the family reads them, and a list of
what the hub calls each content. Taking it in goes the way of a fetch: resumable, every file compared,
and at the end in the hub's cache. Knows nothing of the network.
"""

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from exo_cli import atomic
from exo_cli.errors import BadData, CannotCreate, InputOutput, NotFound
from exo_cli.fetch.hub_client import HubFile, Repository, hub_names
from exo_cli.fetch.names import check_listing, is_small, is_weights
from exo_cli.fetch.patience import Patience
from exo_cli.fetch.seek import is_commit, is_repository
from exo_cli.fetch.verify import file_is_content
from exo_cli.schemas.first_use import shared

LIST: Final = "exo-model.json"
_SCHEMA: Final = "exo.model-files/1"
_MAX_LIST_BYTES: Final = 16 * 1024 * 1024
_READ_BYTES: Final = 1024 * 1024


class ListedFile(msgspec.Struct, frozen=True):
    """A file, and the hub's name for its content."""

    name: str
    size: int
    etag: str


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """exo-model.json."""

    schema: str = _SCHEMA
    repository: str
    commit: str
    files: list[ListedFile]


def read_contents(folder: Path) -> Repository:
    """What a folder says that it holds; nothing of it is believed before it was compared."""
    try:
        with open(folder / LIST, "rb") as file:
            found = msgspec.json.decode(file.read(_MAX_LIST_BYTES), type=shared(Contents))
    except FileNotFoundError as error:
        raise NotFound(
            f"there is no {LIST} in {folder}", hint="Name a folder that exo fetch --export wrote."
        ) from error
    except OSError as error:
        raise InputOutput(f"{folder / LIST} cannot be read: {(error.strerror or '').lower()}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadData(f"{folder / LIST} is no list of a model's files: {error}"[:300]) from error
    if found.schema != _SCHEMA or not is_repository(found.repository) or not is_commit(found.commit):
        raise BadData(f"{folder / LIST} names no repository at a commit")
    sizes = check_listing(((file.name, file.size) for file in found.files), str(folder / LIST))
    files = {file.name: HubFile(file.name, file.size, file.etag) for file in found.files}
    if not all(hub_names(file.etag) for file in files.values()):
        raise BadData(f"{folder / LIST} does not say what the content of every file is")
    return Repository(found.repository, found.commit, {name: files[name] for name in sizes})


class FolderClient:
    """Answers as the hub does, from such a folder."""

    def __init__(self, folder: Path, contents: Repository | None = None) -> None:
        self._contents = contents
        self._folder = Path(os.path.abspath(folder))
        self.endpoint = str(self._folder)

    def listing(self, patience: Patience) -> Repository:
        return self._contents if self._contents is not None else read_contents(self._folder)

    def read(self, file: HubFile, start: int, end: int, patience: Patience) -> bytes:
        data = bytearray()
        with self.open(file, start, end) as chunks:
            for chunk in chunks:
                data += chunk
        if len(data) < end - start:
            raise self.short(file, start + len(data))
        return bytes(data)

    @contextmanager
    def open(self, file: HubFile, start: int, end: int) -> Iterator[Iterator[bytes]]:
        try:
            descriptor = os.open(self._folder / file.name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(descriptor, "rb", buffering=0) as source:
                found = os.fstat(descriptor)
                if not stat.S_ISREG(found.st_mode) or found.st_size != file.size:
                    raise BadData(
                        f"{file.name} in {self._folder} has not the {file.size} bytes that are listed"
                    )
                yield _chunks(source.fileno(), start, end)
        except OSError as error:
            raise InputOutput(
                f"{self._folder / file.name} cannot be read: {(error.strerror or '').lower()}"
            ) from error

    def short(self, file: HubFile, at: int) -> BadData:
        return BadData(f"{file.name} in {self._folder} ends at byte {at} of {file.size}")


def snapshot_contents(snapshot: Path, repository: str) -> Repository:
    """What a snapshot of the hub's cache holds, by the names that its blobs have."""
    files = {}
    for path in sorted(snapshot.iterdir()):
        etag = path.resolve().name
        if (is_small(path.name) or is_weights(path.name)) and path.is_file() and hub_names(etag):
            files[path.name] = HubFile(path.name, path.stat().st_size, etag)
    check_listing(((file.name, file.size) for file in files.values()), str(snapshot))
    return Repository(repository, snapshot.name, files)


def export(snapshot: Path, repository: str, folder: Path, told: Callable[[str, int, int], None]) -> int:
    """The files of a snapshot of the hub's cache, each compared, and then the list; how many bytes."""
    contents = snapshot_contents(snapshot, repository)
    files = [
        (snapshot / file.name, ListedFile(file.name, file.size, file.etag))
        for file in contents.files.values()
    ]
    total, done = contents.total_bytes, 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        lacking = sum(file.size for _, file in files if not _is(folder / file.name, file))
        if lacking > free:
            raise CannotCreate(
                f"{folder} has {free:,} bytes free and {lacking:,} are to be written",
                hint="Free some space there, or name another place.",
            )
        for path, file in files:
            if not file_is_content(path, file.etag):
                raise BadData(
                    f"{path} is not what the hub calls {file.etag[:16]}…",
                    hint="Remove it with exo fetch --prune, and fetch the model again.",
                )
            if not _is(folder / file.name, file):
                new = folder / f".{file.name}.new"
                shutil.copyfile(path, new)
                os.replace(new, folder / file.name)
            done += file.size
            told(file.name, done, total)
    except OSError as error:
        raise atomic.cannot_write(folder, error) from error
    listed = Contents(repository=repository, commit=contents.commit, files=[file for _, file in files])
    atomic.replace(folder / LIST, msgspec.json.format(msgspec.json.encode(listed), indent=1) + b"\n")
    return total


def _is(path: Path, file: ListedFile) -> bool:
    """Whether an earlier export wrote it."""
    return path.is_file() and path.stat().st_size == file.size and file_is_content(path, file.etag)


def _chunks(descriptor: int, start: int, end: int) -> Iterator[bytes]:
    while start < end:
        data = os.pread(descriptor, min(_READ_BYTES, end - start), start)
        if not data:
            return
        yield data
        start += len(data)
