"""The gate's work: what has to be computed again before answers can be judged.

A split model's answers are computed once more by the whole model, on a node of our own; nobody's model
makes way for it. Where an accelerator's answers part, the chain is asked how likely the two tokens were.
Knows nothing of figures.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Final

from exo_cli.bench import gate
from exo_cli.bench.chain import ChainTarget, vocabulary
from exo_cli.bench.gate import Answer, Difference, Ties
from exo_cli.bench.load import Key, Load, Round, prompt
from exo_cli.bench.target import Arrival
from exo_cli.drive.chain import Chain
from exo_cli.drive.driver import Driver, Settings
from exo_cli.drive.load import LoadedStage
from exo_cli.drive.numerics import MIXED, ran
from exo_cli.drive.requests import Ask
from exo_cli.errors import ExoError
from exo_cli.schemas.bench import Gate, GateCheck
from exo_cli.schemas.sampling import Sampling
from exo_cli.trust.keyring import KeyringSource

Likeliest = Sequence[tuple[int, float]]
"""Tokens and their log-probabilities, the likeliest first."""

UNSPLIT_PROMPTS: Final = 2
"""So many answers are computed again by the whole model; each takes as long as one of the load's."""
TIE: Final = 1e-3
"""Log-probabilities that are nearer to each other: what float32 leaves open after many sums."""
LOOKS: Final = 16
"""More differences than these are not looked at one by one: something is wrong."""


async def verify(
    settings: Settings,
    load: Load,
    source: KeyringSource,
    rounds: Sequence[Round],
    chain: Chain,
    known: int,
    stages: Sequence[LoadedStage],
) -> Gate:
    """Both comparisons; `chain` is the one that gave the answers, `known` how many tokens it knows."""
    whole: dict[Key, Answer] = {}
    skipped: GateCheck | None = None
    if len(stages) == 1:
        skipped = gate.skipped("unsplit", "the model was not split")
    elif ran(stages) == MIXED:
        skipped = gate.skipped("unsplit", "its stages compute in different ways, which no single one does")
    else:
        # As the chain did, whatever this machine's default is.
        settings = replace(settings, numerics="fast" if ran(stages) == "fast" else "exact")
        try:
            whole = await _by_the_whole(settings, load, source, _chosen(rounds))
        except ExoError as error:
            skipped = gate.skipped("unsplit", f"this machine does not run it whole: {error.message}")
    differences = gate.differences(rounds, whole)
    ties: Ties = frozenset()
    if differences and any(stage.node.backend != "cpu" for stage in stages):
        with contextlib.suppress(ExoError):  # a chain that broke since excuses nothing
            ties = await excused(differences, load, known, partial(_likeliest, chain))
    return gate.gate(gate.by_levels(rounds, ties), skipped or gate.with_unsplit(rounds, whole, ties))


def _chosen(rounds: Sequence[Round]) -> list[Key]:
    """Prompts at the smallest depth, of the last rounds: with many requests at a time, if there were many."""
    least = min((each.spot.depth for each in rounds), default=0)
    keys = [
        key
        for each in reversed(rounds)
        if each.spot.depth == least
        for key, sample in zip(each.keys, each.samples, strict=True)
        if sample.completed
    ]
    return list(dict.fromkeys(keys))[:UNSPLIT_PROMPTS]


async def _by_the_whole(
    settings: Settings, load: Load, source: KeyringSource, keys: Sequence[Key]
) -> dict[Key, Answer]:
    alone = replace(settings, plan=None, nodes=None, alone=True)
    found: dict[Key, Answer] = {}
    async with Driver(alone, source) as driver:
        chain = await driver.chain(load.prompt_tokens + load.gen_tokens + min(load.depths))
        target = ChainTarget(chain, vocabulary(driver.directory.config))
        for key in keys:
            ids = await asyncio.to_thread(prompt, load, key, target.vocabulary)
            async with aclosing(target.open(ids, load.gen_tokens, seed=load.seed, greedy=True)) as come:
                found[key] = tuple([news.token async for news in come if isinstance(news, Arrival)])
    return found


async def excused(
    differences: Sequence[Difference],
    load: Load,
    known: int,
    likeliest: Callable[[Sequence[int]], Awaitable[Likeliest]],
) -> Ties:
    """Those that rounding explains: both tokens are the likeliest after what was said until then, and
    equally so."""
    found: set[tuple[Key, int | None]] = set()
    if len(differences) > LOOKS:
        return frozenset()
    for each in differences:
        if each.at is None:
            continue
        said = [token for token in each.expected[: each.at] if isinstance(token, int)]
        first, second = {each.expected[each.at], each.answer[each.at]}
        top = await likeliest((*prompt(load, each.key, known), *said))
        if len(top) > 1 and {top[0][0], top[1][0]} == {first, second} and top[0][1] - top[1][1] <= TIE:
            found.add((each.key, each.at))
    return frozenset(found)


async def _likeliest(chain: Chain, ids: Sequence[int]) -> Likeliest:
    ask = Ask(tuple(ids), 1, Sampling(logprobs=2))
    async with aclosing(chain.generate(ask).tokens()) as tokens:
        async for token in tokens:
            return token.top
    return ()
