"""Our side, as a process of its own: `python -m benchmarks.peers.exo_side SPEC`, figures as a JSON line.

Real nodes (`exo serve-shard`), each stage an engine process on its cores, and the driver's own chain over
mTLS on loopback; without a cluster key, so that nothing leaves this machine. Greedy, no stop ids. Knows
nothing of the other sides.
"""

import asyncio
import json
import os
import random
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from benchmarks.peers import places
from benchmarks.peers.cases import Work
from benchmarks.peers.pacing import PROBE, affordable, rate, rate_together
from exo_cli.drive.chain import Chain
from exo_cli.drive.load import LoadedStage, addresses, load
from exo_cli.drive.private import private_node
from exo_cli.drive.requests import Ask
from exo_cli.fetch.share import LocalShare
from exo_cli.models.directory import ModelDirectory
from exo_cli.schemas.plan import ModelRef, Plan
from exo_cli.schemas.topology import Node
from exo_cli.trust.keyring import KeyringSource
from tests.support import cluster

NUMERICS: Final = os.environ.get("EXO_NUMERICS", "fast")


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done, and with how much time."""

    directory: str
    bounds: tuple[int, ...]
    stages: tuple[tuple[int, ...], ...]
    """The cores of each stage."""
    work: Work
    memory_bytes: int
    """Of each node."""
    budget_s: float


@dataclass
class Side:
    """A chain that is ready, and when the time is over."""

    chain: Chain
    stages: tuple[LoadedStage, ...]
    vocabulary: int
    numerics: str
    until: float = 0.0
    least_s: float = 0.0
    """For generating, however long the prompts took."""
    silent: int = 0
    """Answers that have no token yet; nobody stops before all generate."""

    async def answer(self, prompt: int, gen: int, seed: int) -> tuple[float, list[float]]:
        """When it was asked, and when each token came; fewer than `gen` when the time is over."""
        self.silent += 1
        chance = random.Random(seed)
        ids = tuple(chance.randrange(self.vocabulary) for _ in range(prompt))
        times: list[float] = []
        begun = time.perf_counter()
        async with aclosing(self.chain.generate(Ask(ids, gen)).tokens()) as tokens:
            async for _ in tokens:
                times.append(time.perf_counter())
                if len(times) == 1:
                    self.silent -= 1
                    self.until = max(self.until, times[0] + self.least_s)
                if times[-1] > self.until and len(times) > 2 and not self.silent:
                    break
        return begun, times


async def prefill(side: Side, work: Work) -> dict[str, Any]:
    """One prompt to its first token, sampling included."""
    prompt = await _longest(side, work.prompt)
    begun, times = await side.answer(prompt, 1, seed=2)
    return {"prefill_tokens_per_s": prompt / (times[0] - begun), "prompt_tokens": prompt}


async def decode(side: Side, work: Work) -> dict[str, Any]:
    """From the first token on, of one answer or of several at once."""
    depth = max(work.depth, work.prompt, PROBE)
    if work.depth and (likely := await _longest(side, work.depth)) < work.depth:
        return {"skipped": f"only {likely} of {work.depth} tokens of context are affordable"}
    asked = [side.answer(depth, work.gen, seed=10 + number) for number in range(work.requests)]
    answers = [times for _, times in await asyncio.gather(*asked)]
    found = {"gen_tokens": min(map(len, answers)), "depth": work.depth, "requests": work.requests}
    speed = rate_together(answers) if work.requests > 1 else rate(answers[0])
    if speed is None:
        return {**found, "skipped": "the requests did not all generate at the same time"}
    return {**found, "decode_tokens_per_s": speed}


async def _longest(side: Side, asked: int) -> int:
    """Of the prompts up to that one: the longest that there is time for. The first one warms up."""
    await side.answer(min(PROBE, asked), 1, seed=0)
    begun, times = await side.answer(min(PROBE, asked), 1, seed=1)
    return affordable(asked, min(PROBE, asked), times[0] - begun, side.until - time.perf_counter())


@asynccontextmanager
async def ready(spec: Spec) -> AsyncIterator[Side]:
    """The chain over nodes on these cores."""
    source = KeyringSource()
    with ExitStack() as stack:
        running = []
        for number, cores in enumerate(spec.stages):
            words = ("--memory", f"{spec.memory_bytes}B", "--threads", str(len(cores)))
            words = (*words, *(("--cores", ",".join(map(str, cores))) if sys.platform == "linux" else ()))
            at = cluster.shards(places.home(), f"peer{number}", arguments=words)
            running.extend(stack.enter_context(at))
        nodes = [await shard.node(source) for shard in running]
        async with _chain(spec, nodes, source) as side:
            yield side


@asynccontextmanager
async def alone(spec: Spec) -> AsyncIterator[Side]:
    """The chain on a node of the driver's own, as `exo run` starts it when there is no other."""
    source = KeyringSource()
    async with private_node(source) as node, _chain(spec, [node], source) as side:
        yield side


@asynccontextmanager
async def _chain(spec: Spec, nodes: list[Node], source: KeyringSource) -> AsyncIterator[Side]:
    model = ModelDirectory.open(Path(spec.directory))
    plan = _plan(spec, model, nodes)
    async with AsyncExitStack() as stack:
        share = await stack.enter_async_context(LocalShare(source, model))
        stages = await load(
            plan,
            {node.id: node for node in nodes},
            spec.bounds[-1],
            source,
            weights_from=lambda node: f"127.0.0.1:{share.port}",
            numerics=NUMERICS,
        )
        chain = await stack.enter_async_context(Chain(addresses(stages, ()), source))
        yield Side(chain, stages, int(model.config["vocab_size"]), NUMERICS)


def _plan(spec: Spec, model: ModelDirectory, nodes: list[Node]) -> Plan:
    work = spec.work
    reference = ModelRef(name=model.path.name, revision=None, digest=model.digest)
    return cluster.plan(
        reference,
        spec.bounds,
        nodes,
        memory_bytes=spec.memory_bytes,
        context=max(work.prompt, work.depth, PROBE) + work.gen + PROBE,
        concurrency=work.requests,
    )


async def measure(spec: Spec) -> dict[str, Any]:
    begun = time.perf_counter()
    where = alone if spec.work.kind == "start" else ready
    async with where(spec) as side:
        loaded_s = time.perf_counter() - begun
        side.until, side.least_s = time.perf_counter() + spec.budget_s, spec.budget_s / 3
        weights_bytes = sum(stage.weights_bytes for stage in side.stages)
        found = {"load_s": loaded_s, "weights_bytes": weights_bytes, "numerics": side.numerics}
        if spec.work.kind == "start":
            await side.answer(spec.work.prompt, 1, seed=1)
            _say({"type": "first token"})
            return found
        if spec.work.kind == "prefill":
            return {**found, **await prefill(side, spec.work)}
        # A short answer that is not counted: what is compiled or allocated once is then there.
        await side.answer(PROBE, 3, seed=0)
        return {**found, **await decode(side, spec.work)}


def _say(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def main() -> None:
    spec = msgspec.json.decode(sys.argv[1], type=Spec)
    _say({"type": "result", **asyncio.run(measure(spec))})


if __name__ == "__main__":
    main()
