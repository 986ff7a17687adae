import asyncio
import gc
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from exo_cli.drive import flow as flow_module
from exo_cli.drive.chain import Chain, Generation
from exo_cli.drive.flow import StageAddress
from exo_cli.drive.requests import Ask
from exo_cli.errors import ExoError, NotFound, TryAgain, Unavailable, VersionMismatch
from exo_cli.shard import flows as flows_module
from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.channels import dial
from exo_cli.wire.hello import hello
from exo_cli.wire.stubs import control
from tests.support.chain import expected
from tests.support.fake_stage import (
    FakeNode,
    FakeStage,
    Habits,
    NodeProcess,
    fake_node,
    node_process,
    start_stage,
)

BOUND_S = 15.0
PROMPT = (5, 7, 11, 13, 17, 19)


@asynccontextmanager
async def stages(
    n: int, habits: Habits | None = None
) -> AsyncIterator[tuple[list[FakeStage], KeyringSource]]:
    """`n` stages on as many nodes, loaded without the control service."""
    source = KeyringSource()
    async with AsyncExitStack() as stack:
        found = []
        for index in range(n):
            node: FakeNode = await stack.enter_async_context(fake_node(source, f"n{index}"))
            request = pb.LoadRequest(first_layer=index, last_layer=index + 1, layers_in_model=n)
            stage = await start_stage(node.here.me, source, request, habits or Habits())
            stack.push_async_callback(stage.stop)
            found.append(stage)
        yield found, source


def addresses(found: Sequence[FakeStage]) -> list[StageAddress]:
    return [
        StageAddress(f"n{index}", stage.stage_id, f"127.0.0.1:{stage.port}", f"127.0.0.1:{stage.frame_port}")
        for index, stage in enumerate(found)
    ]


async def answer(chain: Chain, ask: Ask, **options: Any) -> list[int]:
    return [token.id async for token in chain.generate(ask, **options).tokens()]


async def interrupted(chain: Chain, after: int, act: Callable[[], Any]) -> tuple[list[int], ExoError | None]:
    """A long request; `act` is called when so many tokens have come. What came, and how it ended."""
    seen: list[int] = []
    try:
        async for token in chain.generate(Ask(PROMPT, 100_000)).tokens():
            seen.append(token.id)
            if len(seen) == after and (waiting := act()) is not None:
                await waiting
    except ExoError as error:
        return seen, error
    return seen, None


async def until(condition: Any) -> None:
    async with asyncio.timeout(BOUND_S):
        while not condition():  # noqa: ASYNC110 - the stage does not know that it is watched
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_one_request_through_a_chain(n: int) -> None:
    async def main() -> None:
        async with stages(n) as (found, source), Chain(addresses(found), source) as chain:
            generation = chain.generate(Ask(PROMPT, 12))
            seen = [token async for token in generation.tokens()]
            assert [token.id for token in seen] == expected(n, PROMPT, 12)
            assert [token.position for token in seen] == list(range(6, 18))
            assert generation.reason == "length"
            await until(lambda: not any(stage.core.ledger.entries for stage in found))

    asyncio.run(main())


def test_several_requests_at_once_over_the_same_flows() -> None:
    async def main() -> None:
        async with stages(2) as (found, source), Chain(addresses(found), source) as chain:
            prompts = [(n, *PROMPT) for n in range(6)]
            answers = await asyncio.gather(*(answer(chain, Ask(prompt, 20)) for prompt in prompts))
            assert answers == [expected(2, prompt, 20) for prompt in prompts]
            # Batches were formed: fewer steps than six requests one after the other would take.
            assert found[0].core.steps < 6 * 20

    asyncio.run(main())


def test_two_drivers_share_a_chain() -> None:
    async def main() -> None:
        async with stages(2) as (found, source):
            where = addresses(found)
            async with Chain(where, source) as one, Chain(where, source) as other:
                got = list(await asyncio.gather(answer(one, Ask(PROMPT, 9)), answer(other, Ask((1, 2), 9))))
                assert got == [expected(2, PROMPT, 9), expected(2, (1, 2), 9)]

    asyncio.run(main())


def test_a_stop_id_ends_it() -> None:
    async def main() -> None:
        async with stages(2) as (found, source), Chain(addresses(found), source) as chain:
            wanted = expected(2, PROMPT, 8)
            generation = chain.generate(Ask(PROMPT, 8, stop_ids=frozenset(wanted[4:5])))
            assert [token.id async for token in generation.tokens()] == wanted[:5]
            assert generation.reason == "stop"

    asyncio.run(main())


def test_a_request_without_room_is_refused_with_the_figures_and_the_next_one_runs() -> None:
    async def main() -> None:
        async with (
            stages(2, Habits(budget_bytes=200)) as (found, source),
            Chain(addresses(found), source) as chain,
        ):
            with pytest.raises(TryAgain, match=r"n0: .* 848 bytes .* 200 are free") as caught:
                await answer(chain, Ask(PROMPT, 100))
            assert "fewer tokens" in (caught.value.hint or "")
            assert await answer(chain, Ask(PROMPT, 4)) == expected(2, PROMPT, 4)

    asyncio.run(main())


def test_leaving_early_frees_the_chain() -> None:
    async def main() -> None:
        async with (
            stages(2, Habits(step_s=0.005)) as (found, source),
            Chain(addresses(found), source) as chain,
        ):
            generation = chain.generate(Ask(PROMPT, 10_000))
            seen = []
            tokens = generation.tokens()
            async for token in tokens:
                seen.append(token.id)
                if len(seen) == 3:
                    break
            await tokens.aclose()
            assert seen == expected(2, PROMPT, 3)
            await until(lambda: not any(stage.core.ledger.entries for stage in found))
            assert chain.broken is None

    asyncio.run(main())


def test_cancelling_from_outside_ends_the_iteration() -> None:
    async def main() -> None:
        async with (
            stages(1, Habits(step_s=0.005)) as (found, source),
            Chain(addresses(found), source) as chain,
        ):
            generation = chain.generate(Ask(PROMPT, 10_000))
            async for _ in generation.tokens():
                generation.cancel()
            assert generation.reason == "cancelled"
            await until(lambda: not found[0].core.ledger.entries)

    asyncio.run(main())


def test_a_deadline_ends_a_slow_request() -> None:
    async def main() -> None:
        async with (
            stages(1, Habits(step_s=0.05)) as (found, source),
            Chain(addresses(found), source) as chain,
        ):
            with pytest.raises(TryAgain, match="time for the request was over"):
                await answer(chain, Ask(PROMPT, 10_000, deadline_s=0.4))
            await until(lambda: not found[0].core.ledger.entries)

    asyncio.run(main())


def test_closing_the_chain_ends_what_runs_and_leaves_nothing_open() -> None:
    async def main() -> None:
        async with stages(2, Habits(step_s=0.005)) as (found, source):

            async def leave_in_the_middle() -> None:
                async with Chain(addresses(found), source) as chain:
                    slow = asyncio.create_task(answer(chain, Ask(PROMPT, 10_000)))
                    await until(lambda: found[1].core.ledger.entries)
                assert len(await slow) < 10_000
                await until(lambda: not any(stage.core.ledger.entries for stage in found))

            # The stages' own links stay; what a driver opens does not.
            await leave_in_the_middle()
            await asyncio.sleep(0.1)
            gc.collect()
            tasks, descriptors = len(asyncio.all_tasks()), psutil.Process().num_fds()
            for _ in range(5):
                await leave_in_the_middle()
            await until(lambda: len(asyncio.all_tasks()) <= tasks)
            gc.collect()
            await until(lambda: psutil.Process().num_fds() <= descriptors + 2)

    asyncio.run(main())


def test_a_stage_of_another_protocol_is_76_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(*_: Any) -> pb.Hello:
        return pb.Hello(protocol=99, version="9.9")

    async def main() -> None:
        async with stages(2) as (found, source):
            monkeypatch.setattr(flows_module, "hello", other)
            with pytest.raises(VersionMismatch, match="n0 speaks exo protocol 99"):
                await Chain(addresses(found), source).__aenter__()
            monkeypatch.setattr(flows_module, "hello", hello)
            monkeypatch.setattr(flow_module, "hello", other)
            with pytest.raises(VersionMismatch, match=r"n\d: the caller speaks exo protocol 99"):
                await Chain(addresses(found), source).__aenter__()

    asyncio.run(main())


def test_a_stage_that_is_not_there() -> None:
    async def main() -> None:
        async with stages(2) as (found, source):
            first, last = addresses(found)
            wrong = StageAddress("n1", "gone", last.endpoint, last.reached)
            with pytest.raises(NotFound, match="n1: stage gone is not loaded"):
                await Chain([first, wrong], source).__aenter__()
            await found[1].stop()
            with pytest.raises(Unavailable, match="n1: nothing listens on"):
                await Chain([first, last], source).__aenter__()

    asyncio.run(main())


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_stage_that_ends_in_the_middle(which: int) -> None:
    async def main() -> None:
        async with (
            stages(3, Habits(step_s=0.005)) as (found, source),
            Chain(addresses(found), source) as chain,
        ):
            seen, error = await interrupted(chain, 5, found[which].stop)
            assert isinstance(error, Unavailable)
            assert seen == expected(3, PROMPT, len(seen))

    asyncio.run(main())


def test_a_request_goes_on_over_another_chain() -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            habits = Habits(step_s=0.005)
            found, source = await stack.enter_async_context(stages(2, habits))
            spares = [
                await start_stage(
                    node.here.me,
                    source,
                    pb.LoadRequest(first_layer=index, last_layer=index + 1, layers_in_model=2),
                    habits,
                )
                for index, node in enumerate(
                    [await stack.enter_async_context(fake_node(source, f"spare{n}")) for n in range(2)]
                )
            ]
            for spare in spares:
                stack.push_async_callback(spare.stop)
            chain = await stack.enter_async_context(Chain(addresses(found), source))
            failures: list[ExoError] = []

            async def recover(error: ExoError) -> Chain:
                failures.append(error)
                return await stack.enter_async_context(Chain(addresses(spares), source))

            seen: list[int] = []
            generation = chain.generate(Ask(PROMPT, 30), recover=recover)
            async for token in generation.tokens():
                seen.append(token.id)
                if len(seen) == 7:
                    await found[1].stop()
            assert seen == expected(2, PROMPT, 30)
            assert len(failures) == 1
            assert generation.request.epoch == 2

    asyncio.run(main())


async def no_other_chain(error: ExoError) -> Chain:
    """Looks for ever."""
    await asyncio.Event().wait()
    raise AssertionError


async def broken_off(generation: Generation, act: Callable[[], Awaitable[None]]) -> int:
    """Read to the end; `act` after five tokens. How many there were."""
    n = 0
    async for _ in generation.tokens():
        n += 1
        if n == 5:
            await act()
    return n


def test_whoever_does_not_want_the_rest_waits_for_no_other_chain() -> None:
    async def main() -> None:
        async with (
            stages(2, Habits(step_s=0.005)) as (found, source),
            Chain(addresses(found), source) as chain,
        ):
            looking = asyncio.Event()
            given_up: list[bool] = []

            async def recover(error: ExoError) -> Chain:
                looking.set()
                try:
                    return await no_other_chain(error)
                finally:
                    given_up.append(True)

            generation = chain.generate(Ask(PROMPT, 100_000), recover=recover)
            reading = asyncio.create_task(broken_off(generation, found[1].stop))
            async with asyncio.timeout(BOUND_S):
                await looking.wait()
                generation.cancel()
                assert await reading >= 5
            assert generation.reason == "cancelled"
            assert given_up == [True]
            assert chain.failed

    asyncio.run(main())


def test_the_deadline_counts_while_another_chain_is_looked_for() -> None:
    async def main() -> None:
        async with (
            stages(1, Habits(step_s=0.005)) as (found, source),
            Chain(addresses(found), source) as chain,
        ):
            ask = Ask(PROMPT, 100_000, deadline_s=1.0)
            with pytest.raises(TryAgain, match="the time for the request was over"):
                async with asyncio.timeout(BOUND_S):
                    await broken_off(chain.generate(ask, recover=no_other_chain), found[0].stop)
            assert chain.failed

    asyncio.run(main())


def test_a_fault_of_ours_while_looking_for_another_chain_is_not_swallowed() -> None:
    async def main() -> None:
        async with (
            stages(1, Habits(step_s=0.005)) as (found, source),
            Chain(addresses(found), source) as chain,
        ):

            async def recover(error: ExoError) -> Chain:
                raise ZeroDivisionError

            with pytest.raises(ZeroDivisionError):
                await broken_off(chain.generate(Ask(PROMPT, 100_000), recover=recover), found[0].stop)

    asyncio.run(main())


def test_all_requests_of_a_chain_that_is_given_up_go_on() -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            habits = Habits(step_s=0.005)
            found, source = await stack.enter_async_context(stages(1, habits))
            node = await stack.enter_async_context(fake_node(source, "spare"))
            request = pb.LoadRequest(first_layer=0, last_layer=1, layers_in_model=1)
            spare = await start_stage(node.here.me, source, request, habits)
            stack.push_async_callback(spare.stop)
            chain = await stack.enter_async_context(Chain(addresses(found), source))
            another = await stack.enter_async_context(Chain(addresses([spare]), source))

            async def recover(error: ExoError) -> Chain:
                return another

            prompts = [(n, *PROMPT) for n in range(3)]
            answers = [
                asyncio.create_task(answer(chain, Ask(prompt, 200), recover=recover)) for prompt in prompts
            ]
            await until(lambda: found[0].core.steps > 8)
            chain.abandon(Unavailable("one of them found it silent"))
            async with asyncio.timeout(BOUND_S):
                assert list(await asyncio.gather(*answers)) == [expected(1, each, 200) for each in prompts]
            assert spare.core.steps > 0

    asyncio.run(main())


# -- processes --------------------------------------------------------------------------------------


async def load(source: KeyringSource, port: int, first: int, of: int) -> pb.LoadReady:
    channel = await dial("127.0.0.1", port, source.current(), timeout_s=BOUND_S)
    request = pb.LoadRequest(hello=hello(), first_layer=first, last_layer=first + 1, layers_in_model=of)
    async with channel:
        async for event in control(channel).Load(request):
            if event.HasField("ready"):
                ready: pb.LoadReady = event.ready
                return ready
    raise AssertionError("not ready")


@pytest.mark.process
@pytest.mark.parametrize("which", [0, 1])
def test_a_process_that_is_killed_in_the_middle_is_named(which: int, clean_environment: Path) -> None:
    async def main(children: list[NodeProcess]) -> None:
        source = KeyringSource()
        where = []
        for index, child in enumerate(children):
            ready = await load(source, child.port, index, 2)
            here, beside = (f"127.0.0.1:{port}" for port in (ready.data_port, ready.frame_port))
            where.append(StageAddress("ab"[index], ready.stage_id, here, beside))
        async with Chain(where, source) as chain:
            seen, error = await interrupted(chain, 20, children[which].child.kill)
            assert isinstance(error, Unavailable)
            assert re.search(f"^{'ab'[which]} was lost|lost the stage", error.message)
            assert "run the command again" in (error.hint or "")
            assert seen == expected(2, PROMPT, len(seen))
            with pytest.raises(Unavailable):
                await answer(chain, Ask(PROMPT, 1))

    KeyringSource()  # the key, before the children look for it
    slow = ("--step-s", "0.002")
    with node_process(clean_environment, "a", *slow) as a, node_process(clean_environment, "b", *slow) as b:
        asyncio.run(asyncio.wait_for(main([a, b]), 3 * BOUND_S))


@pytest.mark.nightly
def test_an_idle_chain_stays_open() -> None:
    """Keepalive pings are not taken for abuse: three of them used to end a connection."""

    async def main() -> None:
        async with stages(2) as (found, source), Chain(addresses(found), source) as chain:
            await asyncio.sleep(45)
            assert await answer(chain, Ask(PROMPT, 5)) == expected(2, PROMPT, 5)

    asyncio.run(main())
