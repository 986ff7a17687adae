"""Where models lie on this machine: the hub's cache, directories given by path, our own store.

A model is looked for by its digest, which means headers have to be read; an index keeps each
directory's digest beside what its files looked like then (sizes and times), so that they are read once.
The index holds directories that were named by path too, so that another process of this user finds
them. Reads the hub's cache by its published layout, without its library. No network in here.
"""

import os
import threading
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from exo_cli import atomic
from exo_cli.errors import ExoError
from exo_cli.fetch import elsewhere
from exo_cli.fetch.held import Held, held_directory, held_partial
from exo_cli.fetch.names import CONFIG, INDEX, is_digest, is_weights
from exo_cli.fetch.partial import Partial
from exo_cli.fetch.seek import FOLDER, seek
from exo_cli.models.directory import ModelDirectory
from exo_cli.schemas.first_use import shared

_SCHEMA: Final = "exo.models/1"
_MAX_INDEX_BYTES: Final = 64 * 1024 * 1024


class Known(msgspec.Struct, frozen=True):
    """What a directory was when it was last read; without a digest it is no model that we can use."""

    stamp: list[tuple[str, int, int, int]]
    digest: str | None
    weights: list[str]


class Index(msgspec.Struct, frozen=True, kw_only=True):
    """index.json: by directory."""

    schema: str = _SCHEMA
    directories: dict[str, Known] = {}


@dataclass(frozen=True, slots=True)
class Place:
    """A directory that may hold a model; `within` is set where it belongs to the hub's cache."""

    path: Path
    name: str
    revision: str = ""
    within: Path | None = None


def hub_cache() -> Path:
    """The hub's cache, by the variables that its own library reads."""
    for variable, below in (("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub")):
        if set_to := os.environ.get(variable):
            return Path(os.path.expandvars(os.path.expanduser(set_to)), below)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    return Path(os.path.expandvars(os.path.expanduser(base)), "huggingface", "hub")


class Stores:
    """The models of this machine. `weights` is our own store; `directories` are further ones to look in.

    Safe to use from several threads; every method may read a disk.
    """

    def __init__(self, weights: Path, *, hub: Path | None = None, directories: tuple[Path, ...] = ()) -> None:
        self.weights = weights
        self.hub = hub if hub is not None else hub_cache()
        self._directories = directories
        self._guard = threading.Lock()

    @property
    def beside_the_hub(self) -> Path:
        """Our store on the disk of the hub's cache: what ends there is not to fill another one first."""
        return self.hub / ".exo"

    @property
    def roots(self) -> list[Path]:
        """The directories that hold partial stores."""
        return [self.weights, *([self.beside_the_hub] if os.path.isdir(self.beside_the_hub) else [])]

    def root_for_hub(self) -> Path:
        """Where what the hub's cache is to get is kept until it is whole."""
        for path in (self.weights, self.hub):
            with suppress(OSError):
                path.mkdir(parents=True, exist_ok=True)
        try:
            same = os.stat(self.weights).st_dev == os.stat(self.hub).st_dev
        except OSError:
            same = True
        return self.weights if same else self.beside_the_hub

    def partials(self) -> list[Partial]:
        """What lies in our own stores, whole or not."""
        return list(self._own())

    def places(self) -> list[Place]:
        """The hub's cache, folders of other programs, directories that were named."""
        with self._guard:
            index = self._load()
        return self._places(index)

    def find(self, digest: str) -> Path | None:
        """A directory that holds this model whole."""
        held = self.held(digest)
        return held.path if held is not None and held.is_complete else None

    def held(self, digest: str) -> Held | None:
        """This model as it lies here: whole if it is somewhere, else the part in our own store."""
        if not is_digest(digest):
            return None
        parts = [part for root in self.roots if (part := Partial.read(root / digest)) is not None]
        own = next((part for part in parts if part.is_complete), parts[0] if parts else None)
        if own is not None and own.is_complete:
            return held_partial(own)
        with closing(self._examined(digest)) as examined:
            for place, known in examined:
                if known.digest == digest:
                    with suppress(ExoError):
                        return _held(place, known)
        return held_partial(own) if own is not None else None

    def directories_of(self, digest: str) -> list[Path]:
        """Every whole directory with this digest, but not our own stores."""
        with closing(self._examined(digest)) as examined:
            return [place.path for place, known in examined if known.digest == digest]

    def everything(self) -> list[Held]:
        """Every model of this machine, one entry a digest."""
        found: dict[str, Held] = {}
        for store in self._own():
            found[store.map.digest] = held_partial(store)
        with closing(self._examined(None)) as examined:
            for place, known in examined:
                there = found.get(known.digest or "")
                if known.digest is not None and not (there is not None and there.is_complete):
                    with suppress(ExoError):
                        found[known.digest] = _held(place, known)
        return [found[digest] for digest in sorted(found)]

    def open(self, path: Path) -> ModelDirectory:
        """A directory given by path, read and checked; from now on its digest is known here."""
        path = Path(os.path.abspath(path))
        stamp = _stamp(path)
        directory = ModelDirectory.open(path)
        with self._guard:
            index = self._load()
            self._save({**index, str(path): _known(directory, stamp)})
        return directory

    def resolve(self, name: str) -> Path:
        """The directory of a model as a person names it. Raises NotFound with the places looked at."""
        sought = seek(name, self.hub)
        if sought.path is None:
            raise sought.missing()
        return sought.path

    def _examined(self, digest: str | None) -> Generator[tuple[Place, Known], None, None]:
        """Every place with its entry; the ones that the index gives this digest first, unread ones last."""
        with self._guard:
            index = self._load()
        fresh: dict[str, Known] = {}
        try:
            for place in sorted(self._places(index), key=lambda place: _turn(index, place, digest)):
                stamp = _stamp(place.path)
                known = index.get(str(place.path))
                if known is None or known.stamp != stamp:
                    known = fresh[str(place.path)] = _read(place.path, stamp)
                yield place, known
        finally:
            if fresh:
                with self._guard:
                    self._save({**self._load(), **fresh})

    def _places(self, index: dict[str, Known]) -> list[Place]:
        places = {place.path: place for place in self._snapshots()}
        for path in (*self._directories, *elsewhere.models(), *map(Path, index)):
            if path not in places and path.parent not in self.roots and os.path.isdir(path):
                places[path] = Place(path, path.name)
        return list(places.values())

    def _snapshots(self) -> Iterator[Place]:
        for folder in _children(self.hub):
            if not folder.name.startswith(FOLDER):
                continue
            name = folder.name.removeprefix(FOLDER).replace("--", "/")
            for snapshot in _children(folder / "snapshots"):
                if os.path.isdir(snapshot):
                    yield Place(snapshot, name, snapshot.name, folder / "blobs")

    def _own(self) -> Iterator[Partial]:
        for path in (each for root in self.roots for each in _children(root)):
            if is_digest(path.name):
                store = Partial.read(path)
                if store is not None:
                    yield store

    @property
    def _index_path(self) -> Path:
        return self.weights / "index.json"

    def _load(self) -> dict[str, Known]:
        try:
            with open(self._index_path, "rb") as file:
                data = file.read(_MAX_INDEX_BYTES)
            index = msgspec.json.decode(data, type=shared(Index))
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            # A cache: what cannot be read is read from the models again.
            return {}
        return index.directories if index.schema == _SCHEMA else {}

    def _save(self, directories: dict[str, Known]) -> None:
        there = {path: known for path, known in directories.items() if os.path.isdir(path)}
        # Nothing is lost but time where it cannot be written.
        with suppress(OSError, ExoError, UnicodeEncodeError):
            self.weights.mkdir(parents=True, exist_ok=True)
            atomic.replace(self._index_path, msgspec.json.encode(Index(directories=there)) + b"\n")


def _held(place: Place, known: Known) -> Held:
    assert known.digest is not None
    return held_directory(
        place.path,
        known.digest,
        known.weights,
        name=place.name,
        revision=place.revision,
        within=place.within,
    )


def _turn(index: dict[str, Known], place: Place, digest: str | None) -> int:
    known = index.get(str(place.path))
    if known is None:
        return 1
    return 0 if known.digest == digest else 2


def _read(path: Path, stamp: list[tuple[str, int, int, int]]) -> Known:
    try:
        return _known(ModelDirectory.open(path), stamp)
    except (ExoError, OSError):
        return Known(stamp, None, [])


def _known(directory: ModelDirectory, stamp: list[tuple[str, int, int, int]]) -> Known:
    weights = [header.file for header in directory.files]
    # A name that cannot travel: the model runs here, but neighbours cannot have it.
    usable = all(map(is_weights, weights))
    return Known(stamp, directory.digest if usable else None, weights)


def _stamp(path: Path) -> list[tuple[str, int, int, int]]:
    """What the files that make the digest look like."""
    found = []
    for each in _children(path):
        if each.name in (CONFIG, INDEX) or each.name.endswith(".safetensors"):
            with suppress(OSError):
                # Links are followed: the hub's cache is made of them.
                status = os.stat(each)
                found.append((each.name, status.st_size, status.st_mtime_ns, status.st_ino))
    return found


def _children(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())
    except OSError:
        return []
