"""Nodes whose stages are real in everything but arithmetic: real control service, real data stream over
mutual TLS on loopback, real stage core; the model is `HashCompute`.

In the test's own process: `async with fake_node(source, "a") as node`. As a process of its own, to be
killed: `python -m tests.support.fake_stage NAME`, which prints its control port, and whose engines end
with SIGUSR1 while the node lives on.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import grpc.aio

from exo_cli.cluster.beacon import Role
from exo_cli.cluster.describe import Self
from exo_cli.cluster.facts import Accelerator
from exo_cli.cluster.measure import Turnstile
from exo_cli.cluster.ports import free_port
from exo_cli.cluster.service import NodeService
from exo_cli.cluster.station import Station, Voice
from exo_cli.engine.core import Effect, StageCore
from exo_cli.engine.scheduler import Scheduler
from exo_cli.errors import DoesNotFit, ExoError
from exo_cli.schemas.topology import LoadedStage, Node
from exo_cli.shard.flows import StageFacts, StageFlows
from exo_cli.shard.links import Door
from exo_cli.shard.neighbours import Neighbours
from exo_cli.shard.ring import Ring
from exo_cli.shard.thread import EngineThread
from exo_cli.trust.authority import issue_leaf
from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.channels import SERVER_OPTIONS, leaf_server_credentials
from exo_cli.wire.exo_pb2_grpc import StageServicer
from exo_cli.wire.hello import hello
from exo_cli.wire.stubs import add_stage
from tests.support import nodes
from tests.support.chain import HashCompute

_numbers = count(1)


@dataclass
class Habits:
    """How a fake node behaves."""

    step_s: float = 0.0
    budget_bytes: int = 1_000_000
    load_s: float = 0.0
    load_fails: ExoError | None = None
    slots: bool = True


class _Paced(HashCompute):
    """A model whose steps take their time."""

    def __init__(self, habits: Habits) -> None:
        super().__init__()
        self._habits = habits

    def run(self, *asked: Any) -> Any:
        time.sleep(self._habits.step_s)
        return super().run(*asked)

    def run_last(self, *asked: Any) -> Any:
        time.sleep(self._habits.step_s)
        return super().run_last(*asked)


class _Servicer(StageServicer):
    def __init__(self, flows: StageFlows) -> None:
        self._flows = flows

    async def Flow(self, messages: Any, context: Any) -> Any:
        async for message in self._flows.flow(messages, context):
            yield message


@dataclass
class FakeStage:
    """One loaded stage."""

    stage_id: str
    request: pb.LoadRequest
    compute: HashCompute
    core: StageCore[Any]
    flows: StageFlows
    server: grpc.aio.Server
    door: Door
    beside: Neighbours
    engine: EngineThread[None]
    port: int
    frame_port: int

    async def stop(self) -> None:
        await self.door.close()
        self.beside.close()
        await self.server.stop(0)
        self.engine.call(_end)
        await asyncio.to_thread(self.engine.thread.join)


class _Over(ExoError):
    """Ends an engine's thread."""


def _end(_: object) -> list[Effect]:
    raise _Over("the stage was stopped")


class _Thread(EngineThread[None]):
    """An engine's thread in a process that lives on after it."""

    def serve(self, core: StageCore[Any]) -> None:
        with suppress(_Over):
            super().serve(core)


async def start_stage(me: Self, source: KeyringSource, request: pb.LoadRequest, habits: Habits) -> FakeStage:
    stage_id = request.load_id or f"{me.identity.name}-{next(_numbers)}"
    first, last = request.first_layer == 0, request.last_layer == request.layers_in_model
    compute = _Paced(habits)
    scheduler = Scheduler(stages=1 if first and last else 2, chunk_tokens=4)
    core: StageCore[Any] = StageCore(
        compute, habits.budget_bytes, first=first, last=last, scheduler=scheduler
    )
    leaf, loop, who = issue_leaf(source.current().primary), asyncio.get_running_loop(), me.identity
    engine = _Thread(lambda: (core, None), loop)
    beside = Neighbours(engine.call, loop, hello(who.node_id, who.boot), [leaf])
    facts = StageFacts(stage_id, who.node_id, who.name, who.boot, first, last)
    flows = StageFlows(facts, beside, engine.call)
    ring = Ring(beside, loop.call_soon_threadsafe, node_name=who.name, stage_id=stage_id, first=first)
    beside.begin(ring, flows)
    door = Door([leaf], who.name, flows.greet, beside.admit)
    frame_port = free_port()
    door.listen(["127.0.0.1"], frame_port)
    server = grpc.aio.server(options=list(SERVER_OPTIONS))
    add_stage(_Servicer(flows), server)
    port = server.add_secure_port("127.0.0.1:0", leaf_server_credentials([leaf]))
    await server.start()
    engine.begin(ring, flows.deliver)
    await engine.ready
    return FakeStage(stage_id, request, compute, core, flows, server, door, beside, engine, port, frame_port)


class FakeService(NodeService):
    """The control service with Load and Unload."""

    def __init__(self, me: Self, source: KeyringSource, turnstile: Turnstile, habits: Habits) -> None:
        super().__init__(me, source, turnstile)
        self.habits = habits
        self.stages: dict[str, FakeStage] = {}
        self.asked: list[pb.LoadRequest] = []
        self.unloaded: list[str] = []
        self._fake = (me, source)
        me.machine = replace(me.machine, accelerator=Accelerator(backend="cpu"))
        me.stages = lambda: tuple(
            LoadedStage(
                model=stage.request.model.digest,
                layers=(stage.request.first_layer, stage.request.last_layer),
                state="ready",
            )
            for stage in self.stages.values()
        )

    async def Load(self, request: pb.LoadRequest, context: Any) -> AsyncIterator[pb.LoadEvent]:
        self.asked.append(request)
        for stage in self.stages.values():
            if stage.request.load_id == request.load_id:
                yield _ready(stage, self.habits)
                return
        for done in (0, 1):
            yield pb.LoadEvent(progress=pb.LoadProgress(doing="read", done=done, total=1))
            await asyncio.sleep(self.habits.load_s / 2)
        error = self.habits.load_fails
        if error is not None:
            failed = pb.LoadFailed(
                code=error.code, message=error.message, hint=error.hint or "", exit=int(error.exit)
            )
            yield pb.LoadEvent(failed=failed)
            return
        stage = await start_stage(*self._fake, request, self.habits)
        self.stages[stage.stage_id] = stage
        yield _ready(stage, self.habits)

    async def Unload(self, request: pb.UnloadRequest, context: Any) -> pb.UnloadReply:
        stage = self.stages.pop(request.stage_id, None)
        if stage is None:
            return pb.UnloadReply()
        await stage.stop()
        self.unloaded.append(request.stage_id)
        return pb.UnloadReply(stage_ids=[request.stage_id])

    async def lose_engines(self) -> None:
        """As if every engine process had ended."""
        while self.stages:
            await self.stages.popitem()[1].stop()

    async def close(self) -> None:
        for stage in self.stages.values():
            await stage.stop()


def _ready(stage: FakeStage, habits: Habits) -> pb.LoadEvent:
    ready = pb.LoadReady(
        stage_id=stage.stage_id,
        data_port=stage.port,
        frame_port=stage.frame_port,
        kv_budget_bytes=habits.budget_bytes,
        slots=habits.slots,
    )
    return pb.LoadEvent(ready=ready)


@dataclass
class FakeNode:
    """A node of the test's own process."""

    here: nodes.Here
    service: FakeService
    habits: Habits = field(default_factory=Habits)

    @property
    def record(self) -> Node:
        return self.here.me.record()

    @property
    def stage(self) -> FakeStage:
        """Its only stage."""
        (stage,) = self.service.stages.values()
        return stage


@asynccontextmanager
async def fake_node(
    source: KeyringSource, name: str, habits: Habits | None = None
) -> AsyncIterator[FakeNode]:
    made: list[FakeService] = []

    def make(me: Self, source: KeyringSource, turnstile: Turnstile) -> FakeService:
        made.append(FakeService(me, source, turnstile, habits or Habits()))
        return made[0]

    async with nodes.serving(source, name, make=make) as here:
        try:
            yield FakeNode(here, made[0], made[0].habits)
        finally:
            await made[0].close()


@dataclass
class NodeProcess:
    """A fake node in a process of its own."""

    child: "subprocess.Popen[str]"
    port: int
    id: str


@contextmanager
def node_process(home: Path, name: str, *options: str) -> Iterator[NodeProcess]:
    """Start one whose key and files are in `home`; it ends with this process."""
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.support.fake_stage", name, *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "HOME": str(home), "GRPC_VERBOSITY": "NONE"},
    )
    assert child.stdout is not None
    try:
        said = json.loads(child.stdout.readline())
        yield NodeProcess(child, said["port"], said["id"])
    finally:
        child.kill()
        child.communicate()


async def _serve(name: str, habits: Habits, voice: bool) -> None:
    """Until standard input ends."""
    source = KeyringSource()
    async with AsyncExitStack() as stack:
        node = await stack.enter_async_context(fake_node(source, name, habits))
        if voice:
            identity = node.here.me.identity
            station = Station(
                Voice(bytes.fromhex(identity.node_id), identity.boot, name, Role.SHARD, node.here.port),
                source,
                nodes_dir=Path.home() / "nodes",
            )
            await station.start()
            identity.publish(port=node.here.port, voice_port=station.radio.own_port)
            stack.push_async_callback(station.stop)
        loop, losing = asyncio.get_running_loop(), set()
        loop.add_signal_handler(
            signal.SIGUSR1, lambda: losing.add(asyncio.ensure_future(node.service.lose_engines()))
        )
        print(json.dumps({"port": node.here.port, "id": node.here.id}), flush=True)
        # Whoever started us holds the other end.
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--step-s", type=float, default=0.0)
    parser.add_argument("--load-fails", action="store_true")
    parser.add_argument("--voice", action="store_true")
    said = parser.parse_args()
    fails = DoesNotFit("there is no room", hint="Ask for less.") if said.load_fails else None
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(said.name, Habits(step_s=said.step_s, load_fails=fails), said.voice))
