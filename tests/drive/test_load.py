import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec
import pytest

from exo_cli.drive.chain import Chain
from exo_cli.drive.load import LoadedStage, Progress, addresses, load, unload
from exo_cli.drive.requests import Ask
from exo_cli.drive.size import ModelSize
from exo_cli.drive.split import Need, plan_of
from exo_cli.errors import BadData, DoesNotFit, NotFound, Unavailable
from exo_cli.schemas.plan import ModelRef, Plan
from exo_cli.schemas.topology import Address, Node
from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire.loads import load_id, load_request
from tests.support.chain import expected
from tests.support.fake_stage import FakeNode, Habits, fake_node
from tests.support.records import link
from tests.support.records import node as record

LAYERS = 4
NEED = Need(
    ModelRef(name="toy", revision=None, digest="d" * 64), ModelSize((1000,) * LAYERS, 10, 10, 8, 4096), 512
)
PROMPT = (3, 1, 4, 1, 5)
BOUND_S = 15.0


def plan(*nodes: Node) -> Plan:
    step = LAYERS // len(nodes)
    chain = [(node, (at * step, (at + 1) * step)) for at, node in enumerate(nodes)]
    return plan_of(NEED, chain, "a test")


@asynccontextmanager
async def cluster(*habits: Habits) -> AsyncIterator[tuple[list[FakeNode], KeyringSource]]:
    source = KeyringSource()
    async with AsyncExitStack() as stack:
        names = "abcdef"
        yield (
            [
                await stack.enter_async_context(fake_node(source, names[at], each))
                for at, each in enumerate(habits)
            ],
            source,
        )


async def loaded(nodes: list[FakeNode], source: KeyringSource, **options: Any) -> tuple[LoadedStage, ...]:
    records = [node.record for node in nodes]
    by_id = {each.id: each for each in records}
    return await load(plan(*records), by_id, LAYERS, source, **options)


def test_a_chain_is_loaded_and_answers() -> None:
    async def main() -> None:
        async with cluster(Habits(), Habits()) as (nodes, source):
            said: list[Progress] = []
            stages = await loaded(
                nodes, source, on_progress=said.append, weights_from=lambda node: f"here:{node.name}"
            )
            assert [(stage.node.name, stage.layers) for stage in stages] == [("a", (0, 2)), ("b", (2, 4))]
            assert {(each.node, each.doing, each.done) for each in said} >= {
                ("a", "read", 1),
                ("b", "read", 1),
            }
            asked = nodes[1].service.asked[0]
            assert (asked.first_layer, asked.last_layer, asked.layers_in_model) == (2, 4, 4)
            assert (asked.model.digest, asked.context, asked.weights_from) == ("d" * 64, 512, "here:b")
            assert asked.memory_bytes > 2010 + 2 * 8 * 512
            async with Chain(addresses(stages, ()), source) as chain:
                got = [token.id async for token in chain.generate(Ask(PROMPT, 10)).tokens()]
            assert got == expected(2, PROMPT, 10)

    asyncio.run(main())


def test_a_second_load_finds_the_first() -> None:
    async def main() -> None:
        async with cluster(Habits(), Habits()) as (nodes, source):
            first = await loaded(nodes, source)
            again = await loaded(nodes, source)
            assert [stage.stage_id for stage in again] == [stage.stage_id for stage in first]
            assert [stage.fresh for stage in (*first, *again)] == [True, True, False, False]
            await unload(again, source)
            assert not nodes[0].service.stages

    asyncio.run(main())


def test_one_that_fails_undoes_the_others_with_its_own_exit_code() -> None:
    async def main() -> None:
        failure = DoesNotFit("there is no room", hint="Ask for less.")
        async with cluster(Habits(), Habits(load_s=0.05, load_fails=failure)) as (nodes, source):
            with pytest.raises(DoesNotFit, match=r"^b: there is no room$") as caught:
                await loaded(nodes, source)
            assert (caught.value.exit, caught.value.hint) == (79, "Ask for less.")
            assert len(nodes[0].service.unloaded) == 1
            assert not nodes[0].service.stages

    asyncio.run(main())


def test_what_was_loaded_before_survives_somebody_elses_failure() -> None:
    async def main() -> None:
        habits = Habits()
        async with cluster(Habits(), habits) as (nodes, source):
            await loaded(nodes, source)
            await nodes[1].service.stages.popitem()[1].stop()
            habits.load_fails, habits.load_s = DoesNotFit("no"), 0.05
            with pytest.raises(DoesNotFit):
                await loaded(nodes, source)
            assert len(nodes[0].service.stages) == 1

    asyncio.run(main())


def test_a_node_that_is_not_there_is_named() -> None:
    async def main() -> None:
        async with cluster(Habits(), Habits()) as (nodes, source):
            records = [node.record for node in nodes]
            gone = msgspec.structs.replace(records[1], endpoint="127.0.0.1:1")
            by_id = {records[0].id: records[0], gone.id: gone}
            with pytest.raises(Unavailable, match=r"^b: nothing listens"):
                await load(plan(*records), by_id, LAYERS, source)
            with pytest.raises(NotFound, match=f"not there: {gone.id}"):
                await load(plan(*records), {records[0].id: records[0]}, LAYERS, source)

    asyncio.run(main())


def test_leaving_while_it_loads_undoes_what_is_done() -> None:
    async def main() -> None:
        async with cluster(Habits(), Habits(load_s=60.0)) as (nodes, source):
            task = asyncio.create_task(loaded(nodes, source))
            async with asyncio.timeout(BOUND_S):
                while not nodes[0].service.stages:  # noqa: ASYNC110 - the node does not know that it is watched
                    await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert nodes[0].service.unloaded
            assert not nodes[1].service.stages

    asyncio.run(main())


def wrong(change: str) -> tuple[Plan, int]:
    good = plan(record("a"), record("b"))
    stages = good.replicas[0].stages
    replica = good.replicas[0]
    if change == "gap":
        stages = (stages[0], msgspec.structs.replace(stages[1], layers=(3, 4)))
    elif change == "ranks":
        stages = (stages[0], msgspec.structs.replace(stages[1], ranks=stages[1].ranks * 2))
    elif change == "empty":
        return msgspec.structs.replace(good, replicas=()), LAYERS
    elif change == "length":
        return good, LAYERS + 1
    return msgspec.structs.replace(good, replicas=(msgspec.structs.replace(replica, stages=stages),)), LAYERS


@pytest.mark.parametrize("change", ["gap", "ranks", "empty", "length"])
def test_a_plan_that_cannot_be_carried_out_is_refused_before_anything_is_loaded(change: str) -> None:
    bad, layers = wrong(change)
    nodes = {"a": record("a"), "b": record("b")}
    with pytest.raises(BadData, match="plan"):
        asyncio.run(load(bad, nodes, layers, KeyringSource()))


def test_a_load_is_named_by_what_it_makes() -> None:
    one = plan(record("a"))
    assert load_id(one, (0, 4), 4) == load_id(plan(record("b")), (0, 4), 4)
    others = [
        load_id(one, (0, 2), 4),
        load_id(msgspec.structs.replace(one, context=1024), (0, 4), 4),
        load_id(msgspec.structs.replace(one, dtype="float16"), (0, 4), 4),
        load_id(msgspec.structs.replace(one, kv_bits=8), (0, 4), 4),
    ]
    assert len({load_id(one, (0, 4), 4), *others}) == 5


def test_what_a_plan_says_of_caches_is_asked_for() -> None:
    one = plan(record("a"))
    eight = msgspec.structs.replace(one, kv_bits=8)
    said = [load_request(each, each.replicas[0].stages[0], LAYERS).kv_bits for each in (one, eight)]
    assert said == [0, 8]


# -- routes -----------------------------------------------------------------------------------------


def stage(node: Node, port: int) -> LoadedStage:
    return LoadedStage(node, (0, 1), f"s{port}", port, port, 0, 0, True)


def test_stages_are_reached_over_the_measured_address_from_the_stage_before() -> None:
    a = record("a", host="h1", endpoint="192.168.1.7:52416")
    b = record("b", host="h2", endpoint="192.168.1.8:52416")
    links = [link("a", "b", address="10.0.0.8"), link("b", "a", address="10.0.0.7")]
    first, last = addresses([stage(a, 1), stage(b, 2)], links)
    assert (first.endpoint, first.reached) == ("192.168.1.7:1", "10.0.0.7:1")
    assert (last.endpoint, last.reached) == ("192.168.1.8:2", "10.0.0.8:2")


def test_without_a_link_the_address_that_led_us_there() -> None:
    a = record("a", host="h1", endpoint="127.0.0.1:52416", addresses=(
        Address(interface="lo", kind="loopback", ip="127.0.0.1"),
        Address(interface="en0", kind="ethernet", ip="192.168.1.7"),
    ))  # fmt: skip
    b = record("b", host="h2", endpoint="[fd00::8]:52416")
    c = record("c", host="h1", endpoint="127.0.0.1:52417")
    broken = link("a", "b", address=None, error="blocked")
    first, second, third = addresses([stage(a, 1), stage(b, 2), stage(c, 3)], [broken])
    # c is on a's machine; b is elsewhere, where our loopback means nothing.
    assert first.reached == "127.0.0.1:1"
    assert second.reached == "[fd00::8]:2"
    assert third.endpoint == "127.0.0.1:3"
    with pytest.raises(Unavailable, match="no address of c is known that b could reach"):
        addresses([stage(a, 1), stage(b, 2), stage(msgspec.structs.replace(c, addresses=()), 3)], [])
