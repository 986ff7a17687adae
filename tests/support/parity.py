"""What mlx-lm says unsplit, and one generation as a chain of stages: the same numbers or not.

The reference is mlx-lm's own generator over mlx-lm's own model: it shares no code with the engine.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache

from exo_cli.engine import loading
from exo_cli.models.directory import ModelDirectory
from tests.support import tiny_models

PROMPT = [5, 17, 3, 88, 41, 2, 9, 60, 33, 71, 12]
CHUNK = 6
STEPS = 9

ASKED = ([5, 6, 7, 8, 9, 10, 11, 12, 13], [1], [3, 4], [9, 8, 7, 6, 5, 4])
"""Prompts that are in flight together."""
NEW = 7
TURNS = 3
SAID = [2, 3]
"""What a person says after every answer of a chat."""

Step = Callable[[mx.array], mx.array]


def generate(step: Step) -> tuple[list[int], list[mx.array]]:
    """The prompt in two chunks, then greedy decoding; tokens and every row of logits."""
    rows = []
    for chunk in (PROMPT[:CHUNK], PROMPT[CHUNK:]):
        logits = step(mx.array([chunk]))
        mx.eval(logits)
        rows.append(logits)
    tokens = []
    for _ in range(STEPS):
        token = mx.argmax(rows[-1][0, -1]).item()
        assert isinstance(token, int)
        tokens.append(token)
        logits = step(mx.array([[token]]))
        mx.eval(logits)
        rows.append(logits)
    return tokens, rows


def unsplit(directory: Path) -> tuple[list[int], list[mx.array]]:
    return run_unsplit(tiny_models.reference(directory))


def run_unsplit(model: nn.Module) -> tuple[list[int], list[mx.array]]:
    cache = make_prompt_cache(model)
    return generate(lambda tokens: model(tokens, cache=cache))


def chain(skeleton: loading.Skeleton, cuts: Sequence[int]) -> tuple[list[int], list[mx.array]]:
    """The same through stages, each loaded by itself; what crosses a cut goes packed."""
    ends = [0, *cuts, skeleton.anatomy.n_layers]
    stages = [loading.load_stage(skeleton, a, b).stage for a, b in pairwise(ends)]
    caches = [stage.make_caches() for stage in stages]

    def step(tokens: mx.array) -> mx.array:
        payload: Any = None
        for stage, mine in zip(stages, caches, strict=True):
            payload = stage.forward(tokens, payload, mine)
            if stage.sends is not None:
                packed = stage.sends.pack(payload)
                mx.eval(packed)
                payload = stage.sends.unpack(packed)
        assert isinstance(payload, mx.array)
        return payload

    return generate(step)


def differences(
    expected: tuple[list[int], list[mx.array]], found: tuple[list[int], list[mx.array]]
) -> str | None:
    """None if tokens and logits are the same, bit for bit."""
    pairs = list(zip(expected[1], found[1], strict=True))
    worst = mx.max(mx.stack([mx.max(mx.abs(a - b)) for a, b in pairs])).item()
    same = all(bool(mx.array_equal(a, b).item()) for a, b in pairs)
    if expected[0] != found[0]:
        return f"other tokens: {expected[0]} and {found[0]}"
    return None if same else f"logits differ by up to {worst}"


def skeleton_of(directory: Path) -> loading.Skeleton:
    return loading.look(ModelDirectory.open(directory))


def greedy(model: nn.Module, prompt: Sequence[int], n: int) -> list[int]:
    """The tokens of mlx-lm's own generator."""
    # It brings transformers, which most that is here does without.
    from mlx_lm.generate import generate_step

    return [int(token) for token, _ in generate_step(mx.array(list(prompt)), model, max_tokens=n)]


@dataclass(frozen=True)
class Turn:
    """One turn of a chat: all that was said so far, and the answer."""

    prompt: list[int]
    answer: list[int]

    @property
    def known(self) -> int:
        """How many positions a chain has computed when the turn is over: all but the last token's."""
        return len(self.prompt) + len(self.answer) - 1


@dataclass(frozen=True)
class Expected:
    """What is asked of a chain, and what mlx-lm answers."""

    asked: list[list[int]]
    turns: list[Turn]


def expected(model: nn.Module) -> Expected:
    """The answers to ASKED, and a chat that begins with the first of them."""
    asked = [greedy(model, prompt, NEW) for prompt in ASKED]
    turns = [Turn(ASKED[0], asked[0])]
    while len(turns) < TURNS:
        prompt = [*turns[-1].prompt, *turns[-1].answer, *SAID]
        turns.append(Turn(prompt, greedy(model, prompt, NEW)))
    return Expected(asked, turns)
