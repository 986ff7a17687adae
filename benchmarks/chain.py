"""What the chain itself costs: microseconds per token and extra stage, over mTLS.

A model whose layers are so small that they cost next to nothing, one layer a stage at most: the same
three layers as one stage, as two and as three, each stage a process of its own behind a serve-shard. The
chains are loaded at the same time and take turns. Of the median time between two tokens, what the stages
say that their steps took is computing; the rest is the chain's. Three figures: what a further stage adds
to the chain's part, which the target is for; what it adds in all, with the fixed cost of one more pass
through MLX; and how long a token is between two stages' steps. Exit code 80 says that the target was
missed.
"""

import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import mlx.core as mx

from benchmarks.machine import machine
from exo_cli.trust.keyring import KeyringSource
from tests.support import tiny_models
from tests.support.cluster import Driven, Shard, loaded, shards

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


async def computed_us(source: KeyringSource, bounds: tuple[int, ...], nodes: Sequence[Shard]) -> float:
    """What the stages of a chain say that a step takes them, one after the other."""
    found = 0.0
    for layers, node in zip(pairwise(bounds), nodes, strict=False):
        for stage in await node.stages(source):
            if (stage.first_layer, stage.last_layer) == layers:
                found += stage.step_ms_p50 * 1000
    return found


async def measure(model: Path, home: Path) -> dict[int, list[tuple[float, float]]]:
    """By the number of stages: the median gap of each round, and what of it was computing."""
    source = KeyringSource()
    found: dict[int, list[tuple[float, float]]] = {len(bounds) - 1: [] for bounds in BOUNDS}
    with shards(home, "a", "b", "c") as nodes:
        async with contextlib.AsyncExitStack() as stack:
            chains = []
            for bounds in BOUNDS:
                over = nodes[: len(bounds) - 1]
                chains.append((bounds, await stack.enter_async_context(loaded(source, model, bounds, over))))
            for _ in range(ROUNDS):
                for bounds, driven in chains:
                    gap_us = statistics.median(await gaps_us(driven))
                    found[len(bounds) - 1].append((gap_us, await computed_us(source, bounds, nodes)))
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
    rows, whole, chain = [], {}, {}
    for stages, rounds in found.items():
        whole[stages] = statistics.median(gap for gap, _ in rounds)
        chain[stages] = statistics.median(gap - computed for gap, computed in rounds)
        rows.append(
            {"stages": stages, "us_per_token": round(whole[stages]), "not_computing_us": round(chain[stages])}
        )
        print(f"{stages} stages: {whole[stages]:6.0f} us a token, {chain[stages]:6.0f} of it not computing")
    own = (chain[LAYERS] - chain[1]) / (LAYERS - 1)
    extra = (whole[LAYERS] - whole[1]) / (LAYERS - 1)
    hop = chain[LAYERS] / LAYERS
    print(f"the chain, for each further stage: {own:.0f} us a token (target {TARGET_US:.0f})")
    print(f"a further stage in all, one more pass through MLX with it: {extra:.0f} us a token")
    print(f"a hop: {hop:.0f} us from the end of one stage's step to the beginning of the next one's")
    document = {
        "schema": "exo.benchmark-chain/1",
        "machine": machine(),
        "conditions": "one host, every stage a process; loopback, mTLS; one request, greedy; float32 llama",
        "rounds": ROUNDS,
        "tokens": TOKENS,
        "results": rows,
        "chain_per_extra_stage_us": round(own),
        "extra_stage_us": round(extra),
        "hop_us": round(hop),
        "target_us": TARGET_US,
    }
    path = HERE / "results" / "chain.json"
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return 80 if own > TARGET_US else 0


if __name__ == "__main__":
    sys.exit(main())
