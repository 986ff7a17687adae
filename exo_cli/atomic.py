"""Replacing a file whole: a reader sees the old bytes or the new ones, and a crash changes nothing.

The bytes go to a temporary file beside the old one, to the disk, and only then under the name. A
temporary file is held under flock while its writer lives, so that the next writer can tell what a
killed one left and remove it. Knows nothing of what is written, and takes no lock on the file
itself: two writers at once both succeed, and the later one stays.
"""

import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

from exo_cli.errors import CannotCreate, ExoError, InputOutput

STEPS = ("sweep", "create", "hold", "write", "sync", "replace", "sync-directory", "done")
"""What `step` is called with, in this order: each just before it happens ("write" more than once)."""

_CHUNK_BYTES = 1024 * 1024
_CANNOT_CREATE = frozenset(
    (
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ENAMETOOLONG,
        errno.ELOOP,
    )
)
_HINTS = {
    errno.ENOSPC: "Free some space there, or choose another place.",
    errno.EDQUOT: "Free some space there, or choose another place.",
    errno.EROFS: "The file system is read-only; choose another place.",
    errno.ENOENT: "Make the directory first: mkdir -p {directory}",
}


def _no_step(_name: str) -> None:
    pass


def replace(path: Path, data: bytes, *, step: Callable[[str], None] = _no_step, mode: int = 0o644) -> None:
    """Put `data` at `path` in one go; on an error the old file is as it was. `mode` is under the umask."""
    try:
        _refuse_special(path)
        step("sweep")
        _sweep(path)
        temporary, descriptor = _create(path, mode, step)
        try:
            try:
                _write(descriptor, data, step)
                step("sync")
                os.fsync(descriptor)
                step("replace")
                os.replace(temporary, path)
            finally:
                os.close(descriptor)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        step("sync-directory")
        _sync_directory(path.parent)
        step("done")
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> ExoError:
    """The error to show for a file that could not be written."""
    message = f"cannot write {path}: {(error.strerror or str(error)).lower()}"
    hint = _HINTS.get(error.errno or 0, "Check who may write there: ls -ld {directory}")
    kind = CannotCreate if error.errno in _CANNOT_CREATE else InputOutput
    return kind(message, hint=hint.format(directory=path.parent))


def _refuse_special(path: Path) -> None:
    # As root, replacing /dev/null would break the machine.
    try:
        found = os.stat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(found):
        raise CannotCreate(f"cannot write {path}: it is not a regular file", hint="Name another file.")


def _sweep(path: Path) -> None:
    """Remove what killed writers left: temporary files that nobody holds."""
    ours = re.compile(rf"\.{re.escape(path.name)}\.new-[0-9a-f]{{12}}")
    for name in os.listdir(path.parent):
        if ours.fullmatch(name):
            _remove_if_left(path.parent / name)


def _create(path: Path, mode: int, step: Callable[[str], None]) -> tuple[Path, int]:
    """A new temporary file that is ours; another writer's sweep may take one before it is held."""
    while True:
        temporary = path.parent / f".{path.name}.new-{secrets.token_hex(6)}"
        step("create")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            step("hold")
            if _hold(descriptor) and os.fstat(descriptor).st_nlink > 0:
                return temporary, descriptor
        except BaseException:
            os.close(descriptor)
            temporary.unlink(missing_ok=True)
            raise
        os.close(descriptor)


def _remove_if_left(temporary: Path) -> None:
    try:
        descriptor = os.open(temporary, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        temporary.unlink(missing_ok=True)
    except OSError:
        return
    finally:
        os.close(descriptor)


def _hold(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL):
            raise
        # Some network file systems have no flock; there a sweep finds nothing to remove either.
    return True


def _write(descriptor: int, data: bytes, step: Callable[[str], None]) -> None:
    rest = memoryview(data)
    while rest:
        step("write")
        rest = rest[os.write(descriptor, rest[:_CHUNK_BYTES]) :]


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Not every file system can; the rename itself is still atomic.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(descriptor)
