"""Memory for weights, one matrix behind the other in the system's large pages.

What is read once a step is looked up page by page, and a mapping of its own for each matrix has small pages
at its end, or nothing but small ones. So matrices share mappings that begin at a large page. One is given
back when the last of its matrices is let go. A page that was free for long can take milliseconds when it is
first touched, so whoever knows how much is to come has that touched meanwhile. Knows nothing of matrices.
"""

import contextlib
import ctypes
import mmap
import threading
import weakref
from typing import Final

import numpy as np
from numpy.typing import NDArray

LARGE_BYTES: Final = 2 << 20
PIECE_BYTES: Final = 64 << 20
"""Of address space: memory is taken when it is first touched."""
ADVICE: Final[int] = getattr(mmap, "MADV_HUGEPAGE", 0)
"""0: this system knows no such pages."""
_STEP_BYTES: Final = 4 * LARGE_BYTES
"""Touched at a time, without the interpreter's lock."""
_ROUNDING: Final = 16
"""Of what is expected, the part that rounding to pages may add."""


class Pieces:
    """Hands out zeros, each time behind what it handed out before."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._piece: weakref.ref[mmap.mmap] | None = None
        self._next = self._end = 0
        self._ahead: _Ahead | None = None

    def expect(self, size: int) -> None:
        """So many bytes are about to be taken: their pages are touched until the first are."""
        with self._lock:
            self._settle()
            piece = self._open(size + size // _ROUNDING)
            self._ahead = _Ahead(piece, self._next, size)

    def settle(self) -> None:
        """No more is expected; what was touched and not taken goes back to the system."""
        with self._lock:
            self._settle()

    def take(self, size: int) -> NDArray[np.uint8]:
        """So many bytes from the start of a page on; whoever has them keeps their piece."""
        with self._lock:
            if self._ahead is not None:
                self._ahead.stop()
            piece = self._piece() if self._piece is not None else None
            if piece is None or self._next + size > self._end:
                self._settle()
                piece = self._open(size)
            found = np.frombuffer(piece, np.uint8, size, self._next)
            self._next += -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        return found

    def _open(self, size: int) -> mmap.mmap:
        room = max(PIECE_BYTES, -(-size // LARGE_BYTES) * LARGE_BYTES)
        piece = mmap.mmap(-1, room + LARGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # A system built without such pages gives small ones.
        with contextlib.suppress(OSError):
            piece.madvise(ADVICE)
        self._next = -np.frombuffer(piece, np.uint8).ctypes.data % LARGE_BYTES
        self._end = self._next + room
        self._piece = weakref.ref(piece)
        return piece

    def _settle(self) -> None:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.end(self._next)


class _Ahead:
    """Touches the pages of a piece, one after the other, on a thread of its own."""

    def __init__(self, piece: mmap.mmap, start: int, size: int) -> None:
        self._piece = piece
        self._start, self._size = start, size
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._touch, name="pages", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """From now on it writes nothing."""
        self._enough.set()
        self._thread.join()

    def end(self, taken: int) -> None:
        """Stop, and give back the large pages that begin after the first `taken` bytes of the piece."""
        self.stop()
        begin = taken + (self._start - taken) % LARGE_BYTES
        if begin < len(self._piece):
            with contextlib.suppress(OSError):
                self._piece.madvise(mmap.MADV_DONTNEED, begin)

    def _touch(self) -> None:
        # Written, not asked for by madvise: that would hold up whoever else wants memory of this process.
        base = int(np.frombuffer(self._piece, np.uint8).ctypes.data) + self._start
        for done in range(0, self._size, _STEP_BYTES):
            if self._enough.is_set():
                return
            ctypes.memset(base + done, 0, min(_STEP_BYTES, self._size - done))


PIECES: Final = Pieces()
