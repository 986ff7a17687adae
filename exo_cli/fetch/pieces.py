"""Byte ranges of files: what is there, what is missing, and both as a map of 4 MiB pieces.

What a store holds of a file is a sorted list of disjoint ranges, exact to the byte, because a stage's
tensors begin and end anywhere. Neighbours hear of whole pieces only. Pure; knows nothing of files.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

PIECE_BYTES: Final = 4 * 1024 * 1024
"""The unit of digests and maps: piece `i` of a file begins at `i * PIECE_BYTES`."""
MESSAGE_BYTES: Final = 1024 * 1024
"""Of file bytes in one message; it divides a piece."""

Range = tuple[int, int]


class Span(NamedTuple):
    """Bytes `start` to `end` (excluded) of one file of a model."""

    path: str
    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start


def add(ranges: Sequence[Range], start: int, end: int) -> list[Range]:
    """The ranges with one more; neighbours that touch become one."""
    if start >= end:
        return list(ranges)
    before = [each for each in ranges if each[1] < start]
    after = [each for each in ranges if each[0] > end]
    touching = ranges[len(before) : len(ranges) - len(after)]
    low = min([start, *(each[0] for each in touching)])
    high = max([end, *(each[1] for each in touching)])
    return [*before, (low, high), *after]


def covers(ranges: Sequence[Range], start: int, end: int) -> bool:
    """Whether every byte from `start` to `end` is in the ranges."""
    if start >= end:
        return True
    index = bisect_right(ranges, start, key=_start) - 1
    return index >= 0 and ranges[index][1] >= end


def missing(ranges: Sequence[Range], start: int, end: int) -> list[Range]:
    """What of `start` to `end` is not in the ranges."""
    found = []
    at = start
    for low, high in ranges:
        if high <= at:
            continue
        if low >= end:
            break
        if low > at:
            found.append((at, low))
        at = high
    if at < end:
        found.append((at, end))
    return found


def well_formed(ranges: Sequence[Range], size: int) -> bool:
    """Sorted, disjoint, not empty, inside a file of `size` bytes."""
    edges = [0, *(edge for each in ranges for edge in each), size]
    return edges == sorted(edges) and all(low < high for low, high in ranges)


def merged(spans: Iterable[Span]) -> list[Span]:
    """The same bytes in as few spans as can be, sorted by file and place; empty ones are dropped."""
    found: list[Span] = []
    for span in sorted(spans):
        if span.start >= span.end:
            continue
        if found and found[-1].path == span.path and span.start <= found[-1].end:
            found[-1] = Span(span.path, found[-1].start, max(found[-1].end, span.end))
        else:
            found.append(span)
    return found


def cut(start: int, end: int, most_bytes: int) -> Iterator[Range]:
    """`start` to `end` in shares that end at multiples of `most_bytes`, the last one at `end`."""
    while start < end:
        stop = min(end, start - start % most_bytes + most_bytes)
        yield start, stop
        start = stop


def piece_of(end: int, size: int) -> Range:
    """The piece that byte `end - 1` is in, of a file of `size` bytes."""
    start = (end - 1) // PIECE_BYTES * PIECE_BYTES
    return start, min(start + PIECE_BYTES, size)


def bitmap(ranges: Sequence[Range], size: int) -> bytes:
    """One bit for each piece that is there whole, the lowest bit of the first byte first."""
    bits = bytearray(-(-size // PIECE_BYTES) + 7 >> 3)
    for low, high in ranges:
        first = -(-low // PIECE_BYTES)
        stop = -(-size // PIECE_BYTES) if high >= size else high // PIECE_BYTES
        for piece in range(first, stop):
            bits[piece >> 3] |= 1 << (piece & 7)
    return bytes(bits)


def _start(each: Range) -> int:
    return each[0]
