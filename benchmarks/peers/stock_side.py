"""Stock mlx-lm's side, as a process of its own: `python -m benchmarks.peers.stock_side SPEC`.

mlx_lm's own `generate_step` over its own cache, greedy; figures as a JSON line. Knows nothing of the other
sides.
"""

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
from mlx_lm.generate import generate_step
from mlx_lm.utils import load_model

from benchmarks.peers.cases import Work
from benchmarks.peers.pacing import PROBE, affordable, rate


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done, and with how much time."""

    directory: str
    work: Work
    budget_s: float


class Side:
    """A loaded model, and when the time is over."""

    def __init__(self, spec: Spec) -> None:
        self.model, config = load_model(Path(spec.directory))
        self.vocabulary = int(config["vocab_size"])
        self.until = time.perf_counter() + spec.budget_s

    def answer(self, prompt: int, gen: int, seed: int) -> tuple[float, list[float]]:
        """When it was asked, and when each token came; fewer than `gen` when the time is over."""
        chance = random.Random(seed)
        ids = mx.array([chance.randrange(self.vocabulary) for _ in range(prompt)])
        times: list[float] = []
        begun = time.perf_counter()
        for _ in generate_step(ids, self.model, max_tokens=gen):
            times.append(time.perf_counter())
            if times[-1] > self.until and len(times) > 2:
                break
        return begun, times

    def longest(self, asked: int) -> int:
        """Of the prompts up to that one: the longest that there is time for."""
        begun, times = self.answer(min(PROBE, asked), 1, seed=1)
        return affordable(asked, min(PROBE, asked), times[0] - begun, self.until - time.perf_counter())


def measure(spec: Spec) -> dict[str, Any]:
    side, work = Side(spec), spec.work
    if work.kind == "prefill":
        prompt = side.longest(work.prompt)
        begun, times = side.answer(prompt, 1, seed=2)
        return {"prefill_tokens_per_s": prompt / (times[0] - begun), "prompt_tokens": prompt}
    if work.depth and (likely := side.longest(work.depth)) < work.depth:
        return {"skipped": f"only {likely} of {work.depth} tokens of context are affordable"}
    _, times = side.answer(max(work.depth, PROBE), work.gen, seed=2)
    return {"decode_tokens_per_s": rate(times), "gen_tokens": len(times), "depth": work.depth}


def main() -> None:
    spec = msgspec.json.decode(sys.argv[1], type=Spec)
    print(json.dumps({"type": "result", **measure(spec)}), flush=True)


if __name__ == "__main__":
    main()
