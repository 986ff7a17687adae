"""What the chain itself costs: microseconds per token and extra stage, over mTLS.

A model whose layers are so small that they cost next to nothing, one layer a stage at most: the same
three layers as one stage, as two and as three, each stage a process of its own behind a serve-shard. The
chains are loaded at the same time and take turns, token by token of one request; the figure is the
difference of the median times between two tokens. Exit code 80 says that the design's target was missed.
"""

import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import mlx.core as mx

from benchmarks.machine import machine
from exo_cli.trust.keyring import KeyringSource
from tests.support import tiny_models
from tests.support.cluster import Driven, loaded, shards

HERE = Path(__file__).parent
TARGET_US = 400.0
LAYERS = 3
BOUNDS = ((0, 3), (0, 2, 3), (0, 1, 2, 3))
ROUNDS = 12
TOKENS = 200
WARM_UP = 40
"""Tokens of each turn that are not counted."""


async def gaps_us(driven: Driven) -> list[float]:
    """The times between the tokens of one request, as the driver sees them."""
    times = []
    async for _ in driven.generation([5, 6, 7, 8], WARM_UP + TOKENS).tokens():
        times.append(time.perf_counter())
    return [
        (after - before) * 1e6 for before, after in zip(times[WARM_UP:], times[WARM_UP + 1 :], strict=False)
    ]


async def measure(model: Path, home: Path) -> dict[int, list[float]]:
    """By the number of stages: the median gap of each round."""
    source = KeyringSource()
    found: dict[int, list[float]] = {len(bounds) - 1: [] for bounds in BOUNDS}
    with shards(home, "a", "b", "c") as nodes:
        async with contextlib.AsyncExitStack() as stack:
            chains = {}
            for bounds in BOUNDS:
                stages = len(bounds) - 1
                chain = loaded(source, model, bounds, nodes[:stages])
                chains[stages] = await stack.enter_async_context(chain)
            for _ in range(ROUNDS):
                for stages, driven in chains.items():
                    found[stages].append(statistics.median(await gaps_us(driven)))
    return found


def main() -> int:
    with tempfile.TemporaryDirectory() as place:
        home = Path(place, "home")
        home.mkdir()
        os.environ["HOME"] = str(home)
        mx.disable_compile()
        small = (("num_hidden_layers", LAYERS), ("vocab_size", 96))
        model = tiny_models.build("llama", Path(place, "model"), overrides=small)
        found = asyncio.run(measure(model, home))
    rows = []
    for stages, rounds in found.items():
        median = statistics.median(rounds)
        rows.append({"stages": stages, "us_per_token": round(median), "fastest_round_us": round(min(rounds))})
        print(f"{stages} stages: {median:6.0f} us a token (rounds {min(rounds):.0f} to {max(rounds):.0f})")
    one, last = statistics.median(found[1]), statistics.median(found[LAYERS])
    extra = (last - one) / (LAYERS - 1)
    paired = statistics.median((c - a) / (LAYERS - 1) for a, c in zip(found[1], found[LAYERS], strict=True))
    print(f"an extra stage: {extra:.0f} us a token ({paired:.0f} round by round); target {TARGET_US:.0f}")
    document = {
        "schema": "exo.benchmark-chain/1",
        "machine": machine(),
        "conditions": "one host, every stage a process; loopback, mTLS; one request, greedy; float32 llama",
        "rounds": ROUNDS,
        "tokens": TOKENS,
        "results": rows,
        "extra_stage_us": round(extra),
        "target_us": TARGET_US,
    }
    path = HERE / "results" / "chain.json"
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return 80 if extra > TARGET_US else 0


if __name__ == "__main__":
    sys.exit(main())
