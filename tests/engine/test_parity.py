"""Split, batched, in chunks, with a reused prefix: mlx-lm's unsplit tokens, token for token.

Every family's stages run in one process, through the real frame codec, scheduler and caches.
"""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from exo_cli.engine import stage as stages
from exo_cli.engine.caches import Prefixes
from exo_cli.engine.compute import MlxCompute
from exo_cli.engine.loading import Skeleton, load_stage, look
from exo_cli.models.directory import ModelDirectory
from tests.support import parity, tiny_models
from tests.support.chain import Chain
from tests.support.tiny_families import TWELVE

FAMILIES = tuple(TWELVE.values())
CHUNK = 4
"""Tokens: of ASKED and of a chat's turns, all but the shortest go in several chunks."""


def chain(skeleton: Skeleton, cuts: tuple[int, ...]) -> Chain:
    bounds = list(pairwise((0, *cuts, skeleton.anatomy.n_layers)))
    skeleton.check_chain(bounds)
    computes: list[MlxCompute] = []
    for first, last in bounds:
        compute, *_ = stages.warm(load_stage(skeleton, first, last))
        compute.set_prefixes(Prefixes(1 << 24))
        computes.append(compute)
    return Chain(computes, chunk=CHUNK, budget=1 << 30)


def every_cut(allowed: tuple[int, ...]) -> list[tuple[int, ...]]:
    """None, each of them alone, and all of them."""
    return [(), *((cut,) for cut in allowed), allowed]


@pytest.mark.process
@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_any_allowed_cut_gives_the_unsplit_tokens(
    family: str, bits: int | None, tiny: Callable[..., Path]
) -> None:
    directory = tiny(family) if bits is None else tiny(family, bits=bits)
    expected = parity.expected(tiny_models.reference(directory))
    skeleton = look(ModelDirectory.open(directory))
    assert len(skeleton.anatomy.allowed) > 1, f"{family} allows hardly a cut"
    for cuts in every_cut(skeleton.anatomy.allowed):
        made = chain(skeleton, cuts)
        for n in (1, 2, 4):
            seen = [made.open(10 * n + at, prompt, parity.NEW) for at, prompt in enumerate(parity.ASKED[:n])]
            made.run()
            assert [each.tokens for each in seen] == expected.asked[:n], cuts
        known = 0
        for number, turn in enumerate(expected.turns):
            one = made.open(100 + number, turn.prompt, parity.NEW, keep_prefix=True)
            made.run()
            assert one.tokens == turn.answer, cuts
            assert one.prefix == known
            known = turn.known
        assert not any(core.ledger.entries for core in made.cores)


def test_enough_families_are_compared() -> None:
    assert len(set(FAMILIES)) >= 12
