"""A model that lies in a directory of this machine, as others may see it: names, sizes, what is there.

Only files that travel are listed (names.py), and of links that leave the directory only weights and
config.json: those prove by their content what they are, while a tokenizer file could be a link to
anything that its owner can read. Knows nothing of the wire and does not look for models.
"""

import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from exo_cli.errors import BadData, InputOutput
from exo_cli.fetch import pieces
from exo_cli.fetch.names import CONFIG, MAX_SMALL_BYTES, SMALL_FILES, is_digest, is_weights
from exo_cli.fetch.partial import Partial
from exo_cli.fetch.pieces import Range
from exo_cli.models.safetensors import shown


@dataclass(frozen=True, slots=True)
class HeldFile:
    """One file: `ranges` is what of it is there; `mark` tells the file from one that replaced it; `etag` is
    the hub's name for the whole of it, where that is known."""

    name: str
    size: int
    ranges: Sequence[Range]
    mark: tuple[int, ...]
    etag: str = ""


@dataclass(frozen=True, slots=True)
class Held:
    """A model of this machine, whole or in part."""

    digest: str
    name: str
    revision: str
    path: Path
    files: dict[str, HeldFile]

    @property
    def is_complete(self) -> bool:
        return all(pieces.covers(file.ranges, 0, file.size) for file in self.files.values())

    def open(self, file: HeldFile) -> int:
        """A descriptor of the file that was listed, and of no other."""
        try:
            # A FIFO in the place of a file is refused, not waited for.
            descriptor = os.open(self.path / file.name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise InputOutput(f"{file.name} cannot be read: {(error.strerror or '').lower()}") from error
        now = mark_of(os.fstat(descriptor))
        if not file.mark or now[: len(file.mark)] != file.mark:
            os.close(descriptor)
            raise InputOutput(f"{file.name} was changed just now", hint="Try again.")
        return descriptor


def mark_of(found: os.stat_result) -> tuple[int, ...]:
    """What is another number when a file is another one."""
    if not stat.S_ISREG(found.st_mode):
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def held_directory(
    path: Path,
    digest: str,
    weights: Iterable[str],
    *,
    name: str,
    revision: str = "",
    within: Path | None = None,
) -> Held:
    """A complete directory. `weights` are its safetensors files; links may lead to `within` as well."""
    weights = tuple(weights)
    for each in weights:
        if not is_weights(each):
            raise BadData(f"{path} has a file called {shown(each)}, which other machines would not take")
    roots = [os.path.realpath(path), *([os.path.realpath(within)] if within is not None else [])]
    files = {}
    for each in (*weights, *SMALL_FILES):
        file = _whole(path, each, roots)
        if file is not None:
            files[each] = file
    if CONFIG not in files or not all(each in files for each in weights):
        raise BadData(f"{path} does not hold what it did a moment ago", hint="Try again.")
    return Held(digest, name, revision, path, files)


def held_partial(store: Partial) -> Held:
    """What a partial store has."""
    files = {}
    for file in store.map.files:
        try:
            # Without the time: it is being written.
            mark = mark_of(os.lstat(store.path / file.path))[:3]
        except OSError:
            continue
        files[file.path] = HeldFile(file.path, file.size, file.ranges, mark, file.etag)
    return Held(store.map.digest, store.map.name, store.map.revision, store.path, files)


def _whole(path: Path, name: str, roots: Sequence[str]) -> HeldFile | None:
    try:
        found = os.stat(path / name)
    except OSError:
        return None
    mark = mark_of(found)
    if not mark or found.st_size == 0:
        return None
    if not (is_weights(name) or name == CONFIG):
        real = os.path.realpath(path / name)
        inside = any(os.path.commonpath([root, real]) == root for root in roots)
        if not inside or found.st_size > MAX_SMALL_BYTES:
            return None
    # The hub's cache calls its files so.
    real = os.path.basename(os.path.realpath(path / name)) if is_weights(name) else ""
    return HeldFile(name, found.st_size, [(0, found.st_size)], mark, real if is_digest(real) else "")
