"""serve-shard processes on loopback with a home of their own, and chains over them; no cluster key.

The test's process is the driver and shares its own model directory, so a node gets its weights the way
it gets them from a real driver. Knows nothing of what a model computes.
"""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import msgspec
import psutil

from exo_cli.drive.chain import Chain, Generation
from exo_cli.drive.load import LoadedStage, addresses, load, unload
from exo_cli.drive.requests import Ask
from exo_cli.fetch.share import LocalShare
from exo_cli.models.directory import ModelDirectory
from exo_cli.schemas.plan import ModelRef, Plan, PlannedStage, Rank, RankMemory, Replica
from exo_cli.schemas.topology import Node
from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.hello import hello
from exo_cli.wire.stubs import control
from tests.support import nodes
from tests.support.cli import EXO
from tests.support.processes import Running, is_engine

MEMORY_BYTES = 512 << 20
_KEPT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "USER", "LOGNAME", "VIRTUAL_ENV")


@dataclass(frozen=True)
class Shard:
    """One such process."""

    process: Running
    port: int

    @property
    def pid(self) -> int:
        return self.process.popen.pid

    @property
    def engines(self) -> list[psutil.Process]:
        """The engine processes it has now."""
        return [each for each in psutil.Process(self.pid).children() if is_engine(each)]

    async def node(self, source: KeyringSource) -> Node:
        """What it says of itself."""
        async with nodes.channel(source, self.port) as channel:
            reply = await control(channel).Describe(pb.DescribeRequest(hello=hello()))
        return msgspec.json.decode(reply.node, type=Node)

    async def stages(self, source: KeyringSource) -> list[pb.StageStats]:
        """What it says of its stages."""
        async with nodes.channel(source, self.port) as channel:
            async for reply in control(channel).Stats(pb.StatsRequest(hello=hello())):
                return list(reply.stages)
        raise AssertionError("Stats ended without an answer")


@contextmanager
def shards(home: Path, *names: str, arguments: Sequence[str] = ()) -> Iterator[list[Shard]]:
    """Processes of these names, ready; they are ended with the block, their engines with them."""
    home.mkdir(parents=True, exist_ok=True)
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
    # No node of a test asks a hub that no test named.
    environment |= {"HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"}
    environment["EXO_NO_MEASURE"] = "1"
    running: list[Running] = []
    try:
        for name in names:
            out, err = home / f"{name}.out", home / f"{name}.err"
            with out.open("wb") as stdout, err.open("wb") as stderr:
                command = [*EXO, "serve-shard", "--json", "--name", name, *arguments]
                popen = subprocess.Popen(
                    command, env=environment, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
                )
            running.append(Running(popen, out, err))
        yield [Shard(process, _port(process)) for process in running]
    finally:
        for process in running:
            if process.popen.poll() is None:
                process.popen.kill()
            process.popen.wait(10)


def _port(process: Running) -> int:
    """Where it listens, once it has said so: its ready file comes a moment earlier."""
    process.until(lambda: '"type":"ready"' in process.out())
    ready = next(each for each in process.lines() if each["type"] == "ready")
    return int(ready["endpoint"].rpartition(":")[2])


def plan(
    model: ModelRef,
    bounds: Sequence[int],
    placed: Sequence[Node],
    *,
    memory_bytes: int = MEMORY_BYTES,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    context: int = 0,
    concurrency: int = 0,
    kv_bits: Literal[8] | None = None,
) -> Plan:
    """The layers between two bounds on each node, in order; a context of 0 promises nothing."""
    memory = RankMemory(
        weights_bytes=memory_bytes, kv_bytes=0, buffers_bytes=0, base_bytes=0, limit_bytes=memory_bytes
    )
    stages = tuple(
        PlannedStage(layers=layers, ranks=(Rank(node=node.id, share=1.0, memory=memory),))
        for layers, node in zip(pairwise(bounds), placed, strict=True)
    )
    return Plan(
        model=model,
        dtype=dtype,
        context=context,
        concurrency=concurrency,
        replicas=(Replica(stages=stages),),
        forecast=None,
        binding=None,
        reason="a test",
        kv_bits=kv_bits,
    )


@dataclass(frozen=True)
class Driven:
    """A loaded chain and its driver."""

    chain: Chain
    stages: Sequence[LoadedStage]

    def generation(self, prompt: Sequence[int], n: int, *, keep_prefix: bool = False) -> Generation:
        return self.chain.generate(Ask(tuple(prompt), n, keep_prefix=keep_prefix))

    async def tokens(self, prompt: Sequence[int], n: int) -> list[int]:
        return [token.id async for token in self.generation(prompt, n).tokens()]


@asynccontextmanager
async def loaded(
    source: KeyringSource,
    directory: Path,
    bounds: Sequence[int],
    over: Sequence[Shard],
    *,
    numerics: str = "exact",
    **settings: Any,
) -> AsyncIterator[Driven]:
    """The model's layers over these nodes, with a driver; its stages go with the block.

    `settings` are those of `plan`.
    """
    model = ModelDirectory.open(directory)
    placed = await asyncio.gather(*(shard.node(source) for shard in over))
    reference = ModelRef(name=directory.name, revision=None, digest=model.digest)
    async with LocalShare(source, model) as share:
        stages = await load(
            plan(reference, bounds, placed, **settings),
            {node.id: node for node in placed},
            bounds[-1],
            source,
            weights_from=lambda node: f"127.0.0.1:{share.port}",
            numerics=numerics,
        )
        try:
            async with Chain(addresses(stages, ()), source) as chain:
                yield Driven(chain, stages)
        finally:
            await unload(stages, source)


async def settled(
    source: KeyringSource,
    over: Sequence[Shard],
    true: Callable[[pb.StageStats], bool],
    *,
    seconds: float,
) -> None:
    """Until every stage of every node says so."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + seconds
    while True:
        found = [stage for shard in over for stage in await shard.stages(source)]
        if found and all(map(true, found)):
            return
        assert loop.time() < until_s, f"after {seconds:g} s: {found}"
        # Every look is a handshake, on cores that the engines need.
        await asyncio.sleep(0.05)


def is_idle(stage: pb.StageStats) -> bool:
    """Nothing runs on it and nothing is promised to anybody."""
    return stage.requests == 0 and stage.kv_used_bytes == 0
