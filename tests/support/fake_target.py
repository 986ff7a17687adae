"""A load's target without a machine behind it: tokens follow from the prompt, times from a clock."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field

from exo_cli.bench.target import Arrival, Counted, StageTraces
from exo_cli.errors import ExoError


def right(prompt: Sequence[int], n: int) -> list[int]:
    """What the target says."""
    seed = hashlib.sha256(repr(tuple(prompt)).encode()).digest()
    return [seed[at % 32] for at in range(n)]


@dataclass
class FakeTarget:
    """One token each time the loop comes round; `lie` may change what is said while so many run."""

    lie: Callable[[list[int], int], list[int]] = lambda tokens, running: tokens
    fail: Callable[[int], ExoError | None] = lambda number: None
    """By the request's number from 0: what ends it after half of its tokens."""
    fail_after: float = 0.5
    remembers: bool = False
    vocabulary: int = 500
    name: str = "fake"
    running: int = 0
    most: int = 0
    asked: list[tuple[tuple[int, ...], int, bool]] = field(default_factory=list)
    """Every request: its prompt, how many tokens, whether it may be kept."""

    async def open(
        self, prompt: Sequence[int], max_tokens: int, *, seed: int, greedy: bool, keep: bool = False
    ) -> AsyncGenerator[Arrival | Counted, None]:
        assert greedy
        number = len(self.asked)
        self.asked.append((tuple(prompt), max_tokens, keep))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(0)
            tokens = self.lie(right(prompt, max_tokens), self.running)
            failure = self.fail(number)
            for at, token in enumerate(tokens):
                if failure is not None and at >= self.fail_after * max_tokens:
                    raise failure
                yield Arrival(asyncio.get_running_loop().time(), token)
                await asyncio.sleep(0)
            yield Counted(cached_tokens=0)
        finally:
            self.running -= 1

    def traces(self) -> Sequence[StageTraces] | None:
        return None
