"""Two stages' threads and rings in one process, beside each other on real sockets of loopback."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from exo_cli.cluster.ports import free_port
from exo_cli.engine.core import StageCore
from exo_cli.engine.scheduler import Scheduler
from exo_cli.errors import BadData
from exo_cli.shard.links import Door
from exo_cli.shard.neighbours import Neighbours
from exo_cli.shard.ring import Address, Ring
from exo_cli.shard.thread import EngineThread
from exo_cli.trust.authority import Leaf, issue_leaf
from exo_cli.trust.keyring import ClusterKey
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.hello import hello
from exo_cli.wire.pipe import Pipe
from tests.support.chain import HashCompute

LEAF = issue_leaf(ClusterKey(bytes(range(32))))
CANCEL = pb.Down(cancel=pb.Cancel(request=1, epoch=1))
PREVIOUS = pb.FlowStart.PREVIOUS


class Over(Exception):
    """Ends a thread."""


class _Thread(EngineThread[None]):
    def serve(self, core: StageCore[Any]) -> None:
        try:
            super().serve(core)
        except Over:
            return


@dataclass
class Side:
    """One stage: a thread, a ring, and what it hears."""

    beside: Neighbours
    port: int
    core: StageCore[Any]
    lost_: "asyncio.Queue[tuple[Address, str]]" = field(default_factory=asyncio.Queue)
    left_: "asyncio.Queue[Pipe]" = field(default_factory=asyncio.Queue)
    took: "asyncio.Queue[tuple[Pipe, pb.Down]]" = field(default_factory=asyncio.Queue)
    answers: "asyncio.Queue[pb.Up]" = field(default_factory=asyncio.Queue)

    @property
    def address(self) -> Address:
        return f"127.0.0.1:{self.port}", "s"

    def lost(self, stage: Address, reason: str) -> None:
        self.lost_.put_nowait((stage, reason))

    def left(self, pipe: Pipe) -> None:
        self.left_.put_nowait(pipe)

    def take(self, pipe: Pipe, message: pb.Down) -> None:
        self.took.put_nowait((pipe, message))

    def answer(self, message: pb.Up) -> None:
        self.answers.put_nowait(message)

    def traced(self, traces: Any) -> None:
        raise AssertionError("nobody asked for traces")


def greet(start: pb.FlowStart) -> pb.FlowReady:
    if start.stage_id != "s":
        raise BadData(f"stage {start.stage_id} is not loaded here")
    return pb.FlowReady(hello=hello(), stage_id="s")


@asynccontextmanager
async def side(compute: HashCompute | None = None, leaves: Sequence[Leaf] = (LEAF,)) -> AsyncIterator[Side]:
    loop = asyncio.get_running_loop()
    core: StageCore[Any] = StageCore(
        compute or HashCompute(),
        1 << 20,
        first=False,
        last=True,
        scheduler=Scheduler(stages=2, chunk_tokens=8),
    )
    engine = _Thread(lambda: (core, None), loop)
    beside = Neighbours(engine.call, loop, hello(), leaves)
    made = Side(beside, free_port(), core)
    ring = Ring(beside, loop.call_soon_threadsafe, node_name="n", stage_id="s", first=False)
    beside.begin(ring, made)
    door = Door(leaves, "n", greet, beside.admit)
    door.listen(["127.0.0.1"], made.port)
    engine.begin(ring, lambda effects: None)
    await engine.ready
    try:
        yield made
    finally:
        await door.close()
        beside.close()

        def end(_: object) -> Any:
            raise Over

        engine.call(end)
        await asyncio.to_thread(engine.thread.join)


def run(main: Callable[[Side, Side], Any]) -> None:
    async def begin() -> None:
        async with side() as one, side() as other:
            await main(one, other)

    asyncio.run(asyncio.wait_for(begin(), 60))


async def until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110 - it looks at what threads and the kernel do
        await asyncio.sleep(0.001)
