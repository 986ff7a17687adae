"""Rows of a checkpoint into tiles, by native code: a table of addresses says where each row lies.

Sixteen rows at a time go through the processor's vectors, words of 32 bits that come out as columns. Rows may
begin at any byte, since a file's tensors do. Knows nothing of what the numbers mean, but for those that are
none.
"""

from collections.abc import Callable
from typing import Final

from llvmlite import ir

from exo_cli.engine.cpu.dots import TILE
from exo_cli.engine.cpu.emit import I16, I32, I64, LANES, V16, VI, Emitter, Value, native, splat
from exo_cli.engine.cpu.jit import inner, kernel
from exo_cli.engine.cpu.lanes import word

WORDS, SCALES, BIASES = range(3)
"""The table's columns: where a row's words and heads begin."""
ROW: Final = 3
ROW_BYTES: Final = 8 * ROW
_FEW: Final = 4
"""Columns that are turned where sixteen are not left; rows of packed words have a multiple of them."""


def _columns(e: Emitter, table: Value, at: Value, count: int) -> list[Value]:
    """The words at `at` of sixteen rows, each column of them as a vector."""
    rows = []
    for row in range(LANES):
        begin = e.load(I64, e.at(table, ROW_BYTES * row), 8)
        part = e.load(ir.VectorType(I32, count), e.at(begin, at), 1)
        if count < LANES:
            places = ir.Constant(VI, [place % count for place in range(LANES)])
            part = e.b.shuffle_vector(part, part, places)
        rows.append(part)
    # Each round moves a bit of a word's row to its place, until row and place have changed sides.
    for _ in range(4):
        rows = [
            e.b.shuffle_vector(rows[number // 2], rows[number // 2 + LANES // 2], _half(number % 2))
            for number in range(LANES)
        ]
    return rows[:count]


def _half(upper: int) -> ir.Constant:
    """Words of two vectors in turns: their lower halves, or their upper ones."""
    first = LANES // 2 * upper
    return ir.Constant(VI, [first + place // 2 + LANES * (place % 2) for place in range(LANES)])


def _spread(e: Emitter, words: Value) -> Value:
    """Eight codes of four bits as four bytes, of which each has two codes that stand four apart."""

    def bytes_(halves: Value) -> Value:
        wide = e.b.and_(e.b.or_(halves, e.b.shl(halves, splat(VI, 8))), splat(VI, 0x00FF00FF))
        return e.b.and_(e.b.or_(wide, e.b.shl(wide, splat(VI, 4))), splat(VI, 0x0F0F0F0F))

    low = bytes_(e.b.and_(words, splat(VI, 0xFFFF)))
    return e.b.or_(low, e.b.shl(bytes_(e.b.lshr(words, splat(VI, 16))), splat(VI, 4)))


def _codes(count: int, bits: int) -> Callable[..., None]:
    """Words of packed codes; blocks have `2 ** log` of a row's words."""

    def write(e: Emitter, table: Value, at: Value, out: Value, block: Value, log: Value) -> None:
        for number, column in enumerate(_columns(e, table, at, count)):
            group = e.b.lshr(e.number(number), log)
            place = e.b.sub(e.number(number), e.b.shl(group, log))
            to = e.at(out, e.b.add(e.b.mul(group, block), e.times(place, 4 * TILE)))
            e.store(_spread(e, column) if bits == 4 else column, to, 1)

    return write


def _numbers(size: int) -> Callable[..., None]:
    """Numbers of 2 or 4 bytes, each `repeat` times, a block further each time."""

    def write(e: Emitter, table: Value, at: Value, out: Value, block: Value, repeat: Value) -> None:
        columns = _columns(e, table, at, LANES)
        if size == 2:
            pairs = [
                (e.b.trunc(each, V16), e.b.trunc(e.b.lshr(each, splat(VI, 16)), V16)) for each in columns
            ]
            columns = [half for pair in pairs for half in pair]
        with e.loop(repeat, []) as (turn, _, _after):
            for number, column in enumerate(columns):
                place = e.b.add(e.b.mul(e.number(number), repeat), turn)
                e.store(column, e.at(out, e.b.mul(place, block)), 1)

    return write


def _no_numbers(size: int) -> Callable[..., None]:
    """Sets the word at `found` if one of `count` vectors has a number whose exponent is all ones."""
    kind, lane = (V16, I16) if size == 2 else (VI, I32)

    def write(e: Emitter, at: Value, count: Value, mask: Value, found: Value) -> None:
        ones = e.broadcast(e.b.trunc(mask, lane), kind)
        with e.loop(count, [splat(kind, 0)]) as (number, seen, following):
            exponents = e.b.and_(e.load(kind, e.at(at, e.times(number, LANES * size)), 1), ones)
            hit = e.b.sext(e.b.icmp_unsigned("==", exponents, ones), kind)
            following.append(e.b.or_(seen[0], hit))
        some = e.call(f"llvm.vector.reduce.or.v{LANES}i{8 * size}", lane, following[0])
        with e.when(e.b.icmp_unsigned("!=", some, ir.Constant(lane, 0))):
            e.store(e.number(1), found, 8)

    return write


def _move(size: int) -> Callable[..., None]:
    def write(e: Emitter, source: Value, to: Value) -> None:
        e.store(e.load(ir.IntType(8 * size), source, 1), to, 1)

    return write


_codes4, _codes8 = native(_codes(LANES, 4)), native(_codes(LANES, 8))
_few4, _few8 = native(_codes(_FEW, 4)), native(_codes(_FEW, 8))
_numbers2, _numbers4 = native(_numbers(2)), native(_numbers(4))
_scan2, _scan4 = native(_no_numbers(2)), native(_no_numbers(4))
_move2, _move4 = native(_move(2)), native(_move(4))


@inner
def _pack_numbers(rows: int, size: int, count: int, repeat: int, block: int, out: int) -> None:
    """Numbers of sixteen rows; `rows`: where the table has their addresses."""
    at_once = LANES * 4 // size
    whole = count - count % at_once
    for number in range(0, whole, at_once):
        to = out + number * repeat * block
        if size == 2:
            _numbers2((rows, number * size, to, block, repeat))
        else:
            _numbers4((rows, number * size, to, block, repeat))
    for number in range(whole, count):
        for row in range(LANES):
            source = word(rows + ROW_BYTES * row) + number * size
            for turn in range(repeat):
                to = out + (number * repeat + turn) * block + row * size
                if size == 2:
                    _move2((source, to))
                else:
                    _move4((source, to))


@inner
def pack_codes(rows: int, bits: int, words: int, log: int, block: int, out: int) -> None:
    whole = words - words % LANES
    for column in range(0, whole, LANES):
        to = out + (column >> log) * block
        if bits == 4:
            _codes4((rows, 4 * column, to, block, log))
        else:
            _codes8((rows, 4 * column, to, block, log))
    for column in range(whole, words, _FEW):
        to = out + (column >> log) * block + (column & ((1 << log) - 1)) * 4 * TILE
        if bits == 4:
            _few4((rows, 4 * column, to, block, log))
        else:
            _few8((rows, 4 * column, to, block, log))


@kernel
def pack(
    table: int, tiles: int, bits: int, group: int, size: int, groups: int, repeat: int, out: int
) -> None:
    """Whole tiles of packed rows with heads of `size` bytes, of which each is for `repeat` groups."""
    words = group * bits // 32
    log = 2
    while (1 << log) < words:
        log += 1
    head = 2 * TILE * size
    block = head + 4 * TILE * words
    for half in range(2 * tiles):
        rows = table + ROW_BYTES * LANES * half
        to = out + (half >> 1) * groups * block
        side = half & 1
        pack_codes(rows, bits, groups * words, log, block, to + head + 4 * LANES * side)
        for which in range(2):
            at = to + which * TILE * size + LANES * size * side
            _pack_numbers(rows + 8 * (SCALES + which), size, groups // repeat, repeat, block, at)


@kernel
def pack_plain(table: int, tiles: int, size: int, inputs: int, out: int) -> None:
    """Whole tiles of rows of numbers."""
    for half in range(2 * tiles):
        rows = table + ROW_BYTES * LANES * half
        to = out + (half >> 1) * inputs * TILE * size + LANES * size * (half & 1)
        _pack_numbers(rows + 8 * WORDS, size, inputs, 1, TILE * size, to)


@kernel
def no_numbers(at: int, count: int, size: int, mask: int, found: int) -> None:
    """Sets the word at `found` if one of at least LANES numbers is none or infinite; `mask`: exponents."""
    # The last vector again, since it may overlap the one before it.
    for begin, vectors in ((at, count // LANES), (at + (count - LANES) * size, 1)):
        if size == 2:
            _scan2((begin, vectors, mask, found))
        else:
            _scan4((begin, vectors, mask, found))
