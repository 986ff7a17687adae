"""Where weights lie: side by side, zeros, and given back with the last of a piece."""

import gc
import mmap
import sys
import threading
import weakref
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from exo_cli.engine.cpu.large_pages import LARGE_BYTES, PIECE_BYTES, Pieces
from exo_cli.engine.cpu.layout import SLACK, room

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives such pages when asked")


def address(found: np.ndarray) -> int:
    return int(found.ctypes.data)


def test_what_is_taken_lies_side_by_side_from_a_large_page_on() -> None:
    pieces = Pieces()
    first, second, third = (pieces.take(size) for size in (5000, 3 * LARGE_BYTES, 64))
    assert address(first) % LARGE_BYTES == 0
    assert address(second) == address(first) + 2 * mmap.PAGESIZE
    assert address(third) == address(second) + 3 * LARGE_BYTES
    for number, each in enumerate((first, second, third), 1):
        assert not each.any()
        each[:] = number
    assert [{int(each[0]), int(each[-1])} for each in (first, second, third)] == [{1}, {2}, {3}]


def test_what_does_not_fit_begins_another_piece() -> None:
    pieces = Pieces()
    first = pieces.take(PIECE_BYTES - mmap.PAGESIZE)
    last = pieces.take(mmap.PAGESIZE)
    assert address(last) == address(first) + PIECE_BYTES - mmap.PAGESIZE
    other = pieces.take(1)
    assert address(other) % LARGE_BYTES == 0
    assert not address(first) <= address(other) < address(first) + PIECE_BYTES
    large = pieces.take(PIECE_BYTES + 1)
    large[-1] = 1
    assert address(large) % LARGE_BYTES == 0


def test_a_piece_goes_with_its_last_matrix() -> None:
    pieces = Pieces()
    first, second = pieces.take(100), pieces.take(100)
    base: Any = first.base
    piece = weakref.ref(getattr(base, "obj", base))
    del base
    assert isinstance(piece(), mmap.mmap)
    del first
    gc.collect()
    assert piece() is not None
    second[:] = 7
    del second
    gc.collect()
    assert piece() is None
    assert not pieces.take(100).any()


def test_threads_never_get_the_same_bytes() -> None:
    pieces = Pieces()
    found: list[np.ndarray] = []

    def take() -> None:
        for _ in range(50):
            found.append(pieces.take(3000))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len({address(each) for each in found}) == 200


def test_matrices_share_large_pages() -> None:
    size = LARGE_BYTES // 3
    matrices = [room(size) for _ in range(12)]
    gaps = [address(b) - address(a) for a, b in pairwise(matrices)]
    whole = -(-(size + SLACK) // mmap.PAGESIZE) * mmap.PAGESIZE
    # But where a piece ended.
    assert gaps.count(whole) >= len(gaps) - 1
    assert {len(each) for each in matrices} == {size}
