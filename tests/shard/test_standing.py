"""Stages that a plan gives a node, with a node that is made of answers."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec
import pytest

from exo_cli.errors import BadData, ExoError, Internal, NotFound, Unavailable
from exo_cli.schemas.plan import ModelRef, Plan, Replica
from exo_cli.shard import standing
from exo_cli.shard.engines import Lease, NodeFull
from exo_cli.shard.standing import Standing, numerics_of, own_stages
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.loads import load_id
from tests.support import cluster
from tests.support.records import node as record

MODEL = ModelRef(name="toy", revision=None, digest="d" * 64)


def plan(*nodes: str) -> Plan:
    return cluster.plan(MODEL, range(len(nodes) + 1), [record(name) for name in nodes])


def layers(requests: list[pb.LoadRequest]) -> list[tuple[int, int]]:
    return [(each.first_layer, each.last_layer) for each in requests]


def test_a_node_finds_its_stages_by_id_or_by_name() -> None:
    mine = own_stages(plan("a", "ab12", "b", "a"), "ab12", "a")
    assert layers(mine) == [(0, 1), (1, 2), (3, 4)]
    assert {each.layers_in_model for each in mine} == {4}
    assert mine[0].load_id == load_id(plan("a", "ab12", "b", "a"), (0, 1), 4)
    assert mine[0].memory_bytes == cluster.MEMORY_BYTES
    # The same stage in a second replica is there once.
    twice = msgspec.structs.replace(plan("a"), replicas=plan("a").replicas * 2)
    assert layers(own_stages(twice, "x", "a")) == [(0, 1)]


def test_a_plan_without_this_node_names_those_it_has() -> None:
    with pytest.raises(BadData, match=r"no stage for this node, c; it names a, b$") as caught:
        own_stages(plan("a", "b", "a"), "id", "c")
    assert "--name" in (caught.value.hint or "")
    with pytest.raises(BadData, match="names no node at all"):
        own_stages(msgspec.structs.replace(plan("a"), replicas=()), "id", "c")
    broken = msgspec.structs.replace(plan("a"), replicas=(Replica(stages=()),))
    with pytest.raises(BadData, match="no stages"):
        own_stages(broken, "id", "a")


def test_all_nodes_of_a_plan_find_the_same_way_to_compute() -> None:
    silent, both = plan("a", "b"), ("exact", "fast")
    says = msgspec.structs.replace(silent, numerics="fast")
    for us in (("1", "a"), ("2", "b")):
        assert numerics_of(says, us, both, None) == "fast"
        assert numerics_of(says, us, ("exact",), None) == "fast"
        # What the others offer is not known while they start.
        assert numerics_of(silent, us, both, None) == "exact"
        assert numerics_of(silent, us, both, "fast") == "fast"
        assert numerics_of(says, us, both, "exact") == "exact"
    assert numerics_of(plan("a", "a"), ("1", "a"), both, None) == "fast"
    assert numerics_of(plan("a", "a"), ("1", "a"), ("exact",), None) == "exact"
    (request,) = own_stages(says, "1", "a", "fast")
    assert request.numerics == "fast"
    assert request.load_id == load_id(says, (0, 1), 2, "fast") != load_id(says, (0, 1), 2)


@dataclass
class FakeEngine:
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    failure: ExoError | None = None

    def end(self, failure: ExoError | None = None) -> None:
        self.failure = failure
        self.ended.set()


@dataclass
class FakeLease:
    engine: FakeEngine = field(default_factory=FakeEngine)
    let_go: bool = False


@dataclass
class Node:
    """Answers loads with what the test has put down."""

    answers: list[ExoError | None]
    leases: list[FakeLease] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    let_go: list[str] = field(default_factory=list)
    asked: asyncio.Event = field(default_factory=asyncio.Event)

    async def load(self, request: pb.LoadRequest) -> AsyncIterator[pb.LoadEvent]:
        self.asked.set()
        answer = self.answers.pop(0)
        if answer is not None:
            raise answer
        self.leases.append(FakeLease())
        yield pb.LoadEvent()

    def find(self, load_id: str) -> Lease | None:
        return cast(Any, self.leases[-1]) if self.leases else None

    def standing(self) -> Standing:
        return Standing(
            own_stages(plan("a"), "id", "a"),
            self.load,
            self.find,
            let_go=self.let_go.append,
            warn=self.said.append,
            note=lambda text: None,
        )


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not true():  # noqa: ASYNC110 - the node does not know that it is watched
            await asyncio.sleep(0)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses take no time; those that were meant."""
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def passed(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", passed)
    return pauses


def test_what_may_pass_is_tried_again_with_the_reason(
    quick: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standing, "LONGEST_PAUSE_S", 0.5)
    node = Node([NotFound("nobody has it"), Unavailable("b is silent"), NodeFull(9, 1, ["x"]), None])

    async def main() -> None:
        held = node.standing()
        await held.ready()
        assert not node.answers
        assert [text.partition("; ")[0] for text in node.said] == [
            "cannot load layers 0 to 0 of toy yet: nobody has it",
            "cannot load layers 0 to 0 of toy yet: b is silent",
            "cannot load layers 0 to 0 of toy yet: the stage needs 9 bytes and 1 are free",
        ]
        await held.stop()

    asyncio.run(main())


def test_news_of_a_neighbour_cut_a_pause_short(quick: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standing, "FIRST_PAUSE_S", 3600.0)
    monkeypatch.setattr(standing, "LONGEST_PAUSE_S", 7200.0)
    node = Node([NotFound("nobody has it"), NotFound("nobody has it"), None])

    async def main() -> None:
        held = node.standing()
        ready = asyncio.create_task(held.ready())
        async with asyncio.timeout(30):
            while not ready.done():
                held.news()
                await asyncio.sleep(0)
        await held.stop()

    asyncio.run(main())


@pytest.mark.parametrize(
    "error", [BadData("9 layers, not 4"), NodeFull(9, 1, []), Internal("the engine died")]
)
def test_what_cannot_pass_ends_the_node(error: ExoError) -> None:
    node = Node([error])

    async def main() -> None:
        held = node.standing()
        with pytest.raises(type(error)) as caught:
            await held.ready()
        assert caught.value is error
        await held.stop()

    asyncio.run(main())


def test_what_nobody_thought_of_ends_the_node_as_well() -> None:
    async def main() -> None:
        node = Node([cast(Any, ZeroDivisionError("nobody thought of it"))])
        standing = node.standing()
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(standing.ready(), 30)
        await standing.stop()

    asyncio.run(main())


def test_an_engine_that_dies_is_loaded_again_after_longer_and_longer_pauses(quick: list[float]) -> None:
    node = Node([None, None, BadData("the disk has other bytes now"), None])

    async def main() -> None:
        held = node.standing()
        await held.ready()
        for count in (1, 2):
            node.leases[-1].engine.end(Internal("it was ended by SIGKILL"))
            await until(lambda count=count: len(node.leases) > count)  # type: ignore[misc]
        assert node.said[0] == "it was ended by SIGKILL; loading it again in 0.5 s"
        assert node.said[1] == "it was ended by SIGKILL; loading it again in 1 s"
        # Once it was there, nothing that goes wrong with it ends the node.
        assert "the disk has other bytes now" in node.said[2]
        assert not node.let_go
        await held.stop()

    asyncio.run(main())


def test_what_is_let_go_is_not_loaded_again(quick: list[float]) -> None:
    async def main(*, while_failed: bool) -> None:
        node = Node([None])
        held = node.standing()
        await held.ready()
        node.leases[-1].let_go = True
        node.leases[-1].engine.end(Internal("killed") if while_failed else None)
        await until(lambda: bool(node.let_go))
        assert node.let_go == [load_id(plan("a"), (0, 1), 1)]
        assert len(node.leases) == 1
        await held.stop()

    asyncio.run(main(while_failed=False))
    asyncio.run(main(while_failed=True))
