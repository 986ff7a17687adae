"""Matrices as the kernels want them: 32 outputs a tile, a group of inputs a block, in the order of use.

What comes in are MLX's own packed words, scales and biases; what goes out holds the same numbers, bit for
bit: 2, 3 and 4 bits lie in 4, and 5, 6 and 8 in 8; scales stay in 16 bits where they fit there; groups of
128 are kept as two of 64. Knows nothing of models.
"""

import mmap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from exo_cli.engine.cpu import lanes
from exo_cli.engine.cpu import tables as t
from exo_cli.engine.cpu.dots import BRAIN, HALF, SINGLE, TILE, function
from exo_cli.engine.cpu.jit import inner, kernel
from exo_cli.engine.cpu.rows import record_bytes

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
SLAB_TILES: Final = 16
"""So many tiles are repacked at a time: what lies there twice is small."""
HUGE: Final[int] = getattr(mmap, "MADV_HUGEPAGE", 0)
SLACK: Final = 8192
"""Kernels ask for bytes ahead of where they are; these are ours."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A matrix out of a checkpoint: codes of `bits` bits, scales and biases a group; float32 arrays."""

    words: NDArray[np.uint32]
    scales: Floats
    biases: Floats
    bits: int
    group: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.words.shape[0], self.words.shape[1] * 32 // self.bits


@dataclass(frozen=True, slots=True)
class Plain:
    """A matrix of numbers; float16 and bfloat16 by their bits."""

    numbers: Floats | NDArray[np.uint16]
    kind: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.numbers.shape[0], self.numbers.shape[1]


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
    held = own_memory(size + SLACK)
    if HUGE:
        # Large pages: what is read once a step is looked up less often.
        held.madvise(HUGE)
    return np.frombuffer(held, np.uint8, size)


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
) -> Matrix:
    """One matrix out of several with the same inputs, one below the other.

    `interleaved`: of two, 16 outputs of the first and the same 16 of the second share a tile. `workers`:
    threads that repack.
    """
    inputs = parts[0].shape[1]
    outputs = sum(part.shape[0] for part in parts)
    order = _order([part.shape[0] for part in parts], interleaved)
    fitted = None if bias is None else _fitted(bias, order)
    packed = [part for part in parts if isinstance(part, Packed)]
    if packed:
        return _tiled_packed(packed, order, outputs, inputs, fitted, workers)
    return _tiled_plain([part for part in parts if isinstance(part, Plain)], order, outputs, inputs, fitted)


def _order(sizes: list[int], interleaved: bool) -> NDArray[np.int64]:
    """For each place in the tiles, which output stands there; -1 for none."""
    count = sum(sizes)
    order = np.full(-(-count // TILE) * TILE, -1, np.int64)
    order[:count] = np.arange(count)
    if interleaved:
        order[:count] = np.arange(count).reshape(2, -1, 16).transpose(1, 0, 2).reshape(-1)
    return order


def _fitted(numbers: Floats, order: NDArray[np.int64]) -> Floats:
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
) -> Matrix:
    bits = 4 if max(part.bits for part in parts) <= 4 else 8
    group = min(64, *(part.group for part in parts))
    scales = np.concatenate([np.repeat(part.scales, part.group // group, axis=1) for part in parts])
    biases = np.concatenate([np.repeat(part.biases, part.group // group, axis=1) for part in parts])
    kind = kind_of(scales, biases)
    groups = inputs // group
    head = TILE * (8 if kind == SINGLE else 4)
    block = head + TILE * group * bits // 8
    tile_bytes = groups * block
    tiles = room(len(order) // TILE * tile_bytes)
    heads = np.zeros((2, len(order), groups), np.float32)
    heads[0, order >= 0], heads[1, order >= 0] = scales[order[order >= 0]], biases[order[order >= 0]]
    held = as_kind(heads.reshape(2, -1, TILE, groups).transpose(1, 3, 0, 2).copy(), kind)
    out = tiles.view(np.uint32).reshape(-1, tile_bytes // 4)

    def slab(first: int) -> None:
        chosen = order[first * TILE : (first + SLAB_TILES) * TILE]
        last = first + len(chosen) // TILE
        _pack(_slab(parts, chosen, bits), held[first:last].view(np.uint32), bits, group, out[first:last])

    starts = range(0, len(order) // TILE, SLAB_TILES)
    if workers > 1 and len(starts) > 1:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(slab, starts))
    else:
        for first in starts:
            slab(first)
    return Matrix(tiles, outputs, inputs, bits, group, kind, tile_bytes, bias)


def _slab(parts: list[Packed], chosen: NDArray[np.int64], bits: int) -> NDArray[np.uint32]:
    """The words of these outputs as MLX packs them with `bits` bits; zeros where there is none."""
    if len(parts) == 1 and parts[0].bits == bits and chosen[-1] - chosen[0] == len(chosen) - 1:
        return parts[0].words[chosen[0] : chosen[-1] + 1]
    words = np.zeros((len(chosen), parts[0].shape[1] * bits // 32), np.uint32)
    start = 0
    for part in parts:
        places = np.flatnonzero((chosen >= start) & (chosen < start + part.shape[0]))
        if len(places):
            rows = part.words[chosen[places] - start]
            words[places] = rows if part.bits == bits else _recoded(rows, part.bits, bits)
        start += part.shape[0]
    return words


def _recoded(words: NDArray[np.uint32], bits: int, wanted: int) -> NDArray[np.uint32]:
    """The same codes in more bits each."""
    codes = np.empty((len(words), words.shape[1] * 32 // bits), np.uint8)
    _codes(words.view(np.uint8), bits, codes)
    if wanted == 4:
        codes = codes[:, 0::2] | (codes[:, 1::2] << 4)
    return codes.view(np.uint32)


def _tiled_plain(
    parts: list[Plain], order: NDArray[np.int64], outputs: int, inputs: int, bias: Floats | None
) -> Matrix:
    kind = parts[0].kind
    assert all(part.kind == kind for part in parts)
    whole = np.concatenate([part.numbers for part in parts]) if len(parts) > 1 else parts[0].numbers
    size = whole.dtype.itemsize
    tile_bytes = inputs * TILE * size
    tiles = room(len(order) // TILE * tile_bytes)
    shaped = tiles.view(whole.dtype).reshape(-1, inputs, TILE)
    for tile in range(len(order) // TILE):
        chosen = order[tile * TILE : (tile + 1) * TILE]
        rows = np.where((chosen >= 0)[:, None], whole[np.maximum(chosen, 0)], np.zeros((), whole.dtype))
        shaped[tile] = rows.T
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


@kernel
def _pack(
    words: NDArray[np.uint32],
    heads: NDArray[np.uint32],
    bits: int,
    group: int,
    out: NDArray[np.uint32],
) -> None:
    """Words of whole tiles and their heads into blocks: a word of each output in turn."""
    head = heads.shape[2] * heads.shape[3]
    in_group = group * bits // 32
    for tile in range(heads.shape[0]):
        at = 0
        for number in range(heads.shape[1]):
            for which in range(heads.shape[2]):
                for place in range(heads.shape[3]):
                    out[tile, at + which * heads.shape[3] + place] = heads[tile, number, which, place]
            at += head
            for step in range(in_group):
                column = number * in_group + step
                for output in range(TILE):
                    word = words[tile * TILE + output, column]
                    if bits == 4:
                        word = _spread(word & 0xFFFF) | (_spread(word >> 16) << 4)
                    out[tile, at + output] = word
                at += TILE


@inner
def _spread(word: int) -> int:
    """Four codes of four bits, a byte each."""
    word = (word | (word << 8)) & 0x00FF00FF
    return (word | (word << 4)) & 0x0F0F0F0F


@inner
def _number(at: int, kind: int) -> Any:
    if kind == BRAIN:
        return lanes.peek_brain(at)
    if kind == HALF:
        return lanes.peek_half(at)
    return lanes.peek(at)


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
