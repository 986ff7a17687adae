"""The engine's thread, with arithmetic that is none; whole engine processes are in test_engine."""

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, cast

from exo_cli.engine.core import Effect, Open, RefusedUp, StageCore, TokensOut
from exo_cli.engine.scheduler import Scheduler
from exo_cli.errors import BadData
from exo_cli.schemas.sampling import Sampling
from exo_cli.shard.ring import Ring
from exo_cli.shard.thread import EngineThread
from tests.support.chain import HashCompute, expected


class Over(Exception):
    """Ends the loop."""


class Strict(HashCompute):
    def run_last(self, rows: Any, tokens: Any, tensor: Any, wanted: Any) -> Any:
        if 99 in tokens:
            raise BadData("no such token")
        return super().run_last(rows, tokens, tensor, wanted)


def test_a_step_that_fails_does_not_leave_the_other_requests_waiting_for_news() -> None:
    told: queue.Queue[Effect] = queue.Queue()

    class Loop:
        def call_soon_threadsafe(
            self, deliver: Callable[[list[Effect]], None], effects: list[Effect]
        ) -> None:
            deliver(effects)

        def create_future(self) -> None:
            return None

    def deliver(effects: list[Effect]) -> None:
        for effect in effects:
            told.put(effect)

    core: StageCore[Any] = StageCore(
        Strict(), 1 << 20, first=True, last=True, scheduler=Scheduler(stages=1, chunk_tokens=64)
    )
    loop = Loop()
    engine = EngineThread[None](lambda: (core, None), cast(asyncio.AbstractEventLoop, loop))
    engine._deliver = deliver
    engine._ring = Ring(cast(Any, None), loop.call_soon_threadsafe, node_name="n", stage_id="s", first=True)
    for request, prompt in ((1, (99,)), (2, (1, 2, 3))):
        message = Open(request, 1, prompt, Sampling(), max_tokens=2)
        engine.call(lambda core, message=message: core.open(message))  # type: ignore[misc]

    def serve() -> None:
        try:
            engine.serve(core)
        except Over:
            return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    refused, tokens = None, list[int]()
    while len(tokens) < 2:
        match told.get(timeout=30):
            case RefusedUp(request):
                refused = request
            case TokensOut(some):
                tokens += [token.id for token in some]
    assert refused == 1
    assert tokens == expected(1, [1, 2, 3], 2)

    def end(_: object) -> list[Effect]:
        raise Over

    engine.call(end)
    thread.join(30)
    assert not thread.is_alive()
