"""The files of a partial store as the disk has them: as long as the whole ones, written anywhere, locked.

Knows nothing of maps, nor of which bytes were written.
"""

import errno
import fcntl
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from exo_cli import atomic
from exo_cli.errors import TryAgain

Part = bytes | bytearray | memoryview

_MOST_PARTS: Final = 256
"""In one call; systems take 1024."""
# macOS has no fdatasync.
_sync: Final[Callable[[int], None]] = getattr(os, "fdatasync", os.fsync)


def make(path: Path, size: int, *, writable: bool) -> None:
    """A file of that size, empty if it had another; if it is to be written, no other name leads to it."""
    try:
        if writable and path.is_file() and os.lstat(path).st_nlink > 1:
            path.unlink()  # adopted: what is written into it now is ours alone
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            if os.fstat(descriptor).st_size != size:
                os.ftruncate(descriptor, 0)
                os.ftruncate(descriptor, size)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise atomic.cannot_write(path, error) from error


def write(path: Path, start: int, parts: Sequence[Part]) -> None:
    """One part after the other from `start` on; not surely on the disk yet."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            for first in range(0, len(parts), _MOST_PARTS):
                start = _write_all(descriptor, parts[first : first + _MOST_PARTS], start)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise atomic.cannot_write(path, error) from error


def sync(path: Path) -> None:
    """What was written is on the disk when this returns."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            _sync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise atomic.cannot_write(path, error) from error


def lock(path: Path) -> int:
    """A descriptor that holds the lock. Raises TryAgain while another process has it."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise atomic.cannot_write(path, error) from error
    try:
        _take(descriptor, path)
        if not path.exists():
            # Whoever had it before us has moved the model away.
            raise TryAgain(f"{path.parent} was moved just now", hint="Try again.")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def unlock(descriptor: int) -> None:
    """Give it back."""
    # Closing is enough unless a forked child has it open, too; where there is no flock there is nothing
    # to give back.
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _take(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise TryAgain(
            f"another process is fetching this model into {path.parent}", hint="Try again when it is through."
        ) from error
    except OSError as error:
        # Some network file systems have no flock. Two writers there write the same bytes.
        if error.errno not in (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL):
            raise atomic.cannot_write(path, error) from error


def _write_all(descriptor: int, parts: Sequence[Part], start: int) -> int:
    """All parts at their place; where the last one ends."""
    rest = [memoryview(part) for part in parts if part]
    while rest:
        written = os.pwritev(descriptor, rest, start)
        start += written
        while rest and written >= len(rest[0]):
            written -= len(rest[0])
            rest.pop(0)
        if rest:
            rest[0] = rest[0][written:]
    return start
