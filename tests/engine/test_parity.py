"""Split, batched, in chunks, with a reused prefix: mlx-lm's unsplit tokens, token for token.

Every family's stages run in one process, through the real frame codec, scheduler and caches.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache

from exo_cli.engine import stage as stages
from exo_cli.engine.caches import Prefixes
from exo_cli.engine.compute import MlxCompute
from exo_cli.engine.loading import load_stage, look
from exo_cli.models.directory import ModelDirectory
from tests.support import tiny_models
from tests.support.chain import Chain

FAMILIES = (
    *("llama", "qwen2", "qwen3", "qwen3_moe", "qwen3_next", "deepseek_v3", "gemma3_text", "gpt_oss"),
    *("mixtral", "phi3", "glm4_moe", "falcon_h1"),
)
PROMPTS = ([5, 6, 7, 8, 9, 10, 11, 12, 13], [1], [3, 4], [9, 8, 7, 6, 5, 4])
NEW = 7


def unsplit(model: Any, prompt: Sequence[int], n: int) -> list[int]:
    """mlx-lm's own greedy generation: the prompt but its last token, then one after the other."""
    cache = make_prompt_cache(model)
    ids = mx.array([list(prompt)])
    if len(prompt) > 1:
        model(ids[:, :-1], cache=cache)
        mx.eval([each.state for each in cache])
    out: list[int] = []
    token = ids[:, -1:]
    for _ in range(n):
        token = mx.argmax(model(token, cache=cache)[:, -1], axis=-1)[:, None]
        out.append(cast(int, token.item()))
    return out


def chain(directory: Path, cuts: Sequence[int]) -> Chain:
    skeleton = look(ModelDirectory.open(directory))
    bounds = [0, *cuts, skeleton.anatomy.n_layers]
    skeleton.check_chain(list(pairwise(bounds)))
    computes: list[MlxCompute] = []
    for first, last in pairwise(bounds):
        compute, _ = stages.warm(load_stage(skeleton, first, last))
        compute.set_prefixes(Prefixes(1 << 24))
        computes.append(compute)
    return Chain(computes, chunk=4, budget=1 << 30)


@pytest.mark.process
@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_any_allowed_cut_gives_the_unsplit_tokens(
    family: str, bits: int | None, tiny: Callable[..., Path]
) -> None:
    directory = tiny(family) if bits is None else tiny(family, bits=bits)
    model = tiny_models.reference(directory)
    wanted = [unsplit(model, prompt, NEW) for prompt in PROMPTS]
    allowed = look(ModelDirectory.open(directory)).anatomy.allowed
    assert allowed, f"{family} allows no cut"
    for cuts in ([], [allowed[0]], [allowed[0], allowed[-1]] if len(allowed) > 1 else [allowed[-1]]):
        made = chain(directory, cuts)
        seen = [
            made.open(number, prompt, NEW, keep_prefix=number == 0) for number, prompt in enumerate(PROMPTS)
        ]
        made.run()
        assert [each.tokens for each in seen] == wanted
        turn = [*PROMPTS[0], *seen[0].tokens, 2, 3]
        again = made.open(99, turn, NEW)
        made.run()
        assert again.tokens == unsplit(model, turn, NEW)
        assert again.prefix is not None
        assert again.prefix >= len(PROMPTS[0])
        assert not any(core.ledger.entries for core in made.cores)


def test_enough_families_are_compared() -> None:
    assert len(FAMILIES) >= 12
