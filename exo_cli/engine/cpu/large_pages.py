"""Memory for weights, one matrix behind the other in the system's large pages.

What is read once a step is looked up page by page, and a mapping of its own for each matrix has small pages
at its end, or nothing but small ones. So matrices share mappings that begin at a large page. One is given
back when the last of its matrices is let go. Knows nothing of matrices.
"""

import contextlib
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


class Pieces:
    """Hands out zeros, each time behind what it handed out before."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._piece: weakref.ref[mmap.mmap] | None = None
        self._next = self._end = 0

    def take(self, size: int) -> NDArray[np.uint8]:
        """So many bytes from the start of a page on; whoever has them keeps their piece."""
        with self._lock:
            piece = self._piece() if self._piece is not None else None
            if piece is None or self._next + size > self._end:
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


PIECES: Final = Pieces()
