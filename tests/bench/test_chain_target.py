"""The load on a real chain: real flows and stage cores over TLS, with the arithmetic of the hash model."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from exo_cli.bench import gate, metrics, timeline
from exo_cli.bench.chain import ChainTarget
from exo_cli.bench.load import Load, prompt, run
from exo_cli.bench.target import Arrival, Counted
from exo_cli.drive.chain import Chain
from exo_cli.drive.flow import StageAddress
from exo_cli.errors import TryAgain
from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire import exo_pb2 as pb
from tests.support.chain import VOCAB, expected
from tests.support.fake_stage import FakeStage, Habits, fake_node, start_stage


@asynccontextmanager
async def chain_of(n: int, *habits: Habits) -> AsyncIterator[tuple[Chain, list[FakeStage]]]:
    """Stages with the habits that are given, in their order."""
    source = KeyringSource()
    async with AsyncExitStack() as stack:
        found = []
        for index in range(n):
            node = await stack.enter_async_context(fake_node(source, f"n{index}"))
            request = pb.LoadRequest(first_layer=index, last_layer=index + 1, layers_in_model=n)
            stage = await start_stage(
                node.here.me, source, request, habits[index] if index < len(habits) else Habits()
            )
            stack.push_async_callback(stage.stop)
            found.append(stage)
        where = [
            StageAddress(f"n{at}", each.stage_id, f"127.0.0.1:{each.port}", f"127.0.0.1:{each.frame_port}")
            for at, each in enumerate(found)
        ]
        yield await stack.enter_async_context(Chain(where, source)), found


def test_every_token_comes_with_its_time_and_the_answer_is_the_models() -> None:
    async def main() -> None:
        async with chain_of(2) as (chain, _):
            target = ChainTarget(chain, VOCAB)
            before_s = time.perf_counter()
            news = [each async for each in target.open((5, 7, 11), 9, seed=0, greedy=True)]
            after_s = time.perf_counter()
        *arrivals, last = news
        assert last == Counted(cached_tokens=0)
        times = [each.at_s for each in arrivals if isinstance(each, Arrival)]
        assert [each.token for each in arrivals if isinstance(each, Arrival)] == expected(2, (5, 7, 11), 9)
        assert [before_s, *times, after_s] == sorted([before_s, *times, after_s])

    asyncio.run(main())


def test_a_load_on_two_stages_gives_figures_and_passes_the_gate() -> None:
    load = Load(prompt_tokens=20, gen_tokens=8, concurrency=(1, 3), depths=(0, 30), repeat=2)

    async def main() -> None:
        async with chain_of(2) as (chain, _):
            rounds = await run(ChainTarget(chain, VOCAB), load)
        one, three, deep = metrics.levels(rounds)
        assert [(each.completed, each.failed) for each in (one, three, deep)] == [(2, 0), (6, 0), (2, 0)]
        assert one.output_lens == (8, 8)
        assert one.input_lens == (20, 20)
        assert (one.cached_tokens, three.cached_tokens) == (0, 0)
        # What stands before the prompt was computed once, in the warm-up.
        assert deep.cached_tokens == 2 * 30
        for level in (one, three, deep):
            assert level.prefill_tokens_per_s is not None
            assert level.mean_ttft_ms is not None
        assert gate.by_levels(rounds).state == "agree"
        keys = [key for each in rounds for key in each.keys]
        whole = {key: tuple(expected(2, prompt(load, key, VOCAB), 8)) for key in keys}
        check = gate.with_unsplit(rounds, whole)
        assert (check.state, check.compared) == ("agree", len(keys))

    asyncio.run(main())


def test_a_stage_that_computes_something_else_trips_the_gate() -> None:
    load = Load(prompt_tokens=6, gen_tokens=8, concurrency=(1, 2), depths=(0,), repeat=1, warmup=0)

    async def main() -> None:
        async with chain_of(3) as (chain, _):
            rounds = await run(ChainTarget(chain, VOCAB), load)
        keys = [key for each in rounds for key in each.keys]
        # The model of two stages is what the chain of three should have been.
        whole = {key: tuple(expected(2, prompt(load, key, VOCAB), 8)) for key in keys}
        check = gate.with_unsplit(rounds, whole)
        assert check.state == "differ"
        assert not gate.gate(check).valid

    asyncio.run(main())


def test_requests_without_room_are_counted_and_the_levels_that_fit_are_measured() -> None:
    load = Load(prompt_tokens=50, gen_tokens=10, concurrency=(1, 2), depths=(0,), repeat=2)

    async def main() -> None:
        # Room for one request of 60 tokens, 8 bytes each, not for two.
        async with chain_of(1, Habits(budget_bytes=700)) as (chain, _):
            rounds = await run(ChainTarget(chain, VOCAB), load)
        one, two = metrics.levels(rounds)
        assert (one.completed, one.failed) == (2, 0)
        assert two.failed > 0
        assert two.completed + two.failed == two.num_prompts
        assert two.errors

    asyncio.run(main())


def test_where_there_is_room_for_none_that_is_the_error() -> None:
    async def main() -> None:
        async with chain_of(1, Habits(budget_bytes=100)) as (chain, _):
            with pytest.raises(TryAgain, match="KV cache"):
                await run(ChainTarget(chain, VOCAB), Load(prompt_tokens=50, gen_tokens=10))

    asyncio.run(main())


def test_a_stage_that_is_slow_on_purpose_shows_in_the_timeline() -> None:
    load = Load(prompt_tokens=6, gen_tokens=8, concurrency=(1,), depths=(0,), repeat=1, warmup=0)
    layers = [(0, 1), (1, 2), (2, 3)]

    async def main() -> timeline.Round | None:
        async with chain_of(3, Habits(), Habits(step_s=0.03)) as (chain, _):
            target = ChainTarget(chain, VOCAB, traced=layers)
            await run(target, load)
            for _ in range(1000):
                # The last steps are told of after the last token.
                if all(len(stage.steps) >= 8 for stage in target.traces() or ()):
                    break
                await asyncio.sleep(0.01)
            return timeline.take_apart(target.traces() or (), concurrency=1, clocks=["here"] * 3)

    found = asyncio.run(main())
    assert found is not None
    assert found.steps == 8 - 1
    assert (found.slowest, [stage.layers for stage in found.stages]) == (1, layers)
    slow = found.stages[1].compute.p50_ms
    assert slow >= 30
    # It is what most of a token's time goes into; the others' part depends on the machine's mood.
    assert found.token.p50_ms >= slow
    assert len(timeline.links(found)) == 3


def test_nobody_tells_who_was_not_asked() -> None:
    async def main() -> None:
        async with chain_of(2) as (chain, _):
            target = ChainTarget(chain, VOCAB)
            await run(target, Load(prompt_tokens=6, gen_tokens=3, concurrency=(1,), depths=(0,), repeat=1))
            assert target.traces() is None
            assert chain.traces == []

    asyncio.run(main())
