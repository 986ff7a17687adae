"""Matrices times the rows of a step, as threads share them: what a thread takes, and where it puts it.

Threads divide outputs and take portions of them by a counter; no sum is ever divided. Knows nothing of
layers or attention.
"""

from typing import Final

from exo_cli.engine.cpu import lanes
from exo_cli.engine.cpu import tables as t
from exo_cli.engine.cpu.dots import AT_ONCE, TILE
from exo_cli.engine.cpu.emit import by_address
from exo_cli.engine.cpu.jit import inner
from exo_cli.engine.cpu.lanes import field
from exo_cli.engine.cpu.rows import clamped_gate, gate, norm, pack_part, pack_row
from exo_cli.engine.cpu.waits import LINE, increase, meet

NEAR_BYTES: Final = 400_000
"""Activation rows that stay in a core's own cache while a tile goes over them."""
PORTIONS: Final = 6
STORE, ADD = 0, 1


@inner
def near_rows(record: int) -> int:
    return max(AT_ONCE, NEAR_BYTES // record // AT_ONCE * AT_ONCE)


@inner
def portion(count: int, threads: int) -> int:
    """How many of so many things a thread takes at a time: whoever is late or slow takes fewer of them."""
    return max(1, count // (PORTIONS * threads)) if threads > 1 else max(1, count)


@inner
def counter_of(step: int, number: int, phase: int) -> int:
    """Where the threads count what is taken of one product of one layer."""
    at: int = field(step, t.COUNTERS) + LINE * (t.PHASES * number + phase)
    return at


@inner
def product(
    matrix: int, x: int, rows: int, out: int, out_stride: int, how: int, taken: int, threads: int, spare: int
) -> None:
    """This thread's part of a matrix times rows: stored, or added to what is there. `taken`: a counter."""
    count = field(matrix, t.TILE_COUNT)
    size = portion(count, threads)
    first = increase(taken, 1) * size
    while first < count:
        last = min(count, first + size)
        tiles(matrix, x, rows, out, out_stride, how, first, last, spare)
        first = increase(taken, 1) * size


@inner
def tiles(
    matrix: int, x: int, rows: int, out: int, out_stride: int, how: int, first: int, last: int, spare: int
) -> None:
    """Some tiles of a matrix times rows."""
    base, inputs, dots = field(matrix, t.TILES), field(matrix, t.INPUTS), field(matrix, t.FUNCTION)
    kind, size = field(matrix, t.KIND), field(matrix, t.TILE_BYTES)
    bias, record = field(matrix, t.BIAS), field(matrix, t.RECORD)
    near = near_rows(record)
    for start in range(0, rows, near):
        end = min(rows, start + near)
        for tile in range(first, last):
            where = base + tile * size
            to = out + 4 * TILE * tile
            if how == STORE and bias == 0:
                to += start * out_stride
                rows_at = x + start * record
                by_address(dots, (kind, inputs, where, rows_at, record, to, out_stride, end - start))
                continue
            for row in range(start, end, AT_ONCE):
                some = min(AT_ONCE, end - row)
                by_address(dots, (kind, inputs, where, x + row * record, record, spare, 4 * TILE, some))
                for each in range(some):
                    source, target = spare + 4 * TILE * each, to + (row + each) * out_stride
                    for half in (0, 64):
                        made = lanes.load(source + half)
                        if bias != 0:
                            made = lanes.add(made, lanes.load(bias + 4 * TILE * tile + half))
                        if how == ADD:
                            made = lanes.add(lanes.load(target + half), made)
                        lanes.store(target + half, made)


@inner
def unit_count(down: int) -> int:
    """Of groups in a row for `down`."""
    count: int = field(down, t.INPUTS) // (16 * max(1, field(down, t.GROUP) // 16))
    return count


@inner
def gated(matrix: int, down: int, x: int, rows: int, out: int, taken: int, threads: int, spare: int) -> None:
    """This thread's part of silu(gate) * up, as rows for `down`: made and packed a group at a time."""
    count = unit_count(down)
    size = portion(count, threads)
    first = increase(taken, 1) * size
    while first < count:
        last = min(count, first + size)
        units(matrix, down, x, rows, out, first, last, t.SILU, spare)
        first = increase(taken, 1) * size


@inner
def units(
    matrix: int, down: int, x: int, rows: int, out: int, first: int, last: int, how: int, spare: int
) -> None:
    """Some groups of what goes into `down`, for all rows; `how`: which function gates."""
    base, inputs, dots = field(matrix, t.TILES), field(matrix, t.INPUTS), field(matrix, t.FUNCTION)
    kind, size = field(matrix, t.KIND), field(matrix, t.TILE_BYTES)
    bias, record = field(matrix, t.BIAS), field(matrix, t.RECORD)
    width, out_group, out_record = field(down, t.INPUTS), field(down, t.GROUP), field(down, t.RECORD)
    unit_tiles = max(1, out_group // 16)
    near = near_rows(record)
    made_at = spare + 4 * TILE * AT_ONCE
    made_stride = 64 * unit_tiles
    for start in range(0, rows, near):
        end = min(rows, start + near)
        for unit in range(first, last):
            for row in range(start, end, AT_ONCE):
                some = min(AT_ONCE, end - row)
                for part in range(unit_tiles):
                    tile = unit * unit_tiles + part
                    where = base + tile * size
                    by_address(dots, (kind, inputs, where, x + row * record, record, spare, 4 * TILE, some))
                    for each in range(some):
                        left = lanes.load(spare + 4 * TILE * each)
                        right = lanes.load(spare + 4 * TILE * each + 64)
                        if bias != 0:
                            left = lanes.add(left, lanes.load(bias + 4 * TILE * tile))
                            right = lanes.add(right, lanes.load(bias + 4 * TILE * tile + 64))
                        made = gate(left, right) if how == t.SILU else clamped_gate(left, right)
                        lanes.store(made_at + made_stride * each + 64 * part, made)
                for each in range(some):
                    record_at = out + (row + each) * out_record
                    pack_part(made_at + made_stride * each, width, out_group, unit, record_at)


@inner
def packed(
    matrix: int,
    x: int,
    stride: int,
    rows: int,
    weight: int,
    eps: float,
    step: int,
    scratch: int,
    thread: int,
    threads: int,
) -> int:
    """Rows as a matrix wants them, after a norm if there is a weight; gives where they are.

    Few rows are packed by every thread for itself; many are divided, and then all meet.
    """
    width, group, record = field(matrix, t.INPUTS), field(matrix, t.GROUP), field(matrix, t.RECORD)
    spare = scratch + t.SCRATCH_REST
    few = rows <= t.FEW
    to: int = spare + 4 * width if few else field(step, t.PACKED)
    first = 0 if few else rows * thread // threads
    last = rows if few else rows * (thread + 1) // threads
    for row in range(first, last):
        source = x + row * stride
        if weight != 0:
            norm(source, weight, width, eps, spare)
            source = spare
        pack_row(source, width, group, to + row * record)
    if not few:
        meet(field(step, t.BARRIER), threads)
    return to
