"""A mixture of experts in a layer: which of them a row goes to, and their work for all rows of a step.

Rows that go to the same expert go through it together. Each output of a row is added up in the order of the
experts' numbers, by one thread, so a row's numbers are the same alone and among others. Knows nothing of
attention or of how weights are packed.
"""

from functools import cache
from typing import Any, Final

import numpy as np

from exo_cli.engine.cpu import lanes
from exo_cli.engine.cpu import tables as t
from exo_cli.engine.cpu.dots import AT_ONCE, TILE
from exo_cli.engine.cpu.emit import by_address
from exo_cli.engine.cpu.jit import apart, inner
from exo_cli.engine.cpu.lanes import field, peek, poke, poke_word, word
from exo_cli.engine.cpu.products import (
    STORE,
    counter_of,
    near_rows,
    portion,
    product,
    tiles,
    unit_count,
    units,
)
from exo_cli.engine.cpu.rows import exp, norm, pack_row
from exo_cli.engine.cpu.waits import increase, meet

CHOICE: Final = 16
"""Bytes of an entry in CHOSEN."""
TURN: Final = 24
"""Bytes of an entry in the list of experts that have rows: its number, its first row and the one after its
last, as rows lie in ITEMS."""
_ZERO: Final = np.float32(0)


@inner
def choose(routed: int, experts: int, top: int, shares: int, chosen: int) -> None:
    """The `top` experts with the highest scores, the highest first, of two equals the one that comes first.

    What is not a number is never higher than anything; there are always `top` experts.
    """
    before, at = _ZERO, -1
    for place in range(top):
        best, found = _ZERO, -1
        for each in range(experts):
            score = peek(routed + 4 * each)
            left = at < 0 or score < before or (score == before and each > at)
            if left and (found < 0 or score > best):
                best, found = score, each
        if found < 0:
            found = place
        before, at = best, found
        poke_word(chosen + CHOICE * place, found)
        poke(chosen + CHOICE * place + 8, best)
    highest = peek(chosen + 8)
    whole = _ZERO
    if shares != 0:
        for each in range(experts):
            whole += _power(peek(routed + 4 * each) - highest)
    for place in range(top):
        weight = _power(peek(chosen + CHOICE * place + 8) - highest)
        poke(chosen + CHOICE * place + 8, weight)
        if shares == 0:
            whole += weight
    for place in range(top):
        at_weight = chosen + CHOICE * place + 8
        poke(at_weight, peek(at_weight) / whole)


@inner
def _power(x: float) -> float:
    """e to the x."""
    found: float = lanes.total(lanes.first(exp(lanes.fill(x)), 1, _ZERO))
    return found


@inner
def by_expert(chosen: int, items: int, experts: int, ends: int, turns: int, order: int) -> int:
    """The rows' choices, expert after expert and rows in their order: `order` says which choice comes when.

    `turns`: experts that have rows; their number is given back. `ends`: room for a word an expert and one.
    """
    for each in range(experts + 1):
        poke_word(ends + 8 * each, 0)
    for item in range(items):
        at = ends + 8 * word(chosen + CHOICE * item) + 8
        poke_word(at, word(at) + 1)
    count = 0
    for each in range(experts):
        first, rows = word(ends + 8 * each), word(ends + 8 * each + 8)
        poke_word(ends + 8 * each + 8, first + rows)
        if rows > 0:
            poke_word(turns + TURN * count, each)
            poke_word(turns + TURN * count + 8, first)
            poke_word(turns + TURN * count + 16, first + rows)
            count += 1
    for item in range(items):
        at = ends + 8 * word(chosen + CHOICE * item)
        place = word(at)
        poke_word(order + 8 * place, item)
        poke_word(at, place + 1)
    return count


@inner
def _route(layer: int, step: int, first: int, last: int, eps: float, scratch: int, spare: int) -> None:
    """These rows' norms, packed, and their experts."""
    router, gate_up = layer + 8 * t.ROUTER, layer + 8 * t.GATE_UP
    width, group = field(router, t.INPUTS), field(gate_up, t.GROUP)
    record, count = field(gate_up, t.RECORD), field(router, t.TILE_COUNT)
    experts, top = field(layer, t.EXPERTS), field(layer, t.TOP)
    stride = 4 * TILE * count
    routed = spare + 4 * width * AT_ONCE
    for start in range(first, last, AT_ONCE):
        some = min(AT_ONCE, last - start)
        for each in range(some):
            x = field(step, t.X) + 4 * width * (start + each)
            normed = spare + 4 * width * each
            norm(x, field(layer, t.NORM_POST), width, eps, normed)
            pack_row(normed, width, group, field(step, t.PACKED) + record * (start + each))
        tiles(router, spare, some, routed, stride, STORE, 0, count, scratch + t.SCRATCH_TILES)
        for each in range(some):
            chosen = field(step, t.CHOSEN) + CHOICE * top * (start + each)
            choose(routed + stride * each, experts, top, field(layer, t.SHARES), chosen)


@inner
def _gather(source: int, top: int, record: int, order: int, first: int, last: int, to: int) -> None:
    """Packed rows, as `order` wants them."""
    for place in range(first, last):
        row = source + record * (word(order + 8 * place) // top)
        for at in range(0, record, 64):
            lanes.store(to + record * place + at, lanes.load(row + at))


@inner
def _gated(
    layer: int, turns: int, count: int, x: int, record: int, step: int, taken: int, threads: int, spare: int
) -> None:
    """This thread's part of what goes into `down`, over all experts that have rows."""
    down = layer + 8 * t.DOWN
    each, hidden = unit_count(down), field(down, t.RECORD)
    size = portion(each * count, threads)
    at = increase(taken, 1) * size
    while at < each * count:
        end = min(each * count, at + size)
        while at < end:
            turn = turns + TURN * (at // each)
            first = at % each
            last = min(each, first + end - at)
            begin, rows = word(turn + 8), word(turn + 16) - word(turn + 8)
            matrix = field(layer, t.GATE_UPS) + 8 * t.MATRIX * word(turn)
            to = field(step, t.HIDDEN_ROWS) + hidden * begin
            units(matrix, down, x + record * begin, rows, to, first, last, field(layer, t.GATING), spare)
            at += last - first
        at = increase(taken, 1) * size


@inner
def _added(
    layer: int,
    turns: int,
    count: int,
    order: int,
    chosen: int,
    step: int,
    first: int,
    last: int,
    spare: int,
) -> None:
    """Some tiles of all experts' outputs, weighed and added to their rows."""
    top, hidden = field(layer, t.TOP), field(step, t.HIDDEN_ROWS)
    stride = 4 * TILE * field(layer + 8 * t.DOWN, t.TILE_COUNT)
    for number in range(count):
        turn = turns + TURN * number
        matrix = field(layer, t.DOWNS) + 8 * t.MATRIX * word(turn)
        base, inputs, dots = field(matrix, t.TILES), field(matrix, t.INPUTS), field(matrix, t.FUNCTION)
        kind, size = field(matrix, t.KIND), field(matrix, t.TILE_BYTES)
        bias, record = field(matrix, t.BIAS), field(matrix, t.RECORD)
        begin, end = word(turn + 8), word(turn + 16)
        near = near_rows(record)
        for start in range(begin, end, near):
            for tile in range(first, last):
                where = base + tile * size
                for row in range(start, min(end, start + near), AT_ONCE):
                    some = min(AT_ONCE, min(end, start + near) - row)
                    by_address(
                        dots, (kind, inputs, where, hidden + row * record, record, spare, 4 * TILE, some)
                    )
                    for each in range(some):
                        item = word(order + 8 * (row + each))
                        weight = lanes.load_one(chosen + CHOICE * item + 8)
                        target = field(step, t.X) + stride * (item // top) + 4 * TILE * tile
                        for half in (0, 64):
                            made = lanes.load(spare + 4 * TILE * each + half)
                            if bias != 0:
                                made = lanes.add(made, lanes.load(bias + 4 * TILE * tile + half))
                            lanes.store(target + half, lanes.fma(made, weight, lanes.load(target + half)))


def lists_bytes(experts: int, items: int) -> int:
    """Room that the order of so many choices takes, in whole cache lines."""
    return -(-(8 * (experts + 1) + TURN * min(experts, items) + 8 * items) // 64) * 64


_lists_bytes = inner(lists_bytes)


def _mixture(stage: int, layer: int, number: int, step: int, scratch: int, thread: int, threads: int) -> None:
    """The experts of one layer for the rows in X, after a norm; what they give is added there.

    A single row is packed and sorted by every thread for itself; of several rows each thread takes some.
    """
    rows, barrier = field(step, t.ROWS), field(step, t.BARRIER)
    experts, top, width = field(layer, t.EXPERTS), field(layer, t.TOP), field(stage, t.WIDTH)
    eps = peek(field(stage, t.FLOATS) + 4 * t.EPS)
    gate_up, few = layer + 8 * t.GATE_UP, scratch + t.SCRATCH_TILES
    record = field(gate_up, t.RECORD)
    items = rows * top
    ends = scratch + t.SCRATCH_REST
    turns = ends + 8 * (experts + 1)
    order = turns + TURN * min(experts, items)
    spare = ends + _lists_bytes(experts, items)
    if rows == 1:
        chosen, x, between = spare, spare + CHOICE * (-(-top // 4) * 4), 0
        normed = x + record
        norm(field(step, t.X), field(layer, t.NORM_POST), width, eps, normed)
        pack_row(normed, width, field(gate_up, t.GROUP), x)
        routed = field(step, t.ROUTED)
        product(layer + 8 * t.ROUTER, normed, 1, routed, 0, STORE, counter_of(step, number, 4), threads, few)
        meet(barrier, threads)
        choose(routed, experts, top, field(layer, t.SHARES), chosen)
        count = by_expert(chosen, items, experts, ends, turns, order)
    else:
        chosen, x, between = field(step, t.CHOSEN), field(step, t.ITEMS), record
        first, last = rows * thread // threads, rows * (thread + 1) // threads
        _route(layer, step, first, last, eps, scratch, spare)
        meet(barrier, threads)
        count = by_expert(chosen, items, experts, ends, turns, order)
        first, last = items * thread // threads, items * (thread + 1) // threads
        _gather(field(step, t.PACKED), top, record, order, first, last, x)
        meet(barrier, threads)
    _gated(layer, turns, count, x, between, step, counter_of(step, number, 2), threads, few)
    meet(barrier, threads)
    tile_count = field(layer + 8 * t.DOWN, t.TILE_COUNT)
    size = portion(tile_count, threads)
    taken = counter_of(step, number, 3)
    at = increase(taken, 1) * size
    while at < tile_count:
        _added(layer, turns, count, order, chosen, step, at, min(tile_count, at + size), few)
        at = increase(taken, 1) * size
    meet(barrier, threads)


ARGUMENTS: Final = 7


@cache
def function() -> Any:
    """The kernel for a layer's experts, apart: models without any do not compile it."""
    return apart(ARGUMENTS)(_mixture)
