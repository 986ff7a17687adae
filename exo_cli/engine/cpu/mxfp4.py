"""Matrices in mxfp4 for the kernels: four bits a number and a power of two a group of 32, as they were.

Codes lie in tiles as `layout` has those of four bits; the powers of two groups come before the codes of both
(`dots` says why). Knows nothing of models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from exo_cli.engine.cpu.dots import PAIR_BYTES, POWERS, TILE
from exo_cli.engine.cpu.emit import E2M1, I8, LANES, MIDDLE, Emitter, Value, native
from exo_cli.engine.cpu.jit import kernel
from exo_cli.engine.cpu.lanes import word
from exo_cli.engine.cpu.layout import (
    Bytes,
    Floats,
    Matrix,
    Packed,
    Where,
    fitted,
    in_slabs,
    order_of,
    room,
    shares_of,
)
from exo_cli.engine.cpu.packing import ROW, ROW_BYTES, SCALES, WORDS, pack_codes

GROUP: Final = 32
_WORDS: Final = 4
"""Of an output and a group."""
_LOG: Final = 3
"""A pair of groups has 2 ** 3 of an output's words."""


@dataclass(frozen=True, slots=True)
class Coded:
    """A matrix out of a checkpoint: eight codes a word, a byte a group for the power of two."""

    words: NDArray[np.uint32]
    powers: Bytes

    @property
    def shape(self) -> tuple[int, int]:
        return self.words.shape[0], self.words.shape[1] * 8

    def expanded(self) -> Packed:
        """The same numbers in eight bits, for where other formats stand beside it."""
        pairs = np.ascontiguousarray(self.words).view(np.uint8)
        table = np.array(E2M1, np.uint8)
        codes = np.empty((pairs.shape[0], 2 * pairs.shape[1]), np.uint8)
        codes[:, 0::2], codes[:, 1::2] = table[pairs & 15], table[pairs >> 4]
        scales = np.ldexp(np.float32(1), self.powers.astype(np.int32) - 128).astype(np.float32)
        return Packed(codes.view(np.uint32), scales, -MIDDLE * scales, 8, GROUP)


def tiled_codes(
    parts: Sequence[Coded],
    *,
    interleaved: bool = False,
    bias: Floats | None = None,
    workers: int = 1,
    where: Where = room,
) -> Matrix:
    """As `layout.tiled` does it."""
    inputs = parts[0].shape[1]
    outputs = sum(part.shape[0] for part in parts)
    order = order_of([part.shape[0] for part in parts], interleaved)
    groups = inputs // GROUP
    tile_bytes = -(-groups // 2) * PAIR_BYTES
    tiles = where(len(order) // TILE * tile_bytes)
    nothing = np.zeros(inputs // 2, np.uint8)

    def slab(first: int, last: int) -> None:
        chosen = order[first * TILE : last * TILE]
        table = np.full((len(chosen), ROW), nothing.ctypes.data, np.int64)
        for part, places, rows in shares_of(parts, chosen):
            for column, array in ((WORDS, part.words), (SCALES, part.powers)):
                table[places, column] = array.ctypes.data + rows * array.strides[0]
        _pack(table.ctypes.data, len(chosen) // TILE, groups, tiles.ctypes.data + first * tile_bytes)

    in_slabs(slab, len(order) // TILE, workers)
    placed = None if bias is None else fitted(bias, order)
    return Matrix(tiles, outputs, inputs, 4, GROUP, POWERS, tile_bytes, placed)


def _one_byte(e: Emitter, source: Value, to: Value) -> None:
    e.store(e.load(I8, source, 1), to, 1)


_move1 = native(_one_byte)


@kernel
def _pack(table: int, tiles: int, groups: int, out: int) -> None:
    """Whole tiles of rows; of two groups the words lie one behind the other."""
    for half in range(2 * tiles):
        rows = table + ROW_BYTES * LANES * half
        to = out + (half >> 1) * ((groups + 1) >> 1) * PAIR_BYTES
        side = half & 1
        pack_codes(rows, 4, _WORDS * groups, _LOG, PAIR_BYTES, to + 2 * TILE + 4 * LANES * side)
        for row in range(LANES):
            source = word(rows + ROW_BYTES * row + 8 * SCALES)
            for number in range(groups):
                place = to + (number >> 1) * PAIR_BYTES + (number & 1) * TILE + LANES * side + row
                _move1((source + number, place))
