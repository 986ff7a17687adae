"""The stages that a plan gives this node: loaded at once, and again when their engine dies.

A neighbour that has the weights may come later than we do, so what may pass is tried again, each time
with the reason; what cannot pass ends the node. A stage that somebody unloads is not loaded again. Knows
nothing of where weights come from and of how an engine is started.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Collection
from functools import partial
from typing import Final, Literal

from exo_cli.errors import BadData, ExoError, NotFound, TryAgain, Unavailable
from exo_cli.schemas.plan import Plan
from exo_cli.shard.engines import Lease, NodeFull
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.loads import check_stages, load_request

FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 30.0
CALM_S: Final = 60.0
"""An engine that lived for so long did not die of being loaded."""

Load = Callable[[pb.LoadRequest], AsyncIterator[pb.LoadEvent]]


def numerics_of(
    plan: Plan, us: Collection[str], offered: Collection[str], asked: Literal["exact", "fast"] | None
) -> Literal["exact", "fast"]:
    """How all stages of the plan are to compute, which each of its nodes must find alike.

    A plan that does not say it leaves no choice where it names others than `us`: what they can do is not
    known while they start.
    """
    if asked is not None or plan.numerics is not None:
        return asked or plan.numerics or "exact"
    alone = all(rank.node in us for each in plan.replicas for stage in each.stages for rank in stage.ranks)
    return "fast" if alone and "fast" in offered else "exact"


def own_stages(plan: Plan, node_id: str, name: str, numerics: str = "exact") -> list[pb.LoadRequest]:
    """What the plan wants of this node, which it calls by id or by name."""
    found: dict[str, pb.LoadRequest] = {}
    for replica in plan.replicas:
        layers = replica.stages[-1].layers[1] if replica.stages else 0
        check_stages(plan, replica.stages, layers)
        for stage in replica.stages:
            if stage.ranks[0].node in (node_id, name):
                request = load_request(plan, stage, layers, numerics=numerics)
                found.setdefault(request.load_id, request)
    if not found:
        ranks = (rank for each in plan.replicas for stage in each.stages for rank in stage.ranks)
        names = ", ".join(dict.fromkeys(rank.node for rank in ranks)) or "no node at all"
        raise BadData(
            f"the plan has no stage for this node, {name}; it names {names}",
            hint="Start it with --name and one of these, or make the plan for the nodes that there are.",
        )
    return list(found.values())


class Standing:
    """Keeps these stages loaded, from `ready` until `stop`."""

    def __init__(
        self,
        requests: list[pb.LoadRequest],
        load: Load,
        find: Callable[[str], Lease | None],
        *,
        let_go: Callable[[str], None],
        warn: Callable[[str], None],
        note: Callable[[str], None],
    ) -> None:
        """`let_go` hears of a stage that is not kept any longer."""
        self._requests = requests
        self._load = load
        self._find = find
        self._let_go = let_go
        self._warn = warn
        self._note = note
        self._news = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def ready(self) -> None:
        """All of them are loaded; raises if one of them cannot be."""
        loop = asyncio.get_running_loop()
        loaded: list[asyncio.Future[None]] = []
        for request in self._requests:
            first: asyncio.Future[None] = loop.create_future()
            loaded.append(first)
            task = asyncio.create_task(self._hold(request, first))
            task.add_done_callback(partial(_pass_on, first))
            self._tasks.append(task)
        await asyncio.gather(*loaded)

    def news(self) -> None:
        """The neighbours are others than before: what was not to be had may be there now."""
        self._news.set()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _hold(self, request: pb.LoadRequest, first: "asyncio.Future[None]") -> None:
        pause_s = FIRST_PAUSE_S
        while (lease := await self._loaded(request, first)) is not None:
            if not first.done():
                first.set_result(None)
            began_s = time.monotonic()
            await lease.engine.ended.wait()
            failure = lease.engine.failure
            if failure is None:
                break
            if time.monotonic() - began_s > CALM_S:
                pause_s = FIRST_PAUSE_S
            self._warn(f"{failure.message}; loading it again in {pause_s:g} s")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            if lease.let_go:
                break
        self._let_go(request.load_id)
        if not first.done():
            first.set_result(None)

    async def _loaded(self, request: pb.LoadRequest, first: "asyncio.Future[None]") -> Lease | None:
        """The lease, after as many attempts as it takes; None if there is none to watch."""
        what = f"layers {request.first_layer} to {request.last_layer - 1} of {request.model.name}"
        self._note(f"loading {what}")
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                async for _ in self._load(request):
                    pass
            except ExoError as error:
                if not first.done() and not _may_pass(error):
                    first.set_exception(error)
                    return None
                self._warn(f"cannot load {what} yet: {error.message}; trying again within {pause_s:g} s")
            else:
                return self._find(request.load_id)
            await self._wait(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _wait(self, at_most_s: float) -> None:
        """Until there is news, but not at once: news come in bursts."""
        self._news.clear()
        await asyncio.sleep(FIRST_PAUSE_S)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), max(0.0, at_most_s - FIRST_PAUSE_S))


def _pass_on(first: "asyncio.Future[None]", task: "asyncio.Task[None]") -> None:
    """What nobody thought of ends the node, too: it must not wait for ever."""
    error = None if task.cancelled() else task.exception()
    if error is not None and not first.done():
        first.set_exception(error)


def _may_pass(error: ExoError) -> bool:
    """Whether it makes sense to ask again later."""
    if isinstance(error, NodeFull):
        # Full of nothing: the machine is too small for its stage.
        return bool(error.holders)
    return isinstance(error, NotFound | Unavailable | TryAgain)
