"""What several requests cost, counted over real stages: steps, chunks between steps, bytes of KV that move.

Nothing is timed. A request's keys and values are followed by where their bytes are: whoever copies them
to join or part requests puts them elsewhere.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import ArraysCache, BatchKVCache

from exo_cli.engine import compute as computing
from exo_cli.engine import stage as stages
from exo_cli.engine.caches import parts
from exo_cli.engine.loading import load_stage, look
from exo_cli.engine.rows import together
from exo_cli.models.directory import ModelDirectory
from exo_cli.wire.frames import FrameData
from tests.support.chain import Chain

pytestmark = pytest.mark.process

LENGTHS = (40, 40, 40, 38)
"""Tokens of the four requests that are in flight together."""
PROMPT = [(7 * i + 3) % 90 + 1 for i in range(40)]
LONG = [(11 * i + 5) % 90 + 1 for i in range(600)]
"""So long that what a step needs beside the KV is small."""
CHUNK = 16
KINDS = ("llama", "gemma3_text", "deepseek_v3", "qwen3_next", "falcon_h1")
"""Families whose caches are plain, rotating, latent, or recurrent beside keys and values."""
Tiny = Callable[..., Path]


def chain(directory: Path, n_stages: int = 1, chunk: int = CHUNK, **options: Any) -> Chain:
    skeleton = look(ModelDirectory.open(directory))
    n = skeleton.anatomy.n_layers
    bounds = [0, *skeleton.anatomy.allowed[: n_stages - 1], n]
    computes = [stages.warm(load_stage(skeleton, first, last))[0] for first, last in pairwise(bounds)]
    return Chain(computes, chunk=chunk, budget=1 << 30, **options)


# -- steps ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_stages", [1, 2, 3])
def test_four_requests_take_hardly_more_steps_than_the_longest(n_stages: int, tiny: Tiny) -> None:
    alone = chain(tiny("llama"), n_stages)
    alone.open(0, PROMPT[:3], max(LENGTHS))
    alone.run()
    made = chain(tiny("llama"), n_stages)
    seen = [made.open(number, PROMPT[:3], n) for number, n in enumerate(LENGTHS)]
    made.run()
    assert [len(each.tokens) for each in seen] == list(LENGTHS)
    for core, one in zip(made.cores, alone.cores, strict=True):
        # While a request is on one stage, the others have time for a step of another group.
        assert core.steps <= 1.3 * one.steps * n_stages


@pytest.mark.parametrize("n_stages", [2, 3])
def test_at_most_one_chunk_between_two_steps_of_a_running_request(n_stages: int, tiny: Tiny) -> None:
    frames: list[FrameData] = []

    def note(frame: FrameData) -> list[FrameData]:
        frames.append(frame)
        return [frame]

    made = chain(tiny("llama"), n_stages, chunk=4, meddle=note)
    prompts = {1: PROMPT[:2], 2: PROMPT[:3], 3: PROMPT, 4: PROMPT[::-1]}
    for number in (1, 2):
        made.open(number, prompts[number], 40)
    advance(made, 2, (1, 2))
    for number in (3, 4):
        made.open(number, prompts[number], 5)
    made.run()
    steps = list({frame.step: frame for frame in frames}.values())
    is_chunk = [any(part.position < len(prompts[part.request]) for part in frame.parts) for frame in steps]
    assert sum(is_chunk) == 2 + 2 * len(PROMPT) // 4
    for number in (1, 2):
        own = [
            at
            for at, frame in enumerate(steps)
            if not is_chunk[at] and any(part.request == number for part in frame.parts)
        ]
        assert len(own) == 39
        between = [sum(is_chunk[before:after]) for before, after in pairwise(own)]
        assert max(between) == 1


# -- bytes ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counted:
    """What happened to the keys and values of requests while others came and went."""

    kv_bytes: int
    """All that they have."""
    moved_bytes: int
    """What is in another place than before."""
    allocated_bytes: int
    """The most that there was at once beside what there was before."""


def counted(made: Chain, requests: Sequence[int], happen: Callable[[], None]) -> Counted:
    # Holding on to the arrays, a copy cannot come to lie where the original was.
    before = [(array, _address(array)) for array in _kv(made, requests)]
    mx.reset_peak_memory()
    active_bytes = mx.get_active_memory()
    happen()
    allocated_bytes = mx.get_peak_memory() - active_bytes
    pairs = list(zip(before, _kv(made, requests), strict=True))
    return Counted(
        kv_bytes=sum(array.nbytes for array, _ in before),
        moved_bytes=sum(now.nbytes for (_, was), now in pairs if _address(now) != was),
        allocated_bytes=allocated_bytes,
    )


def _kv(made: Chain, requests: Sequence[int]) -> list[mx.array]:
    held = [core.ledger.entries[number].held for core in made.cores for number in requests]
    caches = [cache for each in held for cache in parts(each.caches.caches)]
    # A recurrent state is no KV: small, of one size, and new with every step.
    kv = [cache for cache in caches if not isinstance(cache, ArraysCache)]
    return [array for cache in kv for array in (cache.keys, cache.values) if array.size]


def _address(array: mx.array) -> int:
    mx.eval(array)
    return int(np.array(array, copy=False).__array_interface__["data"][0])


def advance(made: Chain, tokens: int, requests: Sequence[int]) -> None:
    """Until each of these requests has got so many more tokens."""
    wanted = {number: len(made.driver[number].tokens) + tokens for number in requests}
    while any(len(made.driver[number].tokens) < n for number, n in wanted.items()):
        assert made.tick()


def while_others_come_and_go(made: Chain) -> dict[str, Counted]:
    """Two long requests go on while one joins them and ends, and another one joins and is cancelled."""
    staying = (1, 2)
    for number in staying:
        made.open(number, [number, *LONG], 90)
    advance(made, 3, staying)

    def nothing() -> None:
        advance(made, 3, staying)

    def join() -> None:
        made.open(3, PROMPT[:10], 12)
        advance(made, 3, (3,))

    def end() -> None:
        while made.driver[3].finished is None:
            made.tick()
        advance(made, 3, staying)

    def join_again() -> None:
        made.open(4, PROMPT[:10], 90)
        advance(made, 3, (4,))

    def cancel() -> None:
        made.cancel(4)
        advance(made, 3, staying)

    return {each.__name__: counted(made, staying, each) for each in (nothing, join, end, join_again, cancel)}


@pytest.mark.parametrize("family", KINDS)
def test_who_joins_or_leaves_moves_nobody_elses_kv(family: str, tiny: Tiny) -> None:
    for what, found in while_others_come_and_go(chain(tiny(family), chunk=len(LONG) + 1)).items():
        assert found.kv_bytes > 0
        assert found.moved_bytes == 0, what
        # Nor is there a copy beside it: there was no room for even one of the two.
        assert found.allocated_bytes < found.kv_bytes // 2, what


def test_a_merge_would_be_counted(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """With mlx-lm's own batches, which are made anew when requests join or leave, the counts are others."""
    batches: list[frozenset[int]] = []

    def merging(caches: Sequence[Any]) -> Any:
        batch = frozenset(id(cache) for cache in caches)
        if batches[-1:] != [batch]:
            batches.append(batch)
            merged = BatchKVCache.merge(caches)
            for row, cache in enumerate(caches):
                one = merged.extract(row)
                cache.keys, cache.values = one.keys, one.values
        return together(caches)

    monkeypatch.setattr(computing, "together", merging)
    found = while_others_come_and_go(chain(tiny("llama"), chunk=len(LONG) + 1))
    for what in ("join", "end", "join_again", "cancel"):
        assert found[what].moved_bytes >= found[what].kv_bytes, what
        assert found[what].allocated_bytes > found[what].kv_bytes, what
