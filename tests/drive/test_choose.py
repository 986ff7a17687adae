import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from math import ceil
from pathlib import Path

import msgspec
import pytest

from exo_cli.cluster.facts import host_id
from exo_cli.drive import choose as choose_module
from exo_cli.drive.choose import DEFAULT_CONTEXT, Around, Choice, choose, choose_roomy, contexts
from exo_cli.drive.load import load
from exo_cli.drive.size import ModelSize
from exo_cli.drive.split import Need, plan_of
from exo_cli.errors import BadData, DoesNotFit, Unavailable, VersionMismatch
from exo_cli.planning.cluster import usable_bytes
from exo_cli.schemas.plan import ModelRef
from exo_cli.schemas.topology import LoadedStage, Memory, Node, Topology
from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire import exo_pb2 as pb
from tests.support.fake_stage import FakeNode, fake_node, node_process
from tests.support.records import link
from tests.support.records import node as record

LAYERS = 4
NEED = Need(
    ModelRef(name="toy", revision=None, digest="d" * 64), ModelSize((1000,) * LAYERS, 10, 10, 8, 16384), 512
)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loaded machine may need more than a third of a second; what is decided does not depend on it."""
    monkeypatch.setattr(choose_module, "CONFIRM_S", 3.0)


@asynccontextmanager
async def nodes(*names: str) -> AsyncIterator[tuple[list[FakeNode], KeyringSource]]:
    source = KeyringSource()
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(fake_node(source, name)) for name in names], source


def around(source: KeyringSource, *known: Node, links: Sequence[object] = ()) -> Around:
    topology = Topology(nodes=known, links=tuple(links))  # type: ignore[arg-type]
    return Around(topology, source, Path.home() / "nodes")


async def no_private() -> Node:
    raise AssertionError("this machine alone was not wanted")


def shares(choice: Choice) -> list[tuple[str, tuple[int, int]]]:
    return [
        (choice.nodes[stage.ranks[0].node].name, stage.layers) for stage in choice.plan.replicas[0].stages
    ]


def test_a_plans_nodes_and_no_others() -> None:
    async def main() -> None:
        async with nodes("a", "b") as (found, source):
            a, b = (node.record for node in found)
            plan = plan_of(NEED, [(a, (0, 3)), (b, (3, 4))], "by hand")
            path = link(a.id, b.id)
            choice = await choose(NEED, around(source, a, b, links=[path]), plan=plan, private=no_private)
            assert choice.plan == plan
            assert choice.nodes.keys() == {a.id, b.id}
            assert choice.links == (path,)
            # Written by hand before there were ids.
            named = [msgspec.structs.replace(node, id=node.name) for node in (a, b)]
            by_name = plan_of(NEED, [(named[0], (0, 3)), (named[1], (3, 4))], "by hand")
            choice = await choose(NEED, around(source, a, b), plan=by_name, private=no_private)
            assert choice.plan == plan
            assert choice.nodes.keys() == {a.id, b.id}
            early = msgspec.structs.replace(plan, model=ModelRef(name="toy", revision=None, digest=""))
            choice = await choose(NEED, around(source, a, b), plan=early, private=no_private)
            assert choice.plan == plan
            gone = msgspec.structs.replace(b, endpoint="127.0.0.1:1")
            with pytest.raises(Unavailable, match="nodes that do not answer: b"):
                await choose(NEED, around(source, a, gone), plan=plan, private=no_private)
            other = replace(NEED, model=msgspec.structs.replace(NEED.model, digest="e" * 64))
            with pytest.raises(BadData, match="another version of toy: its digest begins with 'dddd"):
                await choose(other, around(source, a, b), plan=plan, private=no_private)

    asyncio.run(main())


def test_stages_that_are_there_are_used() -> None:
    async def main() -> None:
        async with nodes("a", "b", "c") as (found, source):
            records = [node.record for node in found]
            by_id = {node.id: node for node in records}
            plan = plan_of(NEED, [(records[1], (0, 3)), (records[2], (3, 4))], "before")
            await load(plan, by_id, LAYERS, source)
            known = [node.record for node in found]
            choice = await choose(NEED, around(source, *known), plan=None, private=no_private)
            assert shares(choice) == [("b", (0, 3)), ("c", (3, 4))]
            assert choice.plan.reason == "it is loaded already on b, c"
            assert choice.silent == ()

    asyncio.run(main())


def test_stages_that_are_gone_are_not_used_and_who_was_silent_is_named() -> None:
    async def main() -> None:
        source = KeyringSource()
        ghost = record(
            "ghost",
            endpoint="127.0.0.1:1",
            stages=(LoadedStage(model="d" * 64, layers=(0, LAYERS), state="ready"),),
        )

        async def private() -> Node:
            room = Memory(ram_bytes=1 << 40, limit_bytes=1 << 40, free_bytes=1 << 40)
            return record("mine", host=host_id(), memory=room, backend="cpu")

        choice = await choose(NEED, around(source, ghost), plan=None, private=private)
        assert choice.silent == ("ghost",)
        assert choice.alone
        assert shares(choice) == [("mine", (0, LAYERS))]

    asyncio.run(main())


def test_alone_nobody_else_is_asked_whatever_they_hold() -> None:
    async def main() -> None:
        holds = (LoadedStage(model="d" * 64, layers=(0, LAYERS), state="ready"),)
        there = record("there", endpoint="127.0.0.1:1", stages=holds)

        async def private() -> Node:
            room = Memory(ram_bytes=1 << 40, limit_bytes=1 << 40, free_bytes=1 << 40)
            return record("mine", host=host_id(), memory=room, backend="cpu")

        who = replace(around(KeyringSource(), there), alone=True)
        choice = await choose(NEED, who, plan=None, private=private)
        assert (choice.alone, choice.silent) == (True, ())
        assert shares(choice) == [("mine", (0, LAYERS))]

    asyncio.run(main())


@pytest.mark.process
def test_who_answers_the_probe_is_used(clean_environment: Path) -> None:
    KeyringSource()
    with node_process(clean_environment, "heard", "--voice"):
        choice = asyncio.run(choose(NEED, around(KeyringSource()), plan=None, private=no_private))
        assert shares(choice) == [("heard", (0, LAYERS))]
        assert choice.plan.reason == "heard has room for all of it and is the only node"


def test_a_cluster_of_another_version_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with nodes("a") as (found, source):
            holder = msgspec.structs.replace(
                found[0].record,
                stages=(LoadedStage(model="toy", layers=(0, LAYERS), state="ready"),),
            )
            monkeypatch.setattr("exo_cli.cluster.service.hello", lambda *_: pb.Hello(protocol=9, version="9"))
            with pytest.raises(VersionMismatch, match="protocol 9"):
                await choose(NEED, around(source, holder), plan=None, private=no_private)

    asyncio.run(main())


def holder(name: str, *layers: tuple[int, int], state: str = "ready") -> Node:
    stages = tuple(LoadedStage(model="toy", layers=each, state=state) for each in layers)  # type: ignore[arg-type]
    return record(name, stages=stages)


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        ([holder("a", (0, 4))], [("a", (0, 4))]),
        ([holder("a", (0, 2)), holder("b", (2, 4))], [("a", (0, 2)), ("b", (2, 4))]),
        (
            [holder("b", (0, 2)), holder("a", (2, 3)), holder("c", (3, 4), (2, 4))],
            [("b", (0, 2)), ("c", (2, 4))],
        ),
        ([holder("a", (0, 2)), holder("b", (0, 4))], [("b", (0, 4))]),
        ([holder("a", (0, 2)), holder("b", (3, 4))], None),
        ([holder("a", (0, 2)), holder("b", (2, 4), state="loading")], None),
        ([holder("a", (2, 2), (0, 4))], [("a", (0, 4))]),
        ([], None),
    ],
)
def test_the_fewest_loaded_stages_that_make_the_model(
    there: list[Node], wanted: list[tuple[str, tuple[int, int]]] | None
) -> None:
    chain = choose_module._loaded_chain(NEED, there)
    assert (None if chain is None else [(node.name, layers) for node, layers in chain]) == wanted


def test_a_loaded_chain_is_used_only_where_it_has_as_many_nodes_as_were_asked_for() -> None:
    there = [holder("a", (0, 2)), holder("b", (2, 4))]
    assert choose_module._loaded_chain(replace(NEED, nodes=2), there) is not None
    assert choose_module._loaded_chain(replace(NEED, nodes=1), there) is None


def test_more_nodes_are_wanted_than_answer() -> None:
    need, there = replace(NEED, nodes=3), [holder("b"), holder("a")]
    choose_module._check_enough(replace(NEED, nodes=2), there)
    with pytest.raises(Unavailable, match="3 nodes are wanted, and 2 answer: a, b"):
        choose_module._check_enough(need, there)
    with pytest.raises(Unavailable, match="3 nodes are wanted, and one answers: b"):
        choose_module._check_enough(need, there[:1])
    with pytest.raises(Unavailable, match="2 nodes are wanted, and none answers"):
        asyncio.run(choose(replace(NEED, nodes=2), around(KeyringSource()), plan=None, private=no_private))


def test_context_is_a_round_number_and_enough() -> None:
    assert contexts(100, 100_000) == [DEFAULT_CONTEXT, 100]
    assert contexts(9000, 100_000) == [16384, 9000]
    assert contexts(9000, 10_000) == [10_000, 9000]
    assert contexts(100, 100) == [100]
    with pytest.raises(BadData, match="need 101 tokens; the model knows 100"):
        contexts(101, 100)


def test_where_a_round_context_does_not_fit_what_is_needed_may() -> None:
    async def main() -> None:
        need = replace(NEED, size=ModelSize((1000,) * LAYERS, 10, 10, 100_000, 16384))
        # Caches grow by 256 positions at a time.
        mine = record("mine", backend="cpu")
        room = replace(need, context=256).bytes((0, LAYERS), mine)
        memory = Memory(ram_bytes=1 << 50, limit_bytes=1 << 50, free_bytes=ceil(room / 0.9))
        mine = msgspec.structs.replace(mine, memory=memory)
        starts = 0

        async def private() -> Node:
            nonlocal starts
            starts += 1
            return mine

        source = KeyringSource()
        choice = await choose_roomy(need, around(source), 256, plan=None, private=private)
        assert choice.plan.context == 256
        assert usable_bytes(mine) == room
        with pytest.raises(DoesNotFit):
            await choose_roomy(need, around(source), 257, plan=None, private=private)

    asyncio.run(main())


def test_nodes_that_were_met_are_asked_and_the_avoided_ones_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def nobody_else(around: Around) -> None:
        raise AssertionError("somebody else was called")

    monkeypatch.setattr(choose_module, "_probe", nobody_else)
    monkeypatch.setattr(choose_module, "KNOWN_S", 10.0)

    async def main() -> None:
        async with nodes("a", "b", "c") as (found, source):
            a, b, c = (node.record for node in found)
            # a has the model loaded and b is gone; both are known, as is the one that is left.
            await load(plan_of(NEED, [(a, (0, LAYERS))], "a test"), {a.id: a}, LAYERS, source)
            gone = msgspec.structs.replace(b, endpoint="127.0.0.1:1")
            where = replace(around(source, found[0].record), known=(a, gone, c), avoid=frozenset((a.id,)))
            choice = await choose(NEED, where, plan=None, private=no_private)
            assert shares(choice) == [("c", (0, LAYERS))]
            assert a.id not in choice.nodes

    asyncio.run(main())
