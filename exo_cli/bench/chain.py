"""The load's target that is a chain of ours. Nothing stops a request but its last token.

Knows nothing of how the chain was chosen and loaded, nor of what is done with the times.
"""

import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from exo_cli.bench.target import Arrival, Counted, StageTraces
from exo_cli.drive.chain import Chain
from exo_cli.drive.requests import Ask
from exo_cli.errors import BadData
from exo_cli.models.geometry import text_config
from exo_cli.schemas.sampling import Sampling
from exo_cli.wire import exo_pb2 as pb


class ChainTarget:
    """A chain in working order; closing it stays with whoever made it."""

    name = "chain"
    remembers = False

    def __init__(
        self, chain: Chain, vocabulary: int, *, traced: Sequence[tuple[int, int]] | None = None
    ) -> None:
        """With `traced`, the layers of each stage, the stages tell of every step; it costs them a little."""
        self.vocabulary = vocabulary
        self._chain = chain
        self._traced = traced

    async def open(
        self, prompt: Sequence[int], max_tokens: int, *, seed: int, greedy: bool, keep: bool = False
    ) -> AsyncGenerator[Arrival | Counted, None]:
        """A request without stop ids and without recovery: what breaks is a failure, not a long pause."""
        ask = Ask(
            prompt=tuple(prompt),
            max_tokens=max_tokens,
            sampling=Sampling(temperature=0.0 if greedy else 1.0, seed=seed),
            keep_prefix=keep,
            trace=self._traced is not None,
        )
        generation = self._chain.generate(ask)
        async with aclosing(generation.tokens()) as tokens:
            async for token in tokens:
                yield Arrival(time.perf_counter(), token.id)
        yield Counted(cached_tokens=generation.request.prefix)

    def traces(self) -> Sequence[StageTraces] | None:
        if self._traced is None:
            return None
        told: dict[str, list[pb.Trace]] = defaultdict(list)
        for trace in self._chain.traces:
            told[trace.stage_id].append(trace)
        return [
            StageTraces(stage.node, layers, told[stage.stage_id])
            for stage, layers in zip(self._chain.stages, self._traced, strict=True)
        ]


def vocabulary(config: dict[str, Any]) -> int:
    """How many tokens the model knows."""
    found = text_config(config).get("vocab_size")
    if type(found) is not int or found < 2:
        raise BadData(
            "config.json does not say how many tokens the model knows (vocab_size)",
            hint="exo bench makes its prompts of token ids; take another model, or mend the file.",
        )
    return found
