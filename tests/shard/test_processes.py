"""Chains of real serve-shard processes: mlx-lm's tokens, and what is left when something ends."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio
import mlx.core as mx
import psutil
import pytest
from mlx_lm.models.cache import make_prompt_cache

from exo_cli.drive.chain import Chain
from exo_cli.drive.requests import Token
from exo_cli.engine.loading import look
from exo_cli.errors import ExoError, TryAgain, Unavailable
from exo_cli.fetch.share import LocalShare
from exo_cli.models.directory import ModelDirectory
from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.hello import hello
from exo_cli.wire.status import error_of
from exo_cli.wire.stubs import control
from tests.support import cluster, tiny_models
from tests.support import nodes as nodes_of_test
from tests.support.cluster import Driven, Shard, loaded, shards

pytestmark = pytest.mark.process

PROMPTS = ([5, 6, 7, 8, 9, 10, 11, 12, 13], [1], [3, 4], [9, 8, 7, 6, 5, 4])
NEW = 7
LONG = [(7 * i + 3) % 90 + 1 for i in range(2100)]
"""Longer than any chunk."""
LONG_NEW = 3
PAUSE_S = 0.1
"""Between two turns of a chat; nobody types faster."""


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[Shard]]]:
    """Three nodes, and their home."""
    home = tmp_path_factory.mktemp("cluster")
    with shards(home, "a", "b", "c") as running:
        yield home, running


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    mx.disable_compile()
    return tiny_models.build("llama", tmp_path_factory.mktemp("models") / "llama")


def unsplit(model: Any, prompt: Sequence[int], n: int, step: int = 2048) -> list[int]:
    """mlx-lm's own greedy generation: the prompt but its last token in steps, then one after the other."""
    cache = make_prompt_cache(model)
    ids = mx.array([list(prompt)])
    for at in range(0, len(prompt) - 1, step):
        model(ids[:, at : min(at + step, len(prompt) - 1)], cache=cache)
        mx.eval([each.state for each in cache])
    out: list[int] = []
    token = ids[:, -1:]
    for _ in range(n):
        token = mx.argmax(model(token, cache=cache)[:, -1], axis=-1)[:, None]
        out.append(cast(int, token.item()))
    return out


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "qwen3_next", "gemma3_text"])
def test_two_and_three_processes_give_the_unsplit_tokens(
    family: str,
    bits: int | None,
    three: tuple[Path, list[Shard]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home, nodes = three
    monkeypatch.setenv("HOME", str(home))
    mx.disable_compile()
    directory = tiny_models.build(family, tmp_path / "model", bits=bits)
    model = tiny_models.reference(directory)
    anatomy = look(ModelDirectory.open(directory)).anatomy
    first, *_, last = anatomy.allowed
    short = [unsplit(model, prompt, NEW) for prompt in PROMPTS]
    source = KeyringSource()

    async def in_numbers(driven: Driven) -> None:
        for n in (1, 2, 4):
            found = await asyncio.gather(*(driven.tokens(prompt, NEW) for prompt in PROMPTS[:n]))
            assert found == short[:n]

    async def in_chunks(driven: Driven) -> None:
        (before,) = await nodes[0].stages(source)
        assert await driven.tokens(LONG, LONG_NEW) == unsplit(model, LONG, LONG_NEW)
        await cluster.settled(source, nodes, cluster.is_idle, seconds=3)
        (after,) = await nodes[0].stages(source)
        assert after.steps - before.steps > LONG_NEW

    async def in_turns(driven: Driven) -> None:
        turn = list(PROMPTS[0])
        for at in range(3):
            generation = driven.generation(turn, NEW, keep_prefix=True)
            found = [token.id async for token in generation.tokens()]
            assert found == unsplit(model, turn, NEW)
            assert generation.request.prefix == (0 if at == 0 else len(turn) - 3)
            turn += [*found, 2, 3]
            await asyncio.sleep(PAUSE_S)

    async def main() -> None:
        async with loaded(source, directory, (0, first, anatomy.n_layers), nodes[:2]) as driven:
            await in_numbers(driven)
        async with loaded(source, directory, (0, first, last, anatomy.n_layers), nodes) as driven:
            await in_numbers(driven)
            await in_turns(driven)
            if bits is None:
                await in_chunks(driven)
        assert not [engine for node in nodes for engine in node.engines]

    asyncio.run(main())


MANY = 50_000
"""Tokens that nobody waits for the end of."""


@asynccontextmanager
async def streaming(driven: Driven) -> AsyncIterator[AsyncGenerator[Token, None]]:
    """A request in the middle of its answer."""
    async with aclosing(driven.generation(PROMPTS[0], MANY).tokens()) as tokens:
        for _ in range(5):
            await anext(tokens)
        yield tokens


async def the_end_of(tokens: AsyncGenerator[Token, None]) -> ExoError | None:
    """Why there are no more."""
    try:
        async for _ in tokens:
            pass
    except ExoError as error:
        return error
    return None


def test_a_killed_engine_is_told_to_the_driver_and_loaded_again(
    three: tuple[Path, list[Shard]], llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, nodes = three
    monkeypatch.setenv("HOME", str(home))
    source = KeyringSource()
    wanted = unsplit(tiny_models.reference(llama), PROMPTS[0], NEW)

    async def lose_one(driven: Driven, which: int) -> None:
        async with AsyncExitStack() as stack:
            # Enough that every stage has a group of its own.
            answers = [await stack.enter_async_context(streaming(driven)) for _ in range(6)]
            (engine,) = nodes[which].engines
            engine.kill()
            async with asyncio.timeout(3):
                why = await asyncio.gather(*map(the_end_of, answers))
        name = driven.stages[which].node.name
        for error in why:
            assert isinstance(error, Unavailable)
            assert f"{name} was lost" in error.message or f" at {name}:" in error.message
        others = [node for node in nodes if node is not nodes[which]]
        await cluster.settled(source, others, cluster.is_idle, seconds=3)
        (stage,) = await nodes[which].stages(source)
        assert stage.state == "failed"
        assert cluster.is_idle(stage)

    async def main() -> None:
        async with AsyncExitStack() as loads:
            driven = await loads.enter_async_context(loaded(source, llama, (0, 1, 3, 4), nodes))
            for which in range(3):
                await lose_one(driven, which)
                # The others still hold their stages, and go on with them.
                driven = await loads.enter_async_context(loaded(source, llama, (0, 1, 3, 4), nodes))
                assert [stage.fresh for stage in driven.stages] == [at == which for at in range(3)]
                async with asyncio.timeout(5):
                    assert await driven.tokens(PROMPTS[0], NEW) == wanted

    asyncio.run(main())
    assert all(node.process.popen.poll() is None for node in nodes)


def test_no_engine_outlives_a_killed_node(clean_environment: Path, llama: Path) -> None:
    source = KeyringSource()

    async def main(node: Shard) -> None:
        async with loaded(source, llama, (0, 4), [node]) as driven, streaming(driven) as tokens:
            (engine,) = node.engines
            node.process.popen.kill()
            assert await asyncio.to_thread(psutil.wait_procs, [engine], 2) == ([engine], [])
            error = await the_end_of(tokens)
            assert isinstance(error, Unavailable)
            assert "alone" in error.message

    with shards(clean_environment, "alone") as (node,):
        asyncio.run(main(node))


def test_a_driver_that_goes_leaves_nothing_reserved_and_disturbs_nobody(
    three: tuple[Path, list[Shard]], llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, nodes = three
    monkeypatch.setenv("HOME", str(home))
    source = KeyringSource()
    n = 600
    wanted = unsplit(tiny_models.reference(llama), PROMPTS[1], n)

    async def main() -> None:
        async with loaded(source, llama, (0, 1, 3, 4), nodes) as driven:
            staying = asyncio.create_task(driven.tokens(PROMPTS[1], n))
            for at in range(6):
                async with Chain(driven.chain.stages, source) as other, AsyncExitStack() as stack:
                    another = Driven(other, driven.stages)
                    answers = [await stack.enter_async_context(streaming(another)) for _ in range(3)]
                    if at % 2:
                        await asyncio.gather(*(answer.aclose() for answer in answers))
                    else:
                        await other.close()
            assert not staying.done()
            async with asyncio.timeout(30):
                assert await staying == wanted
            # Beats, by which a node knows, come twice a second.
            await cluster.settled(source, nodes, cluster.is_idle, seconds=1)
            assert await driven.tokens(PROMPTS[1], NEW) == wanted[:NEW]

    asyncio.run(main())


def test_cancelled_requests_leave_nothing_behind(
    three: tuple[Path, list[Shard]], llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, nodes = three
    monkeypatch.setenv("HOME", str(home))
    source = KeyringSource()

    def held() -> list[tuple[int, int]]:
        """Threads and sockets of the engines."""
        engines = [engine for node in nodes for engine in node.engines]
        return [(engine.num_threads(), len(engine.net_connections())) for engine in engines]

    async def main() -> None:
        async with loaded(source, llama, (0, 1, 3, 4), nodes) as driven:

            async def begun_and_left(n: int) -> None:
                for at in range(0, n, 10):
                    runs = [streaming(driven) for _ in range(at, min(at + 10, n))]
                    await asyncio.gather(*(run.__aenter__() for run in runs))
                    await asyncio.gather(*(run.__aexit__(None, None, None) for run in runs))
                await cluster.settled(source, nodes, cluster.is_idle, seconds=3)

            await begun_and_left(20)
            before = held()
            assert len(before) == 3
            await begun_and_left(300)
            assert held() == before

    asyncio.run(main())


async def load_failure(source: KeyringSource, shard: Shard, **changes: Any) -> pb.LoadFailed:
    """What a node says to a load that it cannot do."""
    settings: dict[str, Any] = {
        "hello": hello(),
        "load_id": "refused",
        "first_layer": 0,
        "last_layer": 4,
        "layers_in_model": 4,
        "memory_bytes": cluster.MEMORY_BYTES,
    }
    async with nodes_of_test.channel(source, shard.port) as channel:
        async for event in control(channel).Load(pb.LoadRequest(**{**settings, **changes})):
            assert event.WhichOneof("kind") != "ready"
            if event.WhichOneof("kind") == "failed":
                return cast(pb.LoadFailed, event.failed)
    raise AssertionError("the load ended without an answer")


def test_loads_that_cannot_be_are_refused_with_figures(
    three: tuple[Path, list[Shard]], llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, (node, *_) = three
    monkeypatch.setenv("HOME", str(home))
    source = KeyringSource()
    directory = ModelDirectory.open(llama)
    model = pb.ModelRef(name="llama", digest=directory.digest)

    async def main() -> None:
        async with LocalShare(source, directory) as share:
            here = f"127.0.0.1:{share.port}"

            async def refused(**changes: Any) -> pb.LoadFailed:
                return await load_failure(source, node, **{"model": model, "weights_from": here, **changes})

            small = await refused(memory_bytes=1000)
            assert (small.exit, small.bytes_free) == (79, 1000)
            assert small.bytes_needed > 1000
            huge = await refused(memory_bytes=1 << 60)
            assert (huge.exit, huge.bytes_needed) == (75, 1 << 60)
            assert 0 < huge.bytes_free < 1 << 60
            other = await refused(layers_in_model=9, last_layer=9)
            assert other.exit == 65
            assert "4 layers" in other.message
            unknown = pb.ModelRef(name="nobody's", digest="0" * 64)
            missing = await refused(model=unknown)
            assert missing.exit == 66
            assert "nobody's" in missing.message
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await refused(hello=pb.Hello(protocol=99, version="9"))
            assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            error = error_of(caught.value, "a")
            assert error.exit == 76
            assert "99" in error.message
        assert await node.stages(source) == []
        assert node.engines == []

    asyncio.run(main())


def test_a_request_for_which_there_is_no_room_reserves_nothing_anywhere(
    three: tuple[Path, list[Shard]], llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, nodes = three
    monkeypatch.setenv("HOME", str(home))
    source = KeyringSource()

    async def main() -> None:
        # Two layers cost twice what one does: the stage in the middle is the one that says no.
        async with loaded(source, llama, (0, 1, 3, 4), nodes) as driven:
            budget = min(stage.kv_budget_bytes for stage in driven.stages)
            most = max(stage.kv_budget_bytes for stage in driven.stages)
            a_layer = 2 * 2 * 16 * 4
            n = int(budget / a_layer * 0.75)
            assert n * a_layer < budget < most < n * 2 * a_layer
            with pytest.raises(TryAgain, match=r"b: the request needs \d+ bytes .* and \d+ are free"):
                await driven.tokens(PROMPTS[0], n)
            await cluster.settled(source, nodes, cluster.is_idle, seconds=1)
            # The next one finds the room.
            assert len(await driven.tokens(PROMPTS[0], NEW)) == NEW

    asyncio.run(main())
