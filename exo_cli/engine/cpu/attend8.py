"""Attention of a few query rows over one head's keys and values, kept as bytes (`pack8` says how).

Keys are multiplied as they are, byte by byte with the query's; values become floats, and what they share of a
step goes to their weights. Everything is summed in the order of groups and positions, and rows share nothing
but what is read. Knows nothing of requests.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from exo_cli.engine.cpu import lanes
from exo_cli.engine.cpu import tables as t
from exo_cli.engine.cpu.attend import ARGUMENTS, BLOCK, softmax
from exo_cli.engine.cpu.emit import BYTES, F32, I32, I64, LANES, VF, VI, Emitter, Value, native, splat
from exo_cli.engine.cpu.jit import apart, inner
from exo_cli.engine.cpu.pack8 import (
    CODES,
    GROUP,
    HEADS,
    LOWER,
    LOWEST,
    QUERY_BYTES,
    SMALL,
    STEP,
    STEP_BYTES,
    SUM,
    pack_query,
    position_bytes_here,
)


def _whole(e: Emitter, vector: Value) -> Value:
    """The sum of all lanes in every lane: always the upper half onto the lower one."""
    for half in (8, 4, 2, 1):
        places = ir.Constant(VI, [(lane + half) % LANES for lane in range(LANES)])
        vector = e.b.fadd(vector, e.b.shuffle_vector(vector, vector, places))
    return e.broadcast(e.b.extract_element(vector, ir.Constant(I32, 0)), VF)


def _scores(rows: int) -> Callable[..., None]:
    def write(
        e: Emitter, queries: Value, keys: Value, groups: Value, blocks: Value, out: Value, stride: Value
    ) -> None:
        """`queries`: addresses of packed rows; `out`: a row of scores each, `stride` apart."""
        b = e.b
        heads = [e.load(I64, e.at(queries, 8 * row), 8) for row in range(rows)]
        heads_size = e.times(groups, HEADS)
        size = e.at(heads_size, e.times(groups, CODES))
        with e.loop(blocks, []) as (block, _, _after):
            start = e.at(keys, b.mul(block, size))
            codes = e.at(start, heads_size)
            with e.loop(groups, [splat(VF, 0.0)] * (2 * rows)) as (group, sums, following):
                at = e.at(codes, e.times(group, CODES))
                packed = [e.at(head, e.times(group, QUERY_BYTES)) for head in heads]
                dots: list[Value] = [splat(VI, 0)] * (2 * rows)
                for piece in (0, LOWER):
                    if piece:
                        dots = [b.shl(dot, splat(VI, 7)) for dot in dots]
                    for four in range(GROUP // 4):
                        sides = [e.load(BYTES, e.at(at, 4 * BLOCK * four + 64 * side), 1) for side in (0, 1)]
                        if not piece:
                            for side in (0, 1):
                                e.prefetch_once(e.at(e.at(at, size), 4 * BLOCK * four + 64 * side))
                        for row in range(rows):
                            query = e.load(I32, e.at(packed[row], piece + 4 * four), 4)
                            for side in (0, 1):
                                place = 2 * row + side
                                dots[place] = e.add_products(dots[place], sides[side], query, small=False)
                head_at = e.at(start, e.times(group, HEADS))
                steps, lowest = (
                    [e.brain_floats(e.at(head_at, kind + LANES * STEP_BYTES * side)) for side in (0, 1)]
                    for kind in (0, LOWEST)
                )
                for row in range(rows):
                    step, total = (e.one(e.at(packed[row], place)) for place in (STEP, SUM))
                    for side in (0, 1):
                        place = 2 * row + side
                        number = b.sitofp(dots[place], VF)
                        grown = e.fma(number, b.fmul(steps[side], step), sums[place])
                        following.append(e.fma(lowest[side], total, grown))
            to = e.at(out, e.times(block, 4 * BLOCK))
            for row in range(rows):
                for side in (0, 1):
                    there = e.at(e.at(to, b.mul(stride, e.number(row))), 64 * side)
                    e.store(following[2 * row + side], there, 4)

    return write


def _values(rows: int, groups: int) -> Callable[..., None]:
    vectors = groups * GROUP // LANES

    def write(
        e: Emitter,
        weights: Value,
        stride: Value,
        values: Value,
        width: Value,
        blocks: Value,
        outs: Value,
        first: Value,
    ) -> None:
        """Outputs from `first` on, so many groups of them; `outs`: addresses of rows."""
        b = e.b
        held = cgutils.alloca_once(b, ir.ArrayType(F32, rows * groups * BLOCK))
        held.align = 64
        scaled = b.ptrtoint(held, I64)
        all_groups = b.sdiv(width, e.number(GROUP))
        heads_size = e.times(all_groups, HEADS)
        size = e.at(heads_size, e.times(width, BLOCK))
        heads_from = e.times(b.sdiv(first, e.number(GROUP)), HEADS)
        zeros = [splat(VF, 0.0)] * (rows * (vectors + groups))
        with e.loop(blocks, zeros) as (block, sums, following):
            start = e.at(values, b.mul(block, size))
            shifts = sums[rows * vectors :]
            for side in (0, 1):
                places = e.at(weights, e.at(e.times(block, 4 * BLOCK), 64 * side))
                weight = [e.floats(e.at(places, b.mul(stride, e.number(row)))) for row in range(rows)]
                for group in range(groups):
                    head_at = e.at(e.at(start, heads_from), HEADS * group + LANES * STEP_BYTES * side)
                    step, lowest = e.brain_floats(head_at), e.brain_floats(e.at(head_at, LOWEST))
                    for row in range(rows):
                        place = row * groups + group
                        to = e.at(scaled, 4 * BLOCK * place + 64 * side)
                        e.store(b.fmul(weight[row], step), to, 4)
                        shifts[place] = e.fma(weight[row], lowest, shifts[place])
            codes = e.at(e.at(start, heads_size), first)
            with e.loop(e.number(BLOCK), sums[: rows * vectors]) as (position, inside, after):
                at = e.at(codes, b.mul(position, width))
                if groups == 2:
                    e.prefetch_once(e.at(at, size))
                read = [
                    b.uitofp(b.zext(e.load(SMALL, e.at(at, LANES * vector), 1), VI), VF)
                    for vector in range(vectors)
                ]
                for row in range(rows):
                    for group in range(groups):
                        place = e.at(e.at(scaled, 4 * BLOCK * (row * groups + group)), e.times(position, 4))
                        by = e.one(place)
                        for vector in range(GROUP // LANES * group, GROUP // LANES * (group + 1)):
                            after.append(e.fma(by, read[vector], inside[row * vectors + vector]))
            following.extend([*after, *shifts])
        for row in range(rows):
            out = e.at(e.load(I64, e.at(outs, 8 * row), 8), e.times(first, 4))
            for group in range(groups):
                shift = _whole(e, following[rows * vectors + row * groups + group])
                for vector in range(GROUP // LANES * group, GROUP // LANES * (group + 1)):
                    made = b.fadd(following[row * vectors + vector], shift)
                    e.store(made, e.at(out, 64 * vector), 4)

    return write


_scores1, _scores2, _scores4, _scores8 = (native(_scores(rows)) for rows in (1, 2, 4, 8))
_wide1, _wide2, _wide4 = (native(_values(rows, 2)) for rows in (1, 2, 4))
_thin1, _thin2, _thin4, _thin8 = (native(_values(rows, 1)) for rows in (1, 2, 4, 8))


@inner
def _few(
    rows: int, table: int, keys: int, values: int, width: int, scores: int, stride: int, scale: float
) -> None:
    end = 0
    begin = lanes.word(table + t.BEGINS)
    for row in range(rows):
        end = max(end, lanes.word(table + t.ENDS + 8 * row))
        begin = min(begin, lanes.word(table + t.BEGINS + 8 * row))
        query = lanes.word(table + t.QUERIES + 8 * row)
        for group in range(width // GROUP):
            pack_query((query + QUERY_BYTES * group,))
    skipped = begin // BLOCK * BLOCK
    blocks = -(-(end - skipped) // BLOCK)
    keys += skipped * position_bytes_here(width)
    values += skipped * position_bytes_here(width)
    groups = width // GROUP
    queries, outs = table + t.QUERIES, table + t.OUTS
    if rows == 8:
        _scores8((queries, keys, groups, blocks, scores, stride))
    elif rows == 4:
        _scores4((queries, keys, groups, blocks, scores, stride))
    elif rows == 2:
        _scores2((queries, keys, groups, blocks, scores, stride))
    else:
        _scores1((queries, keys, groups, blocks, scores, stride))
    for row in range(rows):
        at = table + 8 * row
        first, last = lanes.word(at + t.BEGINS) - skipped, lanes.word(at + t.ENDS) - skipped
        softmax(scores + row * stride, first, last, blocks * BLOCK, scale, lanes.word(at + t.SINKS_OF))
    done = 0
    while width - done >= 2 * GROUP and rows < 8:
        if rows == 4:
            _wide4((scores, stride, values, width, blocks, outs, done))
        elif rows == 2:
            _wide2((scores, stride, values, width, blocks, outs, done))
        else:
            _wide1((scores, stride, values, width, blocks, outs, done))
        done += 2 * GROUP
    while done < width:
        if rows == 8:
            _thin8((scores, stride, values, width, blocks, outs, done))
        elif rows == 4:
            _thin4((scores, stride, values, width, blocks, outs, done))
        elif rows == 2:
            _thin2((scores, stride, values, width, blocks, outs, done))
        else:
            _thin1((scores, stride, values, width, blocks, outs, done))
        done += GROUP


def _attend(
    rows: int, table: int, keys: int, values: int, width: int, scores: int, stride: int, scale: int
) -> None:
    done = 0
    by = lanes.peek(scale)
    for size in (8, 4, 2, 1):
        while rows - done >= size:
            _few(size, table + 8 * done, keys, values, width, scores, stride, by)
            done += size


@cache
def function() -> Any:
    """The kernel, called as `attend.function` is. The queries are packed where they stand: they are lost."""
    return apart(ARGUMENTS)(_attend)
