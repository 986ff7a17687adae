"""Chains of real serve-shard processes: what they refuse, and what is left when something ends."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio
import mlx.core as mx
import psutil
import pytest

from exo_cli.cluster import processor
from exo_cli.drive.chain import Chain
from exo_cli.drive.requests import Ask, Token
from exo_cli.errors import BadData, ExoError, TryAgain, Unavailable
from exo_cli.fetch.share import LocalShare
from exo_cli.models.directory import ModelDirectory
from exo_cli.schemas.decode import decode_node
from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.hello import hello
from exo_cli.wire.status import error_of
from exo_cli.wire.stubs import control
from tests.support import cluster, parity, tiny_models
from tests.support import nodes as nodes_of_test
from tests.support.cluster import Driven, Shard, loaded, shards

pytestmark = pytest.mark.process

PROMPTS = ([5, 6, 7, 8, 9, 10, 11, 12, 13], [1], [3, 4], [9, 8, 7, 6, 5, 4])
NEW = 7


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


def test_what_a_load_says_holds_for_its_requests(
    three: tuple[Path, list[Shard]], llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, nodes = three
    monkeypatch.setenv("HOME", str(home))
    source = KeyringSource()
    wanted = parity.greedy(tiny_models.reference(llama), PROMPTS[0], NEW)
    size: dict[str, Any] = {"context": 1024, "concurrency": 2}

    async def main() -> None:
        async with loaded(source, llama, (0, 2, 4), nodes[:2], dtype="bfloat16", **size) as driven:
            # Rounded on its way: the first token has nothing close behind it, later ones may.
            assert (await driven.tokens(PROMPTS[0], NEW))[0] == wanted[0]
            with pytest.raises(BadData, match=r"a: the prompt has 9 tokens .* loaded for 1024") as error:
                await driven.tokens(PROMPTS[0], 1016)
            assert error.value.hint is not None
            late = driven.chain.generate(Ask(tuple(PROMPTS[0]), 1015, deadline_s=0.05))
            with pytest.raises(TryAgain):
                async for _ in late.tokens():
                    pass
            await cluster.settled(source, nodes[:2], cluster.is_idle, seconds=10)
        async with loaded(source, llama, (0, 2, 4), nodes[:2], **size) as driven:
            assert await driven.tokens(PROMPTS[0], NEW) == wanted

    asyncio.run(main())


def test_a_stage_is_not_held_twice_for_two_contexts(
    three: tuple[Path, list[Shard]], llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, (node, *_) = three
    monkeypatch.setenv("HOME", str(home))
    source = KeyringSource()

    async def main() -> None:
        async with AsyncExitStack() as loads:

            async def holds(context: int) -> tuple[str, psutil.Process]:
                where = loaded(source, llama, (0, 4), [node], context=context)
                driven = await loads.enter_async_context(where)
                assert len(await driven.tokens(PROMPTS[0], NEW)) == NEW
                await cluster.settled(source, [node], cluster.is_idle, seconds=10)
                (engine,) = node.engines
                return driven.stages[0].stage_id, engine

            middle, first = await holds(1024)
            assert await holds(512) == (middle, first)
            large, second = await holds(4096)
            assert large != middle
            assert second != first
            assert await holds(1024) == (large, second)

    asyncio.run(main())


def test_a_node_says_what_its_engine_runs_and_what_not(
    three: tuple[Path, list[Shard]], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, (node, *_) = three
    monkeypatch.setenv("HOME", str(home))
    source = KeyringSource()

    async def main() -> pb.DescribeReply:
        async with nodes_of_test.channel(source, node.port) as channel, asyncio.timeout(60):
            while True:
                reply = await control(channel).Describe(pb.DescribeRequest(hello=hello()))
                if reply.formats:
                    return cast(pb.DescribeReply, reply)
                await asyncio.sleep(0.1)

    reply = asyncio.run(main())
    assert {"float32", "affine4", "affine4 experts", "mxfp4"} <= set(reply.formats)
    record = decode_node(reply.node, where="it")
    if mx.default_device() == mx.Device(mx.cpu, 0):
        assert any("bfloat16 experts: " in each and "float32" in each for each in reply.refused)
        assert any(each.startswith("bitnet: ") for each in reply.refused)
        assert record.numerics == (("exact",) if processor.kernels_here() is None else ("exact", "fast"))
        assert record.kernels == processor.kernels_here()
    else:
        assert (record.numerics, record.kernels) == (("exact",), None)


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
    wanted = parity.greedy(tiny_models.reference(llama), PROMPTS[0], NEW)

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
    wanted = parity.greedy(tiny_models.reference(llama), PROMPTS[1], n)

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
            long = await refused(context=1 << 21, concurrency=3)
            assert (long.exit, long.bytes_free) == (79, cluster.MEMORY_BYTES)
            assert long.bytes_needed > 3 * (1 << 21) * 4 * 256
            assert f"3 requests of {1 << 21} tokens" in long.message
            assert 0 < huge.bytes_free < 1 << 60
            other = await refused(layers_in_model=9, last_layer=9)
            assert other.exit == 65
            assert "4 layers" in other.message
            unknown = pb.ModelRef(name="nobody's", digest="0" * 64)
            missing = await refused(model=unknown)
            assert missing.exit == 66
            assert "nobody's" in missing.message
            narrow = await refused(kv_bits=8)
            assert narrow.exit == 65
            assert "8-bit caches are not for this model" in narrow.message
            for option in ({"numerics": "roughly"}, {"kv_bits": 4}, {"wire_dtype": 99}):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await refused(**option)
                assert error_of(caught.value, "a").exit == 65
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
