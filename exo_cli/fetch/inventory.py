"""Every model of this machine as a person may want to see it: where, how much of it, since when unused.

And what follows from that: comparing what is here with what the hub calls it, and removing it. Only the
hub's cache and our own stores are ever removed from. Knows nothing of the network, nor of how it is shown.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from exo_cli import atomic
from exo_cli.errors import ExoError
from exo_cli.fetch.heads import HeadShelf
from exo_cli.fetch.hub_client import hub_names
from exo_cli.fetch.partial import Partial
from exo_cli.fetch.partial_writer import PartialWriter
from exo_cli.fetch.ranges import layers_covered, layers_in_model
from exo_cli.fetch.seek import FOLDER
from exo_cli.fetch.stores import Stores
from exo_cli.fetch.verify import file_is_content
from exo_cli.models.directory import ModelDirectory

Place = Literal["hub", "store", "folder"]
State = Literal["complete", "partial", "unverified", "bad"]


@dataclass(frozen=True, slots=True)
class Here:
    """One model in one place."""

    name: str
    revision: str
    digest: str
    path: Path
    place: Place
    state: State
    layers: tuple[tuple[int, int], ...]
    """Runs of layers that are whole, last ones excluded."""
    layers_in_model: int
    held_bytes: int
    total_bytes: int
    used_unix_s: float


def inventory(stores: Stores) -> list[Here]:
    """What is here, by name; one entry a place."""
    found = [_partial(store) for store in stores.partials() if store.map.files]
    for place in stores.places():
        found.append(_directory(place.path, place.name, place.revision, hub=place.within is not None))
    return sorted(found, key=lambda here: (here.name.casefold(), here.revision, str(here.path)))


def matching(found: Iterable[Here], name: str, repository: str | None) -> list[Here]:
    """Those that a person may mean by a name, a path or a digest."""
    path = Path(os.path.abspath(os.path.expanduser(name)))
    known = {name, repository or name}
    return [
        here
        for here in found
        if here.name in known
        or here.path == path
        or f"{here.name}@{here.revision}" == name
        or (len(name) >= 8 and here.digest.startswith(name))
    ]


@dataclass(frozen=True, slots=True)
class Checked:
    """One file, compared."""

    path: Path
    model: str
    size: int
    state: Literal["right", "wrong", "unknown"]
    """`unknown`: nobody said what it should be, or a part of it is not here."""


def check(found: Sequence[Here], told: Callable[[Checked], None]) -> list[Checked]:
    """Read every file that the hub has a name for; what is wrong in a store of ours is fetched again next."""
    checked = []
    for here in found:
        for each in _check_store(here) if here.place == "store" else _check_directory(here):
            told(each)
            checked.append(each)
    return checked


def remove(found: Sequence[Here], stores: Stores) -> int:
    """Take these away; how many bytes that frees. Folders of other programs stay."""
    freed = 0
    for here in found:
        if here.place == "store":
            with PartialWriter.open(here.path.parent, here.path.name) as writer:
                shelf = HeadShelf(stores.weights)
                shelf.drop([file.etag for file in writer.view.map.files if hub_names(file.etag)])
                freed += _on_disk(here.path)
                writer.remove()
        elif here.place == "hub":
            freed += _remove_snapshot(here, stores.hub)
    return freed


def _partial(store: Partial) -> Here:
    files = store.map.files
    held = sum(high - low for file in files for low, high in file.ranges)
    total = sum(file.size for file in files)
    runs: list[tuple[int, int]] = []
    count = 0
    with suppress(ExoError):
        directory = ModelDirectory.open(store.path)
        count = layers_in_model(directory.config)
        runs = layers_covered(directory, store.covers, count)
    state: State = "partial"
    if all(file.is_whole for file in files):
        state = "complete" if all(file.verified for file in files) else "unverified"
    elif any(file.ranges and not file.verified for file in files):
        state = "unverified"
    return Here(
        name=store.map.name or store.map.repository,
        revision=store.map.revision,
        digest=store.map.digest,
        path=store.path,
        place="store",
        state=state,
        layers=tuple(runs),
        layers_in_model=count,
        held_bytes=held,
        total_bytes=total,
        used_unix_s=_used(store.path),
    )


def _directory(path: Path, name: str, revision: str, *, hub: bool) -> Here:
    digest, count, total = "", 0, 0
    state: State = "complete"
    try:
        directory = ModelDirectory.open(path)
        digest, total = directory.digest, sum(header.size for header in directory.files)
        count = layers_in_model(directory.config)
    except ExoError:
        state = "partial" if hub else "bad"
    return Here(
        name=name,
        revision=revision,
        digest=digest,
        path=path,
        place="hub" if hub else "folder",
        state=state,
        layers=((0, count),) if count else (),
        layers_in_model=count,
        held_bytes=_held(path),
        total_bytes=total,
        used_unix_s=_used(path),
    )


def _held(path: Path) -> int:
    return sum(each.stat().st_size for each in _files(path))


def _used(path: Path) -> float:
    """When it was last read, as far as the file system keeps that."""
    return max((max(each.stat().st_atime, each.stat().st_mtime) for each in _files(path)), default=0.0)


def _files(path: Path) -> list[Path]:
    with suppress(OSError):
        return [each for each in path.iterdir() if each.is_file() and not each.name.startswith(".")]
    return []


def _on_disk(path: Path) -> int:
    return sum(each.stat().st_blocks * 512 for each in _files(path))


def _check_store(here: Here) -> Iterable[Checked]:
    with PartialWriter.open(here.path.parent, here.path.name) as writer:
        for file in writer.view.map.files:
            path = here.path / file.path
            if not file.is_whole or not hub_names(file.etag):
                yield Checked(path, here.name, file.size, "unknown")
            elif file_is_content(path, file.etag):
                writer.verified(file.path)
                yield Checked(path, here.name, file.size, "right")
            else:
                writer.drop(file.path)
                yield Checked(path, here.name, file.size, "wrong")


def _check_directory(here: Here) -> Iterable[Checked]:
    for path in sorted(_files(here.path)):
        etag = path.resolve().name
        size = path.stat().st_size
        if here.place != "hub" or not hub_names(etag):
            yield Checked(path, here.name, size, "unknown")
        else:
            yield Checked(path, here.name, size, "right" if file_is_content(path, etag) else "wrong")


def _remove_snapshot(here: Here, hub: Path) -> int:
    """A commit of the hub's cache, with the blobs and references that only it has."""
    folder = here.path.parent.parent
    if not (folder.parent == hub and folder.name.startswith(FOLDER)):
        return 0
    mine = {each.resolve() for each in here.path.rglob("*") if each.is_symlink()}
    others = (each for each in here.path.parent.iterdir() if each != here.path)
    kept = {link.resolve() for other in others for link in other.rglob("*") if link.is_symlink()}
    freed = 0
    try:
        for reference in (folder / "refs").rglob("*"):
            if reference.is_file() and reference.read_text(encoding="utf-8").strip() == here.revision:
                reference.unlink()
        for each in sorted(here.path.rglob("*"), reverse=True):
            if each.is_dir() and not each.is_symlink():
                each.rmdir()
            else:
                freed += 0 if each.is_symlink() else each.stat().st_size
                each.unlink()
        here.path.rmdir()
        for blob in mine - kept:
            if blob.parent == folder.resolve() / "blobs" and blob.exists():
                freed += blob.stat().st_size
                blob.unlink()
    except OSError as error:
        raise atomic.cannot_write(here.path, error) from error
    return freed


def covered_text(runs: Sequence[tuple[int, int]], count: int) -> str:
    """0-15 or all; the last layer is included, as people count them."""
    if count and list(runs) == [(0, count)]:
        return "all"
    return ",".join(f"{first}-{last - 1}" for first, last in runs) or "-"
