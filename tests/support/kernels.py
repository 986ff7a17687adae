"""The kernels by their parts, on numpy arrays: what a native pass does with addresses."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exo_cli.engine.cpu import attend, attend8, dots, pack8, rows
from exo_cli.engine.cpu import tables as t
from exo_cli.engine.cpu.emit import by_address
from exo_cli.engine.cpu.jit import inner
from exo_cli.engine.cpu.layout import Floats, Matrix, take_row


@inner
def _pack(x: int, width: int, group: int, out: int) -> None:
    rows.pack_row(x, width, group, out)


@inner
def _dots(function: int, numbers: Any) -> None:
    by_address(function, numbers)


@inner
def _take(matrix: Any, row: int, out: int) -> None:
    tiles, bits, group, kind, inputs, tile_bytes = matrix
    take_row(tiles, bits, group, kind, inputs, tile_bytes, row, out)


@inner
def _put(key: int, value: int, keys: int, values: int, width: int, position: int) -> None:
    attend.put_key(key, keys, width, position)
    attend.put_value(value, values, width, position)


@inner
def _put8(key: int, value: int, keys: int, values: int, width: int, position: int) -> None:
    pack8.put_key8(key, keys, width, position)
    pack8.put_value8(value, values, width, position)


def packed(x: Floats, matrix: Matrix) -> NDArray[np.uint8]:
    """Rows as the matrix wants them."""
    out = np.zeros((len(x), matrix.record), np.uint8)
    for row, record in zip(np.ascontiguousarray(x), out, strict=True):
        _pack(row.ctypes.data, matrix.inputs, matrix.group, record.ctypes.data)
    return out


def meant(records: NDArray[np.uint8], matrix: Matrix) -> NDArray[np.float64]:
    """The numbers that packed rows stand for."""
    width, group = matrix.inputs, matrix.group
    if group == 0:
        return records[:, : 4 * width].copy().view(np.float32).astype(np.float64)
    codes = records[:, :width].view(np.int8).astype(np.float64)
    scales = records[:, width : width + 4 * (width // group)].copy().view(np.float32)
    return codes * np.repeat(scales.astype(np.float64), group, axis=1)


def multiplied(records: NDArray[np.uint8], matrix: Matrix, *, at_once: int | None = None) -> Floats:
    """All outputs of all rows; `at_once`: so many rows a call."""
    out = np.full((len(records), matrix.room), np.nan, np.float32)
    function = dots.function(matrix.bits, matrix.group, matrix.kind).address
    step = at_once or len(records)
    for start in range(0, len(records), step):
        count = min(step, len(records) - start)
        for tile in range(matrix.room // dots.TILE):
            where = matrix.tiles.ctypes.data + tile * matrix.tile_bytes
            to = out[start:, tile * dots.TILE :].ctypes.data
            x = records[start:].ctypes.data
            numbers = (matrix.kind, matrix.inputs, where, x, records.strides[0], to, out.strides[0], count)
            _dots(function, numbers)
    return out[:, : matrix.outputs]


def row_of(matrix: Matrix, row: int) -> Floats:
    """One output's weights."""
    out = np.zeros(matrix.inputs, np.float32)
    words = (
        matrix.tiles.ctypes.data,
        matrix.bits,
        matrix.group,
        matrix.kind,
        matrix.inputs,
        matrix.tile_bytes,
    )
    _take(words, row, out.ctypes.data)
    return out


class Cache:
    """One head's keys and values, in float16 or as bytes."""

    def __init__(self, keys: Floats, values: Floats, bits: int = 16) -> None:
        count, self.width = keys.shape
        self.capacity = -(-count // attend.BLOCK) * attend.BLOCK
        self.bits = bits
        a_position = 2 * self.width if bits == 16 else pack8.position_bytes(self.width)
        self.keys, self.values = (np.zeros(self.capacity * a_position, np.uint8) for _ in range(2))
        put = _put if bits == 16 else _put8
        for position in range(count):
            key, value = np.ascontiguousarray(keys[position]), np.ascontiguousarray(values[position])
            places = self.keys.ctypes.data, self.values.ctypes.data
            put(key.ctypes.data, value.ctypes.data, *places, self.width, position)

    def meant(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The keys and the values that bytes stand for, whole blocks of them."""
        groups, block = self.width // pack8.GROUP, attend.BLOCK
        found = []
        for kept, is_key in ((self.keys, True), (self.values, False)):
            blocks = kept.reshape(-1, block * pack8.position_bytes(self.width))
            words = blocks[:, : 4 * block * groups].copy().view(np.uint16).astype(np.uint32) << 16
            heads = words.view(np.float32).reshape(-1, groups, 2, block).transpose(2, 0, 3, 1)
            steps, lowest = np.repeat(heads.astype(np.float64), pack8.GROUP, axis=3)
            codes = blocks[:, 4 * block * groups :]
            if is_key:
                fours = codes.reshape(-1, self.width // 4, block, 4).transpose(0, 2, 1, 3)
                whole = fours.reshape(-1, block, self.width)
            else:
                whole = codes.reshape(-1, block, self.width)
            found.append((whole * steps + lowest).reshape(self.capacity, self.width))
        return found[0], found[1]

    def attended(
        self,
        queries: Floats,
        ends: Sequence[int],
        scale: float,
        sink: float | None = None,
        begins: Sequence[int] | None = None,
    ) -> Floats:
        """What each query row gets that sees the positions from its begin up to its end."""
        queries = queries.copy()  # one of the kernels packs them where they stand
        out = np.full_like(queries, np.nan)
        scores = np.full((attend.ROWS, self.capacity), np.nan, np.float32)
        by = np.array([scale, sink or 0.0], np.float32)
        table = np.zeros((5, t.TABLE_ROWS), np.int64)
        count = len(queries)
        table[0, :count] = [row.ctypes.data for row in queries]
        table[1, :count] = [row.ctypes.data for row in out]
        table[2, :count] = ends
        table[3, :count] = begins or 0
        table[4, :count] = 0 if sink is None else by[1:].ctypes.data
        numbers = (count, table.ctypes.data, self.keys.ctypes.data, self.values.ctypes.data, self.width)
        function = attend.function if self.bits == 16 else attend8.function
        _dots(function().address, (*numbers, scores.ctypes.data, scores.strides[0], by.ctypes.data))
        return out
