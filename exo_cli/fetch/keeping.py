"""The store of one model of the hub: taken, filled with what is known or lies on this machine, and finished.

Knows nothing of the network.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from exo_cli.errors import TryAgain
from exo_cli.fetch import pieces
from exo_cli.fetch.cache_layout import move_into_cache
from exo_cli.fetch.heads import Heads
from exo_cli.fetch.hub_client import Repository
from exo_cli.fetch.names import is_weights
from exo_cli.fetch.partial import Partial
from exo_cli.fetch.partial_writer import PartialWriter
from exo_cli.fetch.patience import Stopped
from exo_cli.fetch.pieces import Span
from exo_cli.fetch.ranges import stage_ranges, whole_files
from exo_cli.fetch.seek import repository_folder
from exo_cli.fetch.stores import Stores
from exo_cli.fetch.verify import file_is_content
from exo_cli.models.directory import ModelDirectory

_LOCK_RETRY_S: Final = 0.2


def wanted_of(directory: ModelDirectory, layers: tuple[int, int] | None, count: int) -> list[Span]:
    """The bytes for those layers, or all."""
    return whole_files(directory) if layers is None else stage_ranges(directory, *layers, count)


@contextmanager
def opened(
    stores: Stores, digest: str, repository: Repository, stopped: threading.Event
) -> Iterator[PartialWriter]:
    """The store, once nobody else writes it: what they get, we need not."""
    root = stores.root_for_hub()
    while True:
        try:
            writer = PartialWriter.open(
                root,
                digest,
                name=repository.name,
                revision=repository.commit,
                repository=repository.name,
            )
            break
        except TryAgain:
            if stopped.wait(_LOCK_RETRY_S):
                raise Stopped from None
    with writer:
        yield writer


def prepare(writer: PartialWriter, repository: Repository, heads: Heads) -> None:
    """The files as the hub lists them; what an earlier fetch left of another kind is not mixed in."""
    sizes, etags = repository.sizes, repository.etags
    known = writer.view
    if any(sizes.get(file.path) != file.size for file in known.map.files) or not all(
        _begins_alike(known, name, data) for name, data in heads.beginnings.items()
    ):
        writer.forget()
    weights = {name: size for name, size in sizes.items() if is_weights(name)}
    writer.add(weights, etags)
    spans = [Span(name, 0, len(data)) for name, data in heads.beginnings.items()]
    gaps = writer.view.missing(spans)
    for gap in gaps:
        writer.write_at(gap.path, gap.start, heads.beginnings[gap.path][gap.start : gap.end])
    writer.mark(gaps)
    lacking = {}
    for name, data in heads.small.items():
        there = writer.file(name)
        if there is None or not there.verified or there.etag != etags[name]:
            lacking[name] = data
    writer.put_all(lacking, etags)


def adopt(
    writer: PartialWriter,
    repository: Repository,
    digest: str,
    wanted: Sequence[Span],
    stores: Stores,
    stopped: threading.Event,
) -> None:
    """Whole files that lie on this machine already."""
    blobs = repository_folder(stores.hub, repository.name) / "blobs"
    elsewhere: list[Path] | None = None
    for name in dict.fromkeys(span.path for span in wanted):
        file = repository.files[name]
        there = writer.file(name)
        if there is not None and there.is_whole:
            continue
        if size_of(blobs / file.etag) == file.size:
            _take(writer, name, blobs / file.etag)
            continue
        if elsewhere is None:
            elsewhere = stores.directories_of(digest)
        for path in (each / name for each in elsewhere):
            # The digest says nothing of the weights' own bytes.
            if size_of(path) == file.size and file_is_content(path, file.etag, stopped):
                _take(writer, name, path)
                break


def finished(writer: PartialWriter, hub: Path, revision: str) -> tuple[Path, str]:
    """Where the model is, and its digest: in the hub's cache if whole and verified, else in the store."""
    store = writer.view
    if not all(file.is_whole and file.verified for file in store.map.files) or not store.map.repository:
        return writer.path, store.map.digest
    # A header that was wrong on its way is right by now: what counts is what lies here.
    digest = ModelDirectory.open(writer.path).digest
    return move_into_cache(writer, hub, revision), digest


def size_of(path: Path) -> int:
    """-1 where there is nothing."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _begins_alike(store: Partial, name: str, data: bytes) -> bool:
    """Whether a file in the store begins as this one does, as far as it is there."""
    if not store.covers(name, 0, len(data)):
        return True
    try:
        with open(store.path / name, "rb") as file:
            return file.read(len(data)) == data
    except OSError:
        return False


def _take(writer: PartialWriter, name: str, source: Path) -> None:
    """A file that lies on this machine: linked where that is possible, else copied and compared later."""
    if writer.adopt(name, source, verified=True):
        return
    with open(source, "rb") as file:
        at = 0
        while data := file.read(pieces.PIECE_BYTES):
            writer.write(name, at, [data])
            writer.note(name, at, at + len(data))
            at += len(data)
    writer.settle()
