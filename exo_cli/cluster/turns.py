"""Working through pairs of nodes so that no machine works for two pairs at a time.

Knows nothing of what is done with a pair.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from exo_cli.cluster.pairs import Pair, startable

T = TypeVar("T")


async def in_turns(
    pairs: Sequence[Pair], work: Callable[[Pair], Coroutine[Any, Any, T]]
) -> AsyncGenerator[tuple[Pair, T], None]:
    """Each pair with what came of it, as soon as it did; closing it cancels what still runs."""
    waiting = list(pairs)
    running: dict[asyncio.Task[T], Pair] = {}
    try:
        while waiting or running:
            for pair in startable(waiting, running.values()):
                waiting.remove(pair)
                running[asyncio.create_task(work(pair))] = pair
            finished, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in finished:
                yield running.pop(task), task.result()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
