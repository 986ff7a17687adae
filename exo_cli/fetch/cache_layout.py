"""A whole, verified model from our partial store into the hub's standard cache, where everybody finds it.

Blobs by the hub's name for them, a snapshot of links for the commit, and last of all the reference of
the revision. Each file is linked, not moved, and the store goes when everything is there: a process
that is killed in between has lost nothing. Knows nothing of the network.
"""

import errno
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final

from exo_cli import atomic
from exo_cli.errors import Internal
from exo_cli.fetch.partial import Partial
from exo_cli.fetch.partial_writer import PartialWriter
from exo_cli.fetch.seek import is_commit, repository_folder

_NO_LINKS: Final = frozenset((errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS))


def move_into_cache(writer: PartialWriter, hub: Path, revision: str) -> Path:
    """The snapshot; the store is gone then. Every file must be whole and verified."""
    store = writer.view
    if not all(file.is_whole and file.verified for file in store.map.files) or not store.map.repository:
        raise Internal(f"{store.path} is not whole")
    folder = repository_folder(hub, store.map.repository)
    snapshot = link_into_cache(store, folder)
    refer(folder, revision, store.map.revision)
    writer.remove()
    return snapshot


def link_into_cache(store: Partial, folder: Path) -> Path:
    """Blobs and the snapshot of links."""
    snapshot = folder / "snapshots" / store.map.revision
    try:
        (folder / "blobs").mkdir(parents=True, exist_ok=True)
        snapshot.mkdir(parents=True, exist_ok=True)
        for file in store.map.files:
            blob = folder / "blobs" / file.etag
            if not _has_size(blob, file.size):
                _link(store.path / file.path, blob)
            _point(snapshot / file.path, blob)
    except OSError as error:
        raise atomic.cannot_write(Path(error.filename2 or error.filename or folder), error) from error
    return snapshot


def refer(folder: Path, revision: str, commit: str) -> None:
    """From now on the revision stands for this commit."""
    if is_commit(revision):
        return
    reference = folder / "refs" / revision
    with suppress(OSError):
        if reference.read_text(encoding="utf-8") == commit:
            return
    try:
        reference.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise atomic.cannot_write(reference, error) from error
    atomic.replace(reference, commit.encode())


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _link(source: Path, target: Path) -> None:
    """The same file under a second name; a copy where that cannot be."""
    new = target.with_name(f"{target.name}.{secrets.token_hex(4)}.incomplete")
    try:
        os.link(source, new)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        try:
            shutil.copyfile(source, new)
            with open(new, "rb") as copied:
                os.fsync(copied.fileno())
        except BaseException:
            new.unlink(missing_ok=True)
            raise
    os.replace(new, target)


def _point(link: Path, blob: Path) -> None:
    if os.path.lexists(link) and os.path.exists(link) and os.path.samefile(link, blob):
        return
    new = link.with_name(f".{link.name}.{secrets.token_hex(4)}")
    try:
        os.symlink(os.path.relpath(blob, link.parent), new)
    except OSError:
        # A file system without symbolic links: the library, too, puts the file itself there.
        _link(blob, new)
    os.replace(new, link)
