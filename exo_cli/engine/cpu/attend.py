"""Attention of a few query rows over one head's keys and values, kept as float16.

Keys lie in blocks of 16 positions, an input's 16 numbers side by side, so that a lane is a position; values
lie a position after the other, so that a lane is an output. Rows share what is read and nothing else: each
row's scores, its sum and its outputs are made in the order of positions. Knows nothing of requests.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, Final

import numpy as np

from exo_cli.engine.cpu import lanes
from exo_cli.engine.cpu import tables as t
from exo_cli.engine.cpu.emit import LANES, VF, Emitter, Value, native, splat
from exo_cli.engine.cpu.jit import apart, inner
from exo_cli.engine.cpu.rows import exp

BLOCK: Final = 32
"""Positions are gone through so many at a time; caches have room for whole blocks."""
ROWS: Final = 8
"""The most query rows at once."""
_ZERO: Final = np.float32(0)
_NOTHING: Final = np.float32(-3.0e38)
_ONE: Final = np.float32(1)


def _scores(rows: int) -> Callable[..., None]:
    def write(
        e: Emitter, queries: Value, keys: Value, width: Value, blocks: Value, out: Value, stride: Value
    ) -> None:
        """`queries`: addresses of rows; `out`: a row of scores each, `stride` apart."""
        b = e.b
        heads = [e.load(b.add(queries, queries).type, e.at(queries, 8 * row), 8) for row in range(rows)]
        side = b.mul(width, e.number(2 * LANES))
        with e.loop(blocks, []) as (block, _, _after):
            start = e.at(keys, b.mul(b.mul(block, side), e.number(2)))
            with e.loop(width, [splat(VF, 0.0)] * (2 * rows)) as (place, sums, following):
                e.prefetch_once(e.at(e.at(start, e.times(place, 4 * LANES)), b.mul(side, e.number(2))))
                left = e.half_floats(e.at(start, e.times(place, 2 * LANES)))
                right = e.half_floats(e.at(e.at(start, side), e.times(place, 2 * LANES)))
                for row in range(rows):
                    query = e.one(e.at(heads[row], e.times(place, 4)))
                    following.append(e.fma(query, left, sums[2 * row]))
                    following.append(e.fma(query, right, sums[2 * row + 1]))
            to = e.at(out, e.times(block, 4 * BLOCK))
            for row in range(rows):
                for half in (0, 1):
                    place = e.at(e.at(to, b.mul(stride, e.number(row))), 64 * half)
                    e.store(following[2 * row + half], place, 4)

    return write


def _values(rows: int, vectors: int) -> Callable[..., None]:
    def write(
        e: Emitter,
        weights: Value,
        stride: Value,
        values: Value,
        pitch: Value,
        count: Value,
        outs: Value,
        offset: Value,
    ) -> None:
        """`outs`: addresses of rows; `pitch`: bytes from one position's values to the next one's."""
        b = e.b
        with e.loop(count, [splat(VF, 0.0)] * (rows * vectors)) as (place, sums, following):
            at = e.at(values, b.mul(place, pitch))
            if vectors > 1:
                for line in range(vectors // 2):
                    e.prefetch_once(e.at(at, 2048 + 64 * line))
            read = [e.half_floats(e.at(at, 2 * LANES * vector)) for vector in range(vectors)]
            for row in range(rows):
                weight = e.one(e.at(e.at(weights, b.mul(stride, e.number(row))), e.times(place, 4)))
                for vector in range(vectors):
                    following.append(e.fma(weight, read[vector], sums[row * vectors + vector]))
        for row in range(rows):
            out = e.load(offset.type, e.at(outs, 8 * row), 8)
            for vector in range(vectors):
                e.store(following[row * vectors + vector], e.at(e.at(out, offset), 64 * vector), 4)

    return write


_scores1, _scores2, _scores4, _scores8 = (native(_scores(rows)) for rows in (1, 2, 4, 8))
_wide1, _wide2, _wide4 = (native(_values(rows, 4)) for rows in (1, 2, 4))
_wide8 = native(_values(8, 2))
_thin1, _thin2, _thin4, _thin8 = (native(_values(rows, 1)) for rows in (1, 2, 4, 8))


@inner
def softmax(scores: int, begin: int, end: int, room: int, scale: float, sink: int) -> None:
    """The scores from `begin` to `end` as weights, in place, and zeros elsewhere up to `room` (whole blocks).

    `sink`: the address of a score that takes part in the sum alone; 0 for none.
    """
    by = lanes.fill(scale)
    top = lanes.fill(_NOTHING)
    from_, to = begin // 16, -(-end // 16)
    for place in range(from_, to):
        at = scores + 64 * place
        here = lanes.first(lanes.multiply(lanes.load(at), by), end - 16 * place, _NOTHING)
        here = lanes.beyond(here, begin - 16 * place, _NOTHING)
        lanes.store(at, here)
        top = lanes.larger(here, top)
    highest = lanes.highest(top)
    if sink:
        highest = max(highest, lanes.peek(sink))
    most = lanes.fill(highest)
    sums = lanes.fill(_ZERO)
    for place in range(from_, to):
        at = scores + 64 * place
        here = lanes.first(exp(lanes.subtract(lanes.load(at), most)), end - 16 * place, _ZERO)
        here = lanes.beyond(here, begin - 16 * place, _ZERO)
        lanes.store(at, here)
        sums = lanes.add(sums, here)
    whole = lanes.total(sums)
    if sink:
        whole += lanes.total(lanes.first(exp(lanes.fill(lanes.peek(sink) - highest)), 1, _ZERO))
    inverse = lanes.fill(_ONE / whole)
    for place in range(from_, to):
        at = scores + 64 * place
        lanes.store(at, lanes.multiply(lanes.load(at), inverse))
    nothing = lanes.fill(_ZERO)
    for place in range(from_):
        lanes.store(scores + 64 * place, nothing)
    for place in range(to, room // 16):
        lanes.store(scores + 64 * place, nothing)


@inner
def _few(
    rows: int, table: int, keys: int, values: int, width: int, scores: int, stride: int, scale: float
) -> None:
    end = 0
    begin = lanes.word(table + t.BEGINS)
    for row in range(rows):
        end = max(end, lanes.word(table + t.ENDS + 8 * row))
        begin = min(begin, lanes.word(table + t.BEGINS + 8 * row))
    # From a block's start on, whoever goes together: the same for every row that sees its first position.
    skipped = begin // BLOCK * BLOCK
    count = end - skipped
    blocks = -(-count // BLOCK)
    keys += 2 * width * skipped
    values += 2 * width * skipped
    queries, outs = table + t.QUERIES, table + t.OUTS
    if rows == 8:
        _scores8((queries, keys, width, blocks, scores, stride))
    elif rows == 4:
        _scores4((queries, keys, width, blocks, scores, stride))
    elif rows == 2:
        _scores2((queries, keys, width, blocks, scores, stride))
    else:
        _scores1((queries, keys, width, blocks, scores, stride))
    for row in range(rows):
        at = table + 8 * row
        first, last = lanes.word(at + t.BEGINS) - skipped, lanes.word(at + t.ENDS) - skipped
        softmax(scores + row * stride, first, last, blocks * BLOCK, scale, lanes.word(at + t.SINKS_OF))
    pitch = 2 * width
    at = 0
    while width - at >= 64:
        here = values + 2 * at
        if rows == 8:
            _wide8((scores, stride, here, pitch, count, outs, 4 * at))
            _wide8((scores, stride, here + 64, pitch, count, outs, 4 * at + 128))
        elif rows == 4:
            _wide4((scores, stride, here, pitch, count, outs, 4 * at))
        elif rows == 2:
            _wide2((scores, stride, here, pitch, count, outs, 4 * at))
        else:
            _wide1((scores, stride, here, pitch, count, outs, 4 * at))
        at += 64
    while at < width:
        here = values + 2 * at
        if rows == 8:
            _thin8((scores, stride, here, pitch, count, outs, 4 * at))
        elif rows == 4:
            _thin4((scores, stride, here, pitch, count, outs, 4 * at))
        elif rows == 2:
            _thin2((scores, stride, here, pitch, count, outs, 4 * at))
        else:
            _thin1((scores, stride, here, pitch, count, outs, 4 * at))
        at += 16


def _attend(
    rows: int, table: int, keys: int, values: int, width: int, scores: int, stride: int, scale: int
) -> None:
    done = 0
    by = lanes.peek(scale)
    for size in (8, 4, 2, 1):
        while rows - done >= size:
            _few(size, table + 8 * done, keys, values, width, scores, stride, by)
            done += size


ARGUMENTS: Final = 8


@cache
def function() -> Any:
    """The kernel: `rows` query rows over one head.

    `table` is described in `tables`, a thread's scratch; `scale` is the address of a float32. `scores` has
    room for ROWS rows, `stride` bytes apart.
    """
    return apart(ARGUMENTS)(_attend)


@inner
def put_key(x: int, keys: int, width: int, position: int) -> None:
    """One position's key to its place."""
    at = keys + (position // LANES) * width * 2 * LANES + 2 * (position % LANES)
    for place in range(width):
        lanes.poke_half(at + 2 * LANES * place, lanes.peek(x + 4 * place))


@inner
def put_value(x: int, values: int, width: int, position: int) -> None:
    at = values + 2 * width * position
    for place in range(width // LANES):
        lanes.store_half(at + 2 * LANES * place, lanes.load(x + 64 * place))
