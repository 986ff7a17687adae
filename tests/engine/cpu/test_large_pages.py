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


def _resident_of(found: np.ndarray) -> int:
    """How much of the memory from there on to the end of its mapping is in use."""
    with open("/proc/self/smaps") as lines:
        inside, resident = False, 0
        for line in lines:
            words = line.split()
            if "-" in words[0] and not words[0].endswith(":"):
                low, high = (int(end, 16) for end in words[0].split("-"))
                inside = low <= address(found) < high
            elif inside and words[0] == "Rss:":
                resident += int(words[1]) << 10
    return resident


def test_what_is_expected_is_there_before_it_is_taken_and_the_rest_goes_back() -> None:
    pieces = Pieces()
    pieces.expect(20 * LARGE_BYTES)
    ahead: Any = pieces._ahead
    ahead._thread.join(60)
    first = pieces.take(3 * LARGE_BYTES)
    if _resident_of(first) == 0:
        pytest.skip("this system touches no pages when asked")
    assert _resident_of(first) >= 20 * LARGE_BYTES
    first[:] = 5
    pieces.settle()
    assert 3 * LARGE_BYTES <= _resident_of(first) <= 5 * LARGE_BYTES
    second = pieces.take(8 * LARGE_BYTES)
    assert address(second) == address(first) + 3 * LARGE_BYTES
    assert not second.any()
    assert (first == 5).all()
    pieces.settle()


def test_what_is_written_meanwhile_stays() -> None:
    pieces = Pieces()
    pieces.expect(32 * LARGE_BYTES)
    taken = [pieces.take(LARGE_BYTES) for _ in range(32)]
    for number, each in enumerate(taken, 1):
        each[:] = number
    pieces.settle()
    assert [{int(each.min()), int(each.max())} for each in taken] == [{number} for number in range(1, 33)]


def test_too_little_expected_is_no_harm() -> None:
    pieces = Pieces()
    pieces.expect(LARGE_BYTES)
    first, second = pieces.take(LARGE_BYTES), pieces.take(2 * PIECE_BYTES)
    first[:], second[:] = 1, 2
    assert (first == 1).all()
    assert (second == 2).all()
