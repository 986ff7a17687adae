"""Matrices as the kernels want them: 32 outputs a tile, a group of inputs a block, in the order of use.

What comes in are MLX's own packed words, scales and biases; what goes out holds the same numbers, bit for
bit: 2, 3 and 4 bits lie in 4, and 5, 6 and 8 in 8; scales stay in 16 bits where they fit there; groups of
128 are kept as two of 64. Knows nothing of models.
"""

import math
import mmap
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from exo_cli.engine.cpu import lanes, large_pages
from exo_cli.engine.cpu import tables as t
from exo_cli.engine.cpu.dots import BRAIN, HALF, PAIR_BYTES, POWERS, SINGLE, TILE, function
from exo_cli.engine.cpu.emit import E2M1, LANES, MIDDLE
from exo_cli.engine.cpu.jit import inner, kernel
from exo_cli.engine.cpu.packing import ROW, WORDS, no_numbers, pack, pack_plain
from exo_cli.engine.cpu.rows import record_bytes
from exo_cli.engine.finite import not_finite

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Where = Callable[[int], Bytes]
_E2M1: Final = tuple(E2M1)
LEAST_TILES: Final = 16
MOST_TILES: Final = 128
"""So many tiles are repacked at a time by one thread: enough for native code, and little lies there twice."""
_EXPONENTS: Final = {HALF: 0x7C00, BRAIN: 0x7F80, SINGLE: 0x7F800000}
"""What the bits of numbers that are none have in common."""
SLACK: Final = 12288
"""Kernels ask for bytes ahead of where they are; these are ours."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A matrix out of a checkpoint: codes of `bits` bits, a scale and a bias a group.

    Arrays may begin at any byte; rows lie without holes.
    """

    words: NDArray[np.uint32]
    scales: Floats | NDArray[np.uint16]
    biases: Floats | NDArray[np.uint16]
    bits: int
    group: int
    kind: int = SINGLE
    """Of scales and biases; float16 and bfloat16 by their bits."""
    unseen: str = ""
    """What it is called, if nobody has looked yet whether its scales and biases are numbers."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.words.shape[0], self.words.shape[1] * 32 // self.bits


@dataclass(frozen=True, slots=True)
class Plain:
    """A matrix of numbers; float16 and bfloat16 by their bits."""

    numbers: Floats | NDArray[np.uint16]
    kind: int
    unseen: str = ""
    """As that of `Packed`."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.numbers.shape[0], self.numbers.shape[1]


class Part(Protocol):
    """A matrix out of a checkpoint."""

    @property
    def shape(self) -> tuple[int, int]: ...


PartT = TypeVar("PartT", bound=Part)


@dataclass(frozen=True, slots=True, eq=False)
class Matrix:
    """A matrix in tiles."""

    tiles: Bytes = field(repr=False)
    outputs: int
    inputs: int
    bits: int
    group: int
    """Of activations and weights alike; 0 where neither is packed."""
    kind: int
    tile_bytes: int
    bias: Floats | None = None

    @property
    def room(self) -> int:
        """Outputs, and those that fill the last tile."""
        return -(-self.outputs // TILE) * TILE

    @property
    def nbytes(self) -> int:
        return self.tiles.nbytes + (0 if self.bias is None else self.bias.nbytes)

    @property
    def record(self) -> int:
        return record_bytes(self.inputs, self.group)

    def words(self) -> list[int]:
        """Its record in `tables`."""
        bias = 0 if self.bias is None else self.bias.ctypes.data
        found = [self.tiles.ctypes.data, self.room // TILE, self.bits, self.group, self.kind, self.inputs]
        found += [self.tile_bytes, bias, self.record, function(self.bits, self.group, self.kind).address]
        return found + [0] * (t.MATRIX - len(found))


def room(size: int) -> Bytes:
    """So many bytes from the start of a page on, zeros, with slack after them that may be read."""
    if large_pages.ADVICE:
        return large_pages.PIECES.take(size + SLACK)[:size]
    return np.frombuffer(own_memory(size + SLACK), np.uint8, size)


def own_memory(size: int) -> mmap.mmap:
    """So many zeros, which take memory when they are first touched and give it back when they are let go."""
    if hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return mmap.mmap(-1, size)


def kind_of(*numbers: Floats) -> int:
    """The smallest kind that holds all of these exactly."""
    if all(not (each.view(np.uint32) & 0xFFFF).any() for each in numbers):
        return BRAIN
    if all(_fits_half(each) for each in numbers):
        return HALF
    return SINGLE


def _fits_half(numbers: Floats) -> bool:
    with np.errstate(over="ignore"):
        return bool(np.array_equal(numbers.astype(np.float16).astype(np.float32), numbers))


def as_floats(numbers: Floats | NDArray[np.uint16], kind: int) -> Floats:
    """Numbers of a kind, by their bits, as float32."""
    if kind == BRAIN:
        return (numbers.astype(np.uint32) << 16).view(np.float32)
    return numbers.view(np.float16).astype(np.float32) if kind == HALF else numbers.view(np.float32)


def as_kind(numbers: Floats, kind: int) -> NDArray[Any]:
    if kind == BRAIN:
        return (numbers.view(np.uint32) >> 16).astype(np.uint16)
    return numbers.astype(np.float16).view(np.uint16) if kind == HALF else numbers


def tiled(
    parts: Sequence[Packed | Plain],
    *,
    interleaved: bool = False,
    bias: Floats | None = None,
    workers: int = 1,
    where: Where = room,
) -> Matrix:
    """One matrix out of several with the same inputs, one below the other.

    `interleaved`: of two, 16 outputs of the first and the same 16 of the second share a tile. `workers`:
    threads that repack. `where`: gives room for so many bytes.
    """
    inputs = parts[0].shape[1]
    outputs = sum(part.shape[0] for part in parts)
    order = order_of([part.shape[0] for part in parts], interleaved)
    placed = None if bias is None else fitted(bias, order)
    packed = [part for part in parts if isinstance(part, Packed)]
    if packed:
        return _tiled_packed(packed, order, outputs, inputs, placed, workers, where)
    plain = [part for part in parts if isinstance(part, Plain)]
    return _tiled_plain(plain, order, outputs, inputs, placed, workers, where)


def order_of(sizes: list[int], interleaved: bool) -> NDArray[np.int64]:
    """For each place in the tiles, which output stands there; -1 for none."""
    count = sum(sizes)
    order = np.full(-(-count // TILE) * TILE, -1, np.int64)
    order[:count] = np.arange(count)
    if interleaved:
        order[:count] = np.arange(count).reshape(2, -1, 16).transpose(1, 0, 2).reshape(-1)
    return order


def fitted(numbers: Floats, order: NDArray[np.int64]) -> Floats:
    out = np.zeros(len(order), np.float32)
    out[order >= 0] = numbers[order[order >= 0]]
    return out


def _tiled_packed(
    parts: list[Packed],
    order: NDArray[np.int64],
    outputs: int,
    inputs: int,
    bias: Floats | None,
    workers: int,
    where: Where,
) -> Matrix:
    bits = 4 if max(part.bits for part in parts) <= 4 else 8
    group = min(64, *(part.group for part in parts))
    parts, repeat = _in_step(parts, group)
    kind, size = parts[0].kind, parts[0].scales.itemsize
    groups = inputs // group
    tile_bytes = groups * (2 * TILE * size + TILE * group * bits // 8)
    tiles = where(len(order) // TILE * tile_bytes)
    nothing = np.zeros(max(inputs * bits // 8, groups * size), np.uint8)

    def slab(first: int, last: int) -> None:
        chosen = order[first * TILE : last * TILE]
        table = np.full((len(chosen), ROW), nothing.ctypes.data, np.int64)
        kept = []
        for part, places, rows in shares_of(parts, chosen):
            words = part.words
            _check(part, rows, part.scales, part.biases)
            if part.bits != bits:
                words, at = _recoded(words[rows], part.bits, bits), np.arange(len(rows))
                kept.append(words)
            else:
                at = rows
            for column, (array, lines) in enumerate(((words, at), (part.scales, rows), (part.biases, rows))):
                table[places, column] = array.ctypes.data + lines * array.strides[0]
        to = tiles.ctypes.data + first * tile_bytes
        pack(table.ctypes.data, len(chosen) // TILE, bits, group, size, groups, repeat, to)

    in_slabs(slab, len(order) // TILE, workers)
    return Matrix(tiles, outputs, inputs, bits, group, kind, tile_bytes, bias)


def _in_step(parts: list[Packed], group: int) -> tuple[list[Packed], int]:
    """The same parts with heads of one kind, and for how many groups each head stands."""
    repeats = {part.group // group for part in parts}
    kinds = {part.kind for part in parts}
    kind = kinds.pop() if len(kinds) == 1 else SINGLE
    if len(repeats) == 1 and kind != SINGLE:
        return parts, repeats.pop()
    heads = [[as_floats(each, part.kind) for each in (part.scales, part.biases)] for part in parts]
    kind = kind_of(*(each for pair in heads for each in pair))
    out = []
    for part, pair in zip(parts, heads, strict=True):
        scales, biases = (as_kind(np.repeat(each, part.group // group, axis=1), kind) for each in pair)
        out.append(Packed(part.words, scales, biases, part.bits, group, kind, part.unseen))
    return out, 1


def shares_of(
    parts: Sequence[PartT], chosen: NDArray[np.int64]
) -> Iterator[tuple[PartT, NDArray[np.int64], NDArray[np.int64]]]:
    """Of a slab's outputs, those of each part: where they go, and which of its rows they are."""
    start = 0
    for part in parts:
        count = part.shape[0]
        places = np.flatnonzero((chosen >= start) & (chosen < start + count))
        if len(places):
            yield part, places, chosen[places] - start
        start += count


def in_slabs(slab: Callable[[int, int], None], tiles: int, workers: int) -> None:
    """All tiles, some at a time, by so many threads, of which we are one."""
    size = max(LEAST_TILES, min(MOST_TILES, -(-tiles // (2 * workers))))
    starts = iter(range(0, tiles, size))

    def work() -> None:
        # Each thread takes the next ones: whoever is late takes fewer.
        for first in starts:
            slab(first, min(tiles, first + size))

    if workers == 1 or tiles <= size:
        work()
        return
    with ThreadPoolExecutor(workers - 1) as pool:
        others = [pool.submit(work) for _ in range(workers - 1)]
        work()
    for other in others:
        other.result()


def _check(part: Packed | Plain, rows: NDArray[np.int64], *arrays: Floats | NDArray[np.uint16]) -> None:
    """Refuse what is no number; a slab's rows of a part lie one below the other."""
    if not part.unseen:
        return
    found = np.zeros(1, np.int64)
    for array in arrays:
        some: NDArray[Any] = array[rows[0] : rows[-1] + 1]
        if some.size < LANES:
            some = np.resize(some, LANES)
        no_numbers(some.ctypes.data, some.size, some.itemsize, _EXPONENTS[part.kind], found.ctypes.data)
    if found[0]:
        raise not_finite(part.unseen)


def _recoded(words: NDArray[np.uint32], bits: int, wanted: int) -> NDArray[np.uint32]:
    """The same codes in more bits each."""
    codes = np.empty((len(words), words.shape[1] * 32 // bits), np.uint8)
    _codes(words.view(np.uint8), bits, codes)
    if wanted == 4:
        codes = codes[:, 0::2] | (codes[:, 1::2] << 4)
    return codes.view(np.uint32)


def _tiled_plain(
    parts: list[Plain],
    order: NDArray[np.int64],
    outputs: int,
    inputs: int,
    bias: Floats | None,
    workers: int,
    where: Where,
) -> Matrix:
    kinds = {part.kind for part in parts}
    kind = kinds.pop() if len(kinds) == 1 else SINGLE
    parts = [
        part if part.kind == kind else Plain(as_floats(part.numbers, part.kind), SINGLE, part.unseen)
        for part in parts
    ]
    size = parts[0].numbers.itemsize
    tile_bytes = inputs * TILE * size
    tiles = where(len(order) // TILE * tile_bytes)
    nothing = np.zeros(inputs * size, np.uint8)

    def slab(first: int, last: int) -> None:
        chosen = order[first * TILE : last * TILE]
        table = np.full((len(chosen), ROW), nothing.ctypes.data, np.int64)
        for part, places, rows in shares_of(parts, chosen):
            _check(part, rows, part.numbers)
            table[places, WORDS] = part.numbers.ctypes.data + rows * part.numbers.strides[0]
        pack_plain(
            table.ctypes.data, len(chosen) // TILE, size, inputs, tiles.ctypes.data + first * tile_bytes
        )

    in_slabs(slab, len(order) // TILE, workers)
    return Matrix(tiles, outputs, inputs, 8 * size, 0, kind, tile_bytes, bias)


@kernel
def _codes(words: Bytes, bits: int, out: Bytes) -> None:
    """Streams of codes of `bits` bits each, low bits first, as a byte a code."""
    length = words.shape[1]
    mask = (1 << bits) - 1
    for row in range(out.shape[0]):
        source, target = words[row], out[row]
        for place in range(out.shape[1]):
            at = place * bits
            byte = at >> 3
            two = int(source[byte])
            if byte + 1 < length:
                two |= int(source[byte + 1]) << 8
            target[place] = (two >> (at & 7)) & mask


@inner
def _number(at: int, kind: int) -> Any:
    if kind == BRAIN:
        return lanes.peek_brain(at)
    if kind == HALF:
        return lanes.peek_half(at)
    return lanes.peek(at)


@inner
def _take_mxfp4(tile: int, place: int, groups: int, out: int) -> None:
    for number in range(groups):
        pair, odd = tile + number // 2 * PAIR_BYTES, number % 2
        scale = np.float32(math.ldexp(0.5, lanes.byte(pair + odd * TILE + place) - 127))
        codes = pair + 2 * TILE + odd * TILE * 16 + 4 * place
        for each in range(32):
            code = lanes.byte(codes + (each // 8) * 4 * TILE + each % 4)
            code = (code >> 4) if each % 8 >= 4 else (code & 15)
            lanes.poke(out + 4 * (32 * number + each), np.float32(_E2M1[code] - MIDDLE) * scale)


@inner
def take_row(
    tiles: int, bits: int, group: int, kind: int, inputs: int, tile_bytes: int, row: int, out: int
) -> None:
    """One output's numbers, as float32: a row of an embedding."""
    tile = tiles + row // TILE * tile_bytes
    place = row % TILE
    if group == 0:
        size = 4 if kind == SINGLE else 2
        for number in range(inputs):
            lanes.poke(out + 4 * number, _number(tile + (number * TILE + place) * size, kind))
        return
    if kind == POWERS:
        _take_mxfp4(tile, place, inputs // group, out)
        return
    size = 4 if kind == SINGLE else 2
    head = 2 * TILE * size
    block = head + TILE * group * bits // 8
    for number in range(inputs // group):
        start = tile + number * block
        scale = _number(start + place * size, kind)
        bias = _number(start + (TILE + place) * size, kind)
        for each in range(group):
            if bits == 4:
                code = lanes.byte(start + head + (each // 8) * 4 * TILE + 4 * place + each % 4)
                code = (code >> 4) if each % 8 >= 4 else (code & 15)
            else:
                code = lanes.byte(start + head + (each // 4) * 4 * TILE + 4 * place + each % 4)
            lanes.poke(out + 4 * (number * group + each), np.float32(code) * scale + bias)
