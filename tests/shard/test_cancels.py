"""Requests that nobody waits for, and processes that die or freeze: what is left behind is nothing."""

import asyncio
import gc
import json
import os
import random
import shutil
import signal
import subprocess
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import mlx.core as mx
import msgspec
import psutil
import pytest

from exo_cli.drive import requests
from exo_cli.drive.chain import Chain
from exo_cli.drive.requests import Token
from exo_cli.errors import Unavailable
from exo_cli.models.directory import ModelDirectory
from exo_cli.schemas.plan import ModelRef
from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.hello import hello
from exo_cli.wire.stubs import control
from tests.support import cluster, tiny_models, toy_model
from tests.support import nodes as nodes_of_test
from tests.support.cli import EXO
from tests.support.cluster import Driven, Shard, loaded, shards
from tests.support.held import Holds, holds
from tests.support.neighbour import stream
from tests.support.processes import is_engine

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc"),
]

SHORT = (5, 6, 7)
LONG = tuple((7 * i + 3) % 90 + 1 for i in range(300))
MANY = 5_000
"""Tokens of which nobody sees the end."""
WARM_UP, CANCELS, AT_ONCE = 200, 1000, 10
BYTES_EACH = 1024
STILL = 20
"""So many looks without a change are rest."""
ROUNDS = 3
"""Of so many cancels: an allocator that rounds up or a pool that takes its last thread does so in one of
them, a leak in each."""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[Shard]]]:
    home = tmp_path_factory.mktemp("cancels")
    with shards(home, "a", "b") as running:
        yield home, running


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    mx.disable_compile()
    return tiny_models.build("llama", tmp_path_factory.mktemp("models") / "llama")


class Leaver:
    """Begins requests and leaves them at some moment."""

    def __init__(self, source: KeyringSource, driven: Driven, seed: int) -> None:
        self._source = source
        self._driven = driven
        self._dice = random.Random(seed)
        self.ways: dict[str, int] = {}

    async def leave(self, n: int) -> None:
        """So many requests, some at a time."""
        ways = (self._at_once, self._in_the_prompt, self._in_the_answer, self._unread)
        for at in range(0, n, AT_ONCE):
            if at % (5 * AT_ONCE) == 0:
                await self._with_its_chain(AT_ONCE // 2)
                await self._with_its_stream(AT_ONCE - AT_ONCE // 2)
            else:
                await asyncio.gather(*(self._dice.choice(ways)() for _ in range(AT_ONCE)))

    def _count(self, way: str, n: int = 1) -> None:
        self.ways[way] = self.ways.get(way, 0) + n

    async def _at_once(self) -> None:
        """Before the chain has said yes."""
        self._count("before it was answered")
        tokens = self._driven.generation(SHORT, MANY).tokens()
        first = asyncio.ensure_future(anext(tokens))
        for _ in range(self._dice.randrange(4)):
            await asyncio.sleep(0)
        first.cancel()
        with suppress(asyncio.CancelledError):
            await first
        await tokens.aclose()

    async def _in_the_prompt(self) -> None:
        self._count("in its prompt")
        tokens = self._driven.generation(LONG, MANY).tokens()
        first = asyncio.ensure_future(anext(tokens))
        await asyncio.wait([first], timeout=self._dice.random() * 0.02)
        first.cancel()
        with suppress(asyncio.CancelledError):
            await first
        await tokens.aclose()

    async def _in_the_answer(self) -> None:
        self._count("in its answer")
        tokens = self._driven.generation(SHORT, MANY).tokens()
        for _ in range(self._dice.randint(1, 6)):
            await anext(tokens)
        await tokens.aclose()

    async def _unread(self) -> None:
        """Answered, and never read."""
        self._count("unread")
        generation = self._driven.generation(SHORT, MANY)
        tokens = generation.tokens()
        await anext(tokens)
        await asyncio.sleep(self._dice.random() * 0.02)
        generation.cancel()
        await tokens.aclose()

    async def _with_its_chain(self, n: int) -> None:
        """A driver that ends, with all that it asked for."""
        self._count("with the driver", n)
        async with Chain(self._driven.chain.stages, self._source) as other:
            answers = [Driven(other, self._driven.stages).generation(SHORT, MANY).tokens() for _ in range(n)]
            await asyncio.gather(*(anext(each) for each in answers))
            await other.close()
            for each in answers:
                await each.aclose()

    async def _with_its_stream(self, n: int) -> None:
        """A driver that says nothing more: its stream breaks."""
        self._count("with the stream", n)
        stages = self._driven.chain.stages
        driver = self._dice.randbytes(16)
        port = int(stages[0].endpoint.rpartition(":")[2])
        async with stream(self._source, port, stages[0].stage_id, driver=driver) as broken:
            for _ in range(n):
                await broken.send(
                    pb.Down(
                        open=pb.Open(
                            request=self._dice.randrange(2**63),
                            epoch=1,
                            prompt=SHORT,
                            max_tokens=MANY,
                            route=[pb.Hop(endpoint=each.reached, stage_id=each.stage_id) for each in stages],
                            driver=driver,
                        )
                    )
                )
            for _ in range(self._dice.randint(0, n)):
                await broken.next("opened")


def processes(nodes: Sequence[Shard]) -> dict[str, int]:
    """Every process that a request goes through."""
    found = {"the driver": os.getpid()}
    for name, node in zip("ab", nodes, strict=True):
        found[f"the node {name}"] = node.pid
        (engine,) = node.engines
        found[f"the engine of {name}"] = engine.pid
    return found


async def quiet(source: KeyringSource, nodes: Sequence[Shard], pids: dict[str, int]) -> dict[str, Holds]:
    """What they hold once nothing runs and nothing more goes: connections take a moment."""
    await cluster.settled(source, nodes, cluster.is_idle, seconds=60)
    gc.collect()
    seen: list[dict[str, tuple[int, int, int]]] = []
    for _ in range(600):
        now = {name: holds(pid) for name, pid in pids.items()}
        seen.append({name: each.countable for name, each in now.items()})
        if len(seen) > STILL and all(each == seen[-1] for each in seen[-STILL:]):
            return now
        await asyncio.sleep(0.05)
    raise AssertionError(f"it does not come to rest: {seen[-1]}")


def growth(before: Holds, after: Holds) -> tuple[int, int, int, float]:
    """Threads, descriptors, sockets; and bytes for each request of a round."""
    threads, descriptors, sockets = (
        now - then for now, then in zip(after.countable, before.countable, strict=True)
    )
    return threads, descriptors, sockets, (after.anonymous_bytes - before.anonymous_bytes) / CANCELS


def test_a_thousand_cancelled_requests_leave_nothing_behind(
    two: tuple[Path, list[Shard]], llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, nodes = two
    monkeypatch.setenv("HOME", str(home))
    source = KeyringSource()

    async def main() -> None:
        async with loaded(source, llama, (0, 2, 4), nodes) as driven:
            wanted = await driven.tokens(SHORT, 8)
            pids = processes(nodes)
            leaver = Leaver(source, driven, 7)
            await leaver.leave(WARM_UP)
            before = await quiet(source, nodes, pids)
            for _ in range(ROUNDS):
                leaver.ways.clear()
                await leaver.leave(CANCELS)
                assert sum(leaver.ways.values()) == CANCELS
                assert len(leaver.ways) == 6, leaver.ways
                after = await quiet(source, nodes, pids)
                grown = {name: growth(before[name], after[name]) for name in pids}
                assert {name: each[1:3] for name, each in grown.items()} == dict.fromkeys(pids, (0, 0))
                if all(threads <= 0 and each <= BYTES_EACH for threads, _, _, each in grown.values()):
                    break
                before = after
            else:
                raise AssertionError(f"threads and bytes a request, round after round: {grown}")
            assert await driven.tokens(SHORT, 8) == wanted

    asyncio.run(main())


# -- processes that end or freeze ---------------------------------------------------------------------


@asynccontextmanager
async def answering(driven: Driven) -> AsyncIterator[AsyncGenerator[Token, None]]:
    """A request in the middle of its answer."""
    async with aclosing(driven.generation(SHORT, 50_000).tokens()) as tokens:
        for _ in range(5):
            await anext(tokens)
        yield tokens


async def end_of(tokens: AsyncGenerator[Token, None]) -> str:
    """Why no more tokens come."""
    with pytest.raises(Unavailable) as caught:
        async for _ in tokens:
            pass
    return caught.value.message


@pytest.mark.parametrize("which", [0, 1])
def test_a_frozen_engine_is_ended_and_told_to_the_driver(
    two: tuple[Path, list[Shard]], llama: Path, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    home, nodes = two
    monkeypatch.setenv("HOME", str(home))
    source = KeyringSource()

    async def main() -> None:
        async with loaded(source, llama, (0, 2, 4), nodes) as driven:
            async with answering(driven) as tokens:
                (engine,) = nodes[which].engines
                engine.suspend()
                # The bound is 5 s without a sign of life.
                async with asyncio.timeout(3 * 5):
                    told = await end_of(tokens)
            assert await asyncio.to_thread(psutil.wait_procs, [engine], 6) == ([engine], [])
            await cluster.settled(source, nodes, cluster.is_idle, seconds=6)
            assert [stage.state for stage in await nodes[which].stages(source)] == ["failed"]
            assert "silent" in told or "lost" in told
        async with loaded(source, llama, (0, 2, 4), nodes) as driven:
            assert len(await driven.tokens(SHORT, 3)) == 3

    asyncio.run(main())


def test_neighbours_of_a_frozen_node_notice_without_its_parent_and_without_a_driver(
    clean_environment: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a long prompt: nobody expects a token soon, and all connections stay open."""
    monkeypatch.setattr(requests, "SILENCE_S", 1000.0)
    source = KeyringSource()

    async def main(nodes: list[Shard]) -> None:
        async with loaded(source, llama, (0, 1, 2, 4), nodes) as driven, answering(driven) as tokens:
            frozen = nodes[1]
            (engine,) = frozen.engines
            frozen.process.popen.send_signal(signal.SIGSTOP)
            engine.suspend()
            # Neighbours promise 12 s.
            async with asyncio.timeout(3 * 12):
                told = await end_of(tokens)
            assert "lost the stage" in told
            assert "silent" in told
            await cluster.settled(source, [nodes[0], nodes[2]], cluster.is_idle, seconds=3 * 12)

    with shards(clean_environment, "a", "b", "c") as nodes:
        asyncio.run(main(nodes))


@pytest.mark.parametrize("which", [0, 1])
def test_a_killed_node_takes_its_engine_along_and_the_other_lets_go(
    clean_environment: Path, llama: Path, which: int
) -> None:
    source = KeyringSource()

    async def main(nodes: list[Shard]) -> None:
        async with loaded(source, llama, (0, 2, 4), nodes) as driven, answering(driven) as tokens:
            (engine,) = nodes[which].engines
            nodes[which].process.popen.kill()
            async with asyncio.timeout(3):
                told = await end_of(tokens)
            assert "lost" in told
            assert await asyncio.to_thread(psutil.wait_procs, [engine], 6) == ([engine], [])
            await cluster.settled(source, [nodes[1 - which]], cluster.is_idle, seconds=3)

    with shards(clean_environment, "a", "b") as nodes:
        asyncio.run(main(nodes))


@contextmanager
def run(home: Path, model: Path, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    """`exo run` in the middle of a long answer."""
    words = [*EXO, "run", str(model), "t5 t6 t7", "--max-tokens", "3000", "--json", *arguments]
    environment = {**os.environ, "HOME": str(home)}
    with subprocess.Popen(
        words, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stderr is not None
            line = child.stdout.readline()
            assert b'"type":"token"' in line, child.stderr.read()
            yield child
        finally:
            child.kill()


def with_words(model: Path, home: Path) -> Path:
    """The model with a tokenizer beside it, and more context."""
    made = home / "with-words"
    shutil.copytree(model, made)
    config = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 16384}))
    toy = toy_model.write(home / "toy")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(toy / name, made / name)
    return made


def test_a_killed_driver_leaves_nothing_reserved(
    two: tuple[Path, list[Shard]], llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, nodes = two
    monkeypatch.setenv("HOME", str(home))
    source = KeyringSource()
    model = with_words(llama, tmp_path)

    async def stages() -> list[pb.StageStats]:
        return [stage for node in nodes for stage in await node.stages(source)]

    async def main() -> None:
        placed = [await node.node(source) for node in nodes]
        named = ModelRef(name="llama", revision=None, digest=ModelDirectory.open(model).digest)
        plan = tmp_path / "plan.json"
        plan.write_bytes(msgspec.json.encode(cluster.plan(named, (0, 2, 4), placed)))
        with run(home, model, "--plan", str(plan)) as child:
            assert len(await stages()) == 2
            child.kill()
            await asyncio.to_thread(child.wait)
            await cluster.settled(source, nodes, cluster.is_idle, seconds=3)
        for node in nodes:
            async with nodes_of_test.channel(source, node.port) as channel:
                await control(channel).Unload(pb.UnloadRequest(hello=hello()))

    asyncio.run(main())


def test_no_process_outlives_a_killed_driver_that_had_a_node_of_its_own(
    clean_environment: Path, llama: Path, tmp_path: Path
) -> None:
    with run(clean_environment, with_words(llama, tmp_path)) as child:
        family = psutil.Process(child.pid).children(recursive=True)
        assert any(map(is_engine, family))
        child.kill()
        # No orphan after 2 s.
        assert psutil.wait_procs(family, 6)[1] == []
