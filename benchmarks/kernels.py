"""The CPU kernels by themselves: one stage of random weights, no engine, no sampling, no sockets.

For a geometry: decode of one request with 1 and 2 threads, at a short and a long context, eight requests
together, and prefill. Rates in tokens, in weights and in bytes read per second. Random weights are not a
model: these are speeds, not answers.
"""

import argparse
import json
import statistics
import time
from typing import Any, Final, Literal

import numpy as np

from benchmarks.machine import machine
from exo_cli.engine.cpu import tables as t
from exo_cli.engine.cpu.dots import BRAIN, PAIR_BYTES, POWERS, SINGLE, TILE
from exo_cli.engine.cpu.layout import Floats, Matrix, Plain, room, tiled
from exo_cli.engine.cpu.plan import MOST_ROWS, Decoder, Experts, Gated, Layer, Record, Shape, rooms
from exo_cli.engine.cpu.pool import Pool
from exo_cli.engine.cpu.slots import Slot
from exo_cli.engine.cpu.turns import Turns

GEOMETRIES: Final = {
    "llama-3.2-1b": (Shape(2048, 32, 8, 64, 8192, 1e-5, 0.0, 0.125), 16, 128256),
    "250m": (Shape(1024, 16, 8, 64, 4096, 1e-5, 0.0, 0.125), 14, 32000),
    # A few of their layers, so that they fit; a token's time grows with layers.
    "qwen3-30b-a3b": (Shape(2048, 32, 4, 128, 768, 1e-6, 1e-6, 0.088), 8, 151936),
    "gpt-oss-20b": (Shape(2880, 64, 8, 64, 2880, 1e-5, 0.0, 0.125), 4, 201088),
    "tiny": (Shape(256, 4, 2, 64, 512, 1e-5, 0.0, 0.125), 2, 512),
}
MIXTURES: Final = {"qwen3-30b-a3b": (128, 8), "gpt-oss-20b": (32, 4)}
"""Experts, and how many compute a row."""
FORMATS: Final = {"4-64": (4, 64), "4-32": (4, 32), "8-64": (8, 64), "bf16": (16, 0), "mxfp4": (4, 0)}
BITS: Final = {"4-64": 4.5, "4-32": 5.0, "8-64": 8.5, "bf16": 16, "mxfp4": 4.25}
"""Of a weight, scales and all."""


def matrix(outputs: int, inputs: int, bits: int, group: int, chance: np.random.Generator) -> Matrix:
    """Random codes, small scales, biases that put the middle at zero."""
    padded = -(-outputs // TILE) * TILE
    if bits == 16:
        tile_bytes = inputs * TILE * 2
        tiles = room(padded // TILE * tile_bytes)
        small = (chance.standard_normal(1 << 16).astype(np.float32) * 0.02).view(np.uint32) >> 16
        words = tiles.view(np.uint16)
        words[:] = np.resize(small.astype(np.uint16), words.shape)
        return Matrix(tiles, outputs, inputs, bits, 0, BRAIN, tile_bytes)
    if bits == 4 and group == 0:
        tile_bytes = -(-inputs // 64) * PAIR_BYTES
        tiles = room(padded // TILE * tile_bytes)
        pairs = tiles.reshape(-1, PAIR_BYTES)
        pairs[:] = chance.integers(0, 256, PAIR_BYTES, np.uint8)
        pairs[:, : 2 * TILE] = 121
        return Matrix(tiles, outputs, inputs, 4, 32, POWERS, tile_bytes)
    groups = inputs // group
    block = TILE * 4 + TILE * group * bits // 8
    tiles = room(padded // TILE * groups * block)
    blocks = tiles.reshape(-1, block)
    some = chance.integers(0, 256, (min(len(blocks), 4096), block - TILE * 4), np.uint8)
    for start in range(0, len(blocks), len(some)):
        part = blocks[start : start + len(some)]
        part[:, TILE * 4 :] = some[: len(part)]
    scale = np.float32(0.05 / (1 << bits))
    heads = np.repeat(np.array([scale, -scale * (1 << (bits - 1))], np.float32).view(np.uint32) >> 16, TILE)
    blocks[:, : TILE * 4] = heads.astype(np.uint16).view(np.uint8)
    return Matrix(tiles, outputs, inputs, bits, group, BRAIN, groups * block)


def turns(shape: Shape) -> Turns:
    def made(first: int, last: int) -> Floats:
        angles = np.arange(first, last)[:, None] / 500000.0 ** (
            np.arange(0, shape.head_width, 2) / shape.head_width
        )
        return np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)

    return Turns(shape.head_width // 2, False, made)


def decoder(geometry: str, form: str, kv_bits: Literal[8, 16]) -> Decoder:
    shape, count, vocabulary = GEOMETRIES[geometry]
    bits, group = FORMATS[form]
    chance = np.random.default_rng(1)
    ones = np.ones(shape.width, np.float32)

    def one(outputs: int, inputs: int) -> Matrix:
        return matrix(outputs, inputs, bits, group, chance)

    def gated() -> Gated:
        return Gated(one(2 * shape.hidden, shape.width), one(shape.width, shape.hidden))

    def mlp() -> Gated | Experts:
        if geometry not in MIXTURES:
            return gated()
        experts, top = MIXTURES[geometry]
        numbers = chance.standard_normal((experts, shape.width)).astype(np.float32)
        router = tiled([Plain(numbers, SINGLE)])
        return Experts(router, [gated() for _ in range(experts)], top)

    layers = [
        Layer(
            ones,
            ones,
            one(shape.qkv, shape.width),
            one(shape.width, shape.heads * shape.head_width),
            mlp(),
        )
        for _ in range(count)
    ]
    embedding = one(vocabulary, shape.width)
    return Decoder(shape, layers, turns(shape), embedding, embedding, ones, 1e-5, kv_bits)


class Runner:
    """Steps of made-up requests."""

    def __init__(self, what: Decoder, threads: int, requests: int, positions: int) -> None:
        self.decoder = what
        self.pool = Pool(threads)
        self.record = Record(what)
        self.rooms = rooms(what, threads)
        self.rooms.words[t.BARRIER] = self.pool.barrier
        shape = what.shape
        self.slots = [
            Slot(len(what.layers), shape.kv_heads, shape.head_width, positions, what.kv_bits)
            for _ in range(requests)
        ]
        for slot in self.slots:
            # What nobody has written to takes no memory: reading it would cost nothing.
            slot.numbers.fill(60)
        self.table = what.turns.up_to(positions)
        assert what.head is not None
        self.logits = np.empty((requests, what.head.room), np.float32)

    def step(self, position: int, rows: int) -> float:
        """`rows` rows of every request from `position` on; how long it took."""
        began_s = time.perf_counter()
        done = 0
        while done < rows:
            some = min(rows - done, MOST_ROWS // len(self.slots))
            self._step(position + done, some, last=done + some == rows)
            done += some
        return time.perf_counter() - began_s

    def _step(self, position: int, rows: int, *, last: bool) -> None:
        count = rows * len(self.slots)
        self.rooms.fit(count, position + rows)
        table = np.zeros((len(self.slots), t.PART), np.int64)
        for number, (line, slot) in enumerate(zip(table, self.slots, strict=True)):
            line[:6] = (number * rows, rows, position, slot.address, slot.layer_bytes, slot.head_bytes)
        ids = np.arange(count, dtype=np.int64) % 500
        wanted = np.arange(rows - 1, count, rows, dtype=np.int64) if last else np.zeros(0, np.int64)
        words: Any = self.rooms.words
        words[t.ROWS], words[t.PARTS], words[t.PART_TABLE] = count, len(table), table.ctypes.data
        words[t.MANY], words[t.TURNS] = int(rows > 1), self.table.ctypes.data
        words[t.TOKENS] = ids.ctypes.data
        words[t.WANTED], words[t.WANTED_TABLE] = len(wanted), wanted.ctypes.data
        words[t.LOGITS], words[t.LOGITS_STRIDE] = self.logits.ctypes.data, self.logits.strides[0]
        self.rooms.counters[:] = 0
        self.pool.run(self.record.address, words.ctypes.data)


def seconds(runner: Runner, position: int, rows: int, times: int) -> float:
    runner.step(position, rows)
    return statistics.median(runner.step(position, rows) for _ in range(times))


def measure(geometry: str, form: str, kv_bits: Literal[8, 16], which: list[str]) -> dict[str, float]:
    what = decoder(geometry, form, kv_bits)
    read = what.nbytes
    for layer in what.layers:
        if isinstance(layer.mlp, Experts):
            # What is read for a token.
            read -= sum(one.nbytes for one in layer.mlp.each[layer.mlp.top :])
    weights = read * 8 / BITS[form]
    found: dict[str, float] = {"weights": weights, "bytes": read}
    for threads in (1, 2):
        if "decode" in which:
            took = seconds(Runner(what, threads, 1, 512), 128, 1, 24)
            found[f"decode_t{threads}_tokens_per_s"] = 1 / took
            found[f"decode_t{threads}_gweights_per_s"] = weights / took / 1e9
            found[f"decode_t{threads}_gb_per_s"] = read / took / 1e9
        if "deep" in which:
            found[f"decode_4096_t{threads}_tokens_per_s"] = 1 / seconds(
                Runner(what, threads, 1, 4608), 4096, 1, 16
            )
        if "eight" in which:
            found[f"eight_t{threads}_tokens_per_s"] = 8 / seconds(Runner(what, threads, 8, 512), 128, 1, 12)
        for rows in (256, 2048):
            if f"prefill{rows}" in which:
                took = seconds(Runner(what, threads, 1, rows), 0, rows, 2)
                found[f"prefill_{rows}_t{threads}_tokens_per_s"] = rows / took
                found[f"prefill_{rows}_t{threads}_gflop_per_s"] = 2 * weights * rows / took / 1e9
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--geometry", choices=GEOMETRIES, default="llama-3.2-1b")
    options.add_argument("--format", choices=FORMATS, default="4-64")
    options.add_argument("--kv-bits", choices=(8, 16), type=int, default=16)
    options.add_argument("what", nargs="*", default=["decode", "deep", "eight", "prefill256"])
    asked = options.parse_args()
    found = measure(asked.geometry, asked.format, asked.kv_bits, asked.what)
    conditions = {"geometry": asked.geometry, "format": asked.format, "kv_bits": asked.kv_bits}
    print(json.dumps({"machine": machine(), **conditions, **found}, indent=1))


if __name__ == "__main__":
    main()
