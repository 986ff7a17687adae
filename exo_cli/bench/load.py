"""The load: rounds of so many equal requests at a time, each sent when the round begins. A closed loop:
the next round begins when the last request of this one has ended.

The rounds of all levels of one depth take turns, so that what changes slowly on a machine is noise to
each level instead of a difference between them. Prompts are exact to the token and follow from the seed.
Knows nothing of what it is put on, and nothing of figures.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final

from exo_cli.bench.target import Arrival, Counted, Target
from exo_cli.errors import ExoError

SETTLE_S: Final = 0.05
"""Between rounds: stages put away what the last one left, and keep what is to be kept."""


@dataclass(frozen=True, slots=True)
class Spot:
    """One level: how many requests at a time, and how many tokens stand before each one's prompt."""

    concurrency: int
    depth: int = 0


@dataclass(frozen=True, slots=True)
class Load:
    """What is to be asked of a target."""

    prompt_tokens: int = 256
    gen_tokens: int = 64
    concurrency: tuple[int, ...] = (1, 2, 4, 8)
    depths: tuple[int, ...] = (0, 4096)
    repeat: int = 5
    warmup: int = 1
    seed: int = 0

    def spots(self) -> list[Spot]:
        """Every concurrency at the smallest depth; every further depth at the smallest concurrency."""
        least, *deeper = sorted(set(self.depths))
        many = sorted(set(self.concurrency))
        return [*(Spot(each, least) for each in many), *(Spot(many[0], depth) for depth in deeper)]

    def tokens(self, spot: Spot) -> int:
        """Of one request, all in all."""
        return spot.depth + self.prompt_tokens + self.gen_tokens

    @property
    def context(self) -> int:
        """What the longest request needs."""
        return max(map(self.tokens, self.spots()))

    @property
    def concurrent(self) -> int:
        """How many of the longest request all levels have room in."""
        return max(-(-spot.concurrency * self.tokens(spot) // self.context) for spot in self.spots())

    def warmups(self, spot: Spot) -> int:
        """A depth is filled once before anything is timed, also where no warm-up was asked for."""
        return max(self.warmup, 1) if spot.depth else self.warmup


@dataclass(slots=True)
class Sample:
    """One request, as it went."""

    asked: int
    input_tokens: int
    sent_s: float = 0.0
    arrivals: list[Arrival] = field(default_factory=list)
    cached_tokens: int = 0
    counted_tokens: int | None = None
    """What the target says came."""
    error: ExoError | None = None

    @property
    def output_tokens(self) -> int:
        if self.counted_tokens is not None:
            return self.counted_tokens
        return sum(arrival.count for arrival in self.arrivals)

    @property
    def completed(self) -> bool:
        return self.error is None and bool(self.arrivals)

    @property
    def answer(self) -> tuple[int | str, ...]:
        return tuple(arrival.token for arrival in self.arrivals)


Key = tuple[int, int, int, int]
"""Names a prompt: its salt, the repeat (warm-ups are negative), its number in the round, its depth."""


@dataclass(slots=True)
class Round:
    """Equal requests at the same time."""

    spot: Spot
    warmup: bool
    keys: list[Key]
    samples: list[Sample]
    began_s: float
    ended_s: float
    joules: float | None = None


def prompt(load: Load, key: Key, vocabulary: int) -> tuple[int, ...]:
    """Token ids. What stands before it is the same in all rounds, so that a chain may keep it."""
    salt, repeat, number, depth = key
    before = random.Random(f"exo bench {load.seed} before {number} {depth}")  # noqa: S311 - not a secret
    own = random.Random(f"exo bench {load.seed} {salt} {repeat} {number}")  # noqa: S311
    return (
        *(before.randrange(vocabulary) for _ in range(depth)),
        *(own.randrange(vocabulary) for _ in range(load.prompt_tokens)),
    )


async def run(
    target: Target,
    load: Load,
    *,
    on_round: Callable[[Round, int, int], None] = lambda round_, done, total: None,
    joules: Callable[[], float | None] = lambda: None,
) -> list[Round]:
    """Every round, warm-ups included, in the order in which they ran.

    A level whose requests all failed is not tried again. If that is so in the first round of all, its
    error is raised: there is nothing to measure.
    """
    plan = list(_order(load))
    rounds: list[Round] = []
    given_up: set[Spot] = set()
    for spot, repeat in plan:
        if spot in given_up:
            continue
        before = joules()
        round_ = await _round(target, load, spot, repeat)
        after = joules()
        if before is not None and after is not None:
            round_.joules = after - before
        failures = [sample.error for sample in round_.samples if sample.error is not None]
        if len(failures) == len(round_.samples):
            if not rounds:
                raise failures[0]
            given_up.add(spot)
        rounds.append(round_)
        on_round(round_, len(rounds), sum(spot not in given_up for spot, _ in plan))
        await asyncio.sleep(SETTLE_S)
    return rounds


def _order(load: Load) -> Iterator[tuple[Spot, int]]:
    spots = load.spots()
    for depth in sorted({spot.depth for spot in spots}):
        level = [spot for spot in spots if spot.depth == depth]
        for warmup in range(load.warmups(level[0]), 0, -1):
            yield from ((spot, -warmup) for spot in level)
        for repeat in range(load.repeat):
            yield from ((spot, repeat) for spot in level)


async def _round(target: Target, load: Load, spot: Spot, repeat: int) -> Round:
    # Where earlier answers may be remembered, no level may profit from another; the warm-up is shared.
    salt = spot.concurrency if target.remembers and repeat >= 0 else 0
    keys = [(salt, repeat, number, spot.depth) for number in range(spot.concurrency)]
    prompts = [prompt(load, key, target.vocabulary) for key in keys]
    began_s = time.perf_counter()
    samples = await asyncio.gather(*(_request(target, load, ids, keep=spot.depth > 0) for ids in prompts))
    return Round(spot, repeat < 0, keys, list(samples), began_s, time.perf_counter())


async def _request(target: Target, load: Load, ids: Sequence[int], *, keep: bool) -> Sample:
    sample = Sample(load.gen_tokens, len(ids), sent_s=time.perf_counter())
    try:
        async with aclosing(
            target.open(ids, load.gen_tokens, seed=load.seed, greedy=True, keep=keep)
        ) as come:
            async for news in come:
                if isinstance(news, Arrival):
                    sample.arrivals.append(news)
                else:
                    _count(sample, news)
    except ExoError as error:
        sample.error = error
    return sample


def _count(sample: Sample, news: Counted) -> None:
    sample.cached_tokens = news.cached_tokens
    sample.counted_tokens = news.output_tokens
    if news.input_tokens is not None:
        sample.input_tokens = news.input_tokens
