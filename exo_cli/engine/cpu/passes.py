"""A stage's layers over the rows of a step, in one native call: what each thread does, and where all meet.

Threads divide outputs, heads or rows; no sum is ever divided, so their number changes nothing. The records
are described in `tables`. Knows neither Python objects nor who waits for the answer.
"""

from exo_cli.engine.cpu import tables as t
from exo_cli.engine.cpu.attend import put_key, put_value
from exo_cli.engine.cpu.emit import by_address
from exo_cli.engine.cpu.jit import inner
from exo_cli.engine.cpu.lanes import field, peek, poke_word, word
from exo_cli.engine.cpu.layout import take_row
from exo_cli.engine.cpu.pack8 import put_key8, put_value8
from exo_cli.engine.cpu.products import ADD, STORE, counter_of, gated, packed, product
from exo_cli.engine.cpu.rows import norm, pack_row, rotate
from exo_cli.engine.cpu.waits import meet


@inner
def place_heads(stage: int, layer: int, step: int, number: int, thread: int, threads: int) -> None:
    """Norms and rotation of queries and keys; keys and values go to their caches. By row and KV head."""
    kv_heads, width = field(stage, t.KV_HEADS), field(stage, t.HEAD_WIDTH)
    many = field(stage, t.HEADS) // kv_heads
    half, paired = field(stage, t.TURN_HALF), field(stage, t.TURN_PAIRED)
    floats, queries = field(stage, t.FLOATS), 4 * width * field(stage, t.HEADS)
    norm_query, norm_key = field(layer, t.NORM_QUERY), field(layer, t.NORM_KEY)
    qkv, stride, turns = field(step, t.QKV_ROWS), field(step, t.QKV_STRIDE), field(step, t.TURNS)
    item = 0
    for part in range(field(step, t.PARTS)):
        share = field(step, t.PART_TABLE) + 8 * t.PART * part
        start, position = field(share, t.PART_START), field(share, t.PART_POSITION)
        head_bytes = field(share, t.PART_HEAD_BYTES)
        keys = field(share, t.PART_CACHE) + number * field(share, t.PART_LAYER_BYTES)
        for row in range(field(share, t.PART_COUNT)):
            at = qkv + (start + row) * stride
            turn = turns + 8 * half * (position + row)
            for head in range(kv_heads):
                item += 1
                if item % threads != thread:
                    continue
                for each in range(many):
                    query = at + 4 * width * (head * many + each)
                    if norm_query != 0:
                        norm(query, norm_query, width, peek(floats + 4 * t.EPS_QUERY), query)
                    rotate(query, turn, half, paired)
                key = at + queries + 4 * width * head
                if norm_key != 0:
                    norm(key, norm_key, width, peek(floats + 4 * t.EPS_KEY), key)
                rotate(key, turn, half, paired)
                value = at + queries + 4 * width * (kv_heads + head)
                to_key, to_value = keys + head * head_bytes, keys + (kv_heads + head) * head_bytes
                if field(stage, t.KV_BITS) == 8:
                    put_key8(key, to_key, width, position + row)
                    put_value8(value, to_value, width, position + row)
                else:
                    put_key(key, to_key, width, position + row)
                    put_value(value, to_value, width, position + row)


@inner
def look_back(
    stage: int, layer: int, step: int, number: int, scratch: int, thread: int, threads: int
) -> None:
    """Attention, by request, KV head and some rows of it; single rows are divided as `place_heads` does."""
    kv_heads, width = field(stage, t.KV_HEADS), field(stage, t.HEAD_WIDTH)
    all_heads = field(stage, t.HEADS)
    many = all_heads // kv_heads
    scale, attend = field(stage, t.FLOATS) + 4 * t.SCALE, field(stage, t.ATTEND)
    qkv, stride, attended = field(step, t.QKV_ROWS), field(step, t.QKV_STRIDE), field(step, t.ATTENDED)
    score_stride = field(step, t.SCORE_STRIDE)
    window, sinks = field(layer, t.WINDOW), field(layer, t.SINKS)
    scores = scratch + t.SCRATCH_REST
    at_once = max(1, 8 // many)
    item = 0
    for part in range(field(step, t.PARTS)):
        share = field(step, t.PART_TABLE) + 8 * t.PART * part
        start, position = field(share, t.PART_START), field(share, t.PART_POSITION)
        rows = field(share, t.PART_COUNT)
        head_bytes = field(share, t.PART_HEAD_BYTES)
        cache = field(share, t.PART_CACHE) + number * field(share, t.PART_LAYER_BYTES)
        for head in range(kv_heads):
            for first in range(0, rows, at_once):
                last = min(rows, first + at_once)
                item += 1
                if item % threads != thread:
                    continue
                used = 0
                for row in range(first, last):
                    end = position + row + 1
                    for each in range(head * many, (head + 1) * many):
                        at = scratch + 8 * used
                        poke_word(at + t.QUERIES, qkv + (start + row) * stride + 4 * width * each)
                        poke_word(at + t.OUTS, attended + 4 * width * (all_heads * (start + row) + each))
                        poke_word(at + t.ENDS, end)
                        poke_word(at + t.BEGINS, max(0, end - window) if window else 0)
                        poke_word(at + t.SINKS_OF, sinks + 4 * each if sinks else 0)
                        used += 1
                keys = cache + head * head_bytes
                values = cache + (kv_heads + head) * head_bytes
                by_address(attend, (used, scratch, keys, values, width, scores, score_stride, scale))


@inner
def decoder_layer(
    stage: int, layer: int, number: int, step: int, scratch: int, thread: int, threads: int
) -> None:
    """Attention and a gated MLP or a mixture of such, each after a norm and added to what came in."""
    rows, x, barrier = field(step, t.ROWS), field(step, t.X), field(step, t.BARRIER)
    width = field(stage, t.WIDTH)
    eps = peek(field(stage, t.FLOATS) + 4 * t.EPS)
    spare = scratch + t.SCRATCH_TILES
    stride = 4 * width

    qkv = layer + 8 * t.QKV
    rows_in = packed(qkv, x, stride, rows, field(layer, t.NORM_IN), eps, step, scratch, thread, threads)
    taken = counter_of(step, number, 0)
    to, to_stride = field(step, t.QKV_ROWS), field(step, t.QKV_STRIDE)
    product(qkv, rows_in, rows, to, to_stride, STORE, taken, threads, spare)
    meet(barrier, threads)
    place_heads(stage, layer, step, number, thread, threads)
    if field(step, t.MANY) != 0:
        meet(barrier, threads)
    look_back(stage, layer, step, number, scratch, thread, threads)
    meet(barrier, threads)

    out = layer + 8 * t.OUT
    from_heads = 4 * field(out, t.INPUTS)
    rows_in = packed(out, field(step, t.ATTENDED), from_heads, rows, 0, eps, step, scratch, thread, threads)
    product(out, rows_in, rows, x, stride, ADD, counter_of(step, number, 1), threads, spare)
    meet(barrier, threads)

    if field(layer, t.EXPERTS) != 0:
        by_address(field(stage, t.MIXTURE), (stage, layer, number, step, scratch, thread, threads))
        return
    gate_up, down = layer + 8 * t.GATE_UP, layer + 8 * t.DOWN
    rows_in = packed(gate_up, x, stride, rows, field(layer, t.NORM_POST), eps, step, scratch, thread, threads)
    hidden = field(step, t.HIDDEN_ROWS)
    gated(gate_up, down, rows_in, rows, hidden, counter_of(step, number, 2), threads, spare)
    meet(barrier, threads)
    product(down, hidden, rows, x, stride, ADD, counter_of(step, number, 3), threads, spare)
    meet(barrier, threads)


@inner
def embed(stage: int, step: int, thread: int, threads: int) -> None:
    """The rows that tokens stand for; few are made by every thread, the same, which spares a meeting."""
    matrix, tokens = stage + 8 * t.EMBEDDING, field(step, t.TOKENS)
    rows, x, width = field(step, t.ROWS), field(step, t.X), field(stage, t.WIDTH)
    few = rows <= t.FEW
    first = 0 if few else rows * thread // threads
    last = rows if few else rows * (thread + 1) // threads
    for row in range(first, last):
        take_row(
            field(matrix, t.TILES),
            field(matrix, t.BITS),
            field(matrix, t.GROUP),
            field(matrix, t.KIND),
            field(matrix, t.INPUTS),
            field(matrix, t.TILE_BYTES),
            word(tokens + 8 * row),
            x + 4 * width * row,
        )
    if not few:
        meet(field(step, t.BARRIER), threads)


@inner
def answer(stage: int, step: int, scratch: int, threads: int) -> None:
    """The head's logits for the rows that want them; a few at a time."""
    wanted, width = field(step, t.WANTED), field(stage, t.WIDTH)
    matrix = stage + 8 * t.HEAD
    eps = peek(field(stage, t.FLOATS) + 4 * t.EPS_FINAL)
    record = field(matrix, t.RECORD)
    spare = scratch + t.SCRATCH_REST
    rows_in = spare + 4 * width
    for first in range(0, wanted, t.FEW):
        some = min(t.FEW, wanted - first)
        for each in range(some):
            row = word(field(step, t.WANTED_TABLE) + 8 * (first + each))
            norm(field(step, t.X) + 4 * width * row, field(stage, t.NORM_FINAL), width, eps, spare)
            pack_row(spare, width, field(matrix, t.GROUP), rows_in + each * record)
        stride = field(step, t.LOGITS_STRIDE)
        to = field(step, t.LOGITS) + first * stride
        taken = counter_of(step, field(stage, t.LAYERS), first // t.FEW)
        product(matrix, rows_in, some, to, stride, STORE, taken, threads, scratch + t.SCRATCH_TILES)


@inner
def one_pass(stage: int, step: int, thread: int, threads: int) -> None:
    """What one of the threads does in a step."""
    scratch = field(step, t.SCRATCH) + thread * field(step, t.SCRATCH_BYTES)
    if field(step, t.TOKENS) != 0:
        embed(stage, step, thread, threads)
    for number in range(field(stage, t.LAYERS)):
        layer = field(stage, t.LAYER_TABLE) + 8 * t.LAYER * number
        decoder_layer(stage, layer, number, step, scratch, thread, threads)
    if field(step, t.WANTED) != 0:
        answer(stage, step, scratch, threads)
