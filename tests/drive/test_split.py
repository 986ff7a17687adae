from dataclasses import replace
from math import ceil
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo_cli.drive.size import ModelSize
from exo_cli.drive.split import BASE_BYTES, BUFFER_BYTES, HEADROOM, Need, split, usable_bytes
from exo_cli.errors import DoesNotFit, Unavailable
from exo_cli.schemas.plan import ModelRef, Plan
from exo_cli.schemas.topology import Memory, Node
from tests.support.records import node as record

MIB = 2**20
FIXED = BASE_BYTES + BUFFER_BYTES
MODEL = ModelRef(name="m", revision=None, digest="d" * 64)


def node(name: str, free_mib: int, **other: Any) -> Node:
    memory = Memory(
        ram_bytes=1 << 50, limit_bytes=1 << 50, free_bytes=ceil((FIXED + free_mib * MIB) / HEADROOM)
    )
    return record(name, **{"memory": memory, "host": name, "backend": "cpu", **other})


def need(layers: int = 10, layer_mib: int = 100, *, ends_mib: int = 0, kv: int = 0, context: int = 1) -> Need:
    size = ModelSize((layer_mib * MIB,) * layers, ends_mib * MIB, ends_mib * MIB, kv, 4096)
    return Need(MODEL, size, context)


def shares(plan: Plan) -> list[tuple[str, tuple[int, int]]]:
    return [(stage.ranks[0].node, stage.layers) for stage in plan.replicas[0].stages]


def test_one_node_that_has_room_for_all_of_it() -> None:
    plan = split(need(), [node("a", 5000), node("b", 1000)], here="b")
    assert shares(plan) == [("b", (0, 10))]
    assert plan.reason == "b (this machine) has room for all of it"
    plan = split(need(), [node("a", 5000), node("b", 999)], here="b")
    assert shares(plan) == [("a", (0, 10))]
    assert shares(split(need(), [node("a", 2000), node("b", 3000)], here="")) == [("b", (0, 10))]


def test_in_proportion_to_what_is_free() -> None:
    plan = split(need(), [node("b", 300), node("a", 950)], here="b")
    assert shares(plan) == [("b", (0, 2)), ("a", (2, 10))]
    assert plan.reason == "split by free memory: layers b 0-1, a 2-9"
    assert plan.forecast is None


def test_every_node_has_a_layer_at_least_and_nodes_of_a_machine_stand_together() -> None:
    nodes = [node("a", 101), node("x", 480, host="h"), node("b", 480), node("y", 480, host="h")]
    plan = split(need(), nodes, here="nowhere")
    assert [name for name, _ in shares(plan)] == ["a", "b", "x", "y"]
    assert shares(plan)[0] == ("a", (0, 1))


def test_as_many_nodes_as_were_asked_for() -> None:
    nodes = [node("a", 5000), node("b", 3000), node("c", 4000)]

    def over(n: int) -> Plan:
        return split(replace(need(), nodes=n), nodes, here="b")

    assert shares(over(1)) == [("b", (0, 10))]
    assert shares(over(2)) == [("a", (0, 6)), ("c", (6, 10))]
    assert "left out: b (is not needed)" in over(2).reason
    assert [name for name, _ in shares(over(3))] == ["b", "a", "c"]
    with pytest.raises(DoesNotFit, match=r"cannot be put on 4 nodes: it has 10 layers, and .* b has 3\.6 GB"):
        over(4)
    with pytest.raises(DoesNotFit, match="cannot be put on 3 nodes: it has 2 layers"):
        split(replace(need(2), nodes=3), nodes, here="b")
    with pytest.raises(DoesNotFit, match=r"needs 105\.3 GB"):
        split(replace(need(layer_mib=10_000), nodes=2), nodes, here="b")


def test_ends_and_caches_are_counted() -> None:
    wanted = need(4, 100, ends_mib=150, kv=MIB, context=50)
    plan = split(wanted, [node("a", 650), node("b", 450)], here="a")
    for stage in plan.replicas[0].stages:
        memory = stage.ranks[0].memory
        parts = memory.weights_bytes + memory.kv_bytes + memory.buffers_bytes + memory.base_bytes
        assert parts <= memory.limit_bytes
    assert shares(plan) == [("a", (0, 3)), ("b", (3, 4))] or shares(plan) == [("a", (0, 2)), ("b", (2, 4))]


def test_who_takes_no_part_is_named_with_the_reason() -> None:
    nodes = [
        node("a", 700),
        node("b", 700),
        node("draining", 9000, state="draining"),
        node("watching", 9000, role="announce"),
        node("other", 9000, protocol=7),
        node("small", 50),
        node("bare", 9000, backend="none"),
    ]
    plan = split(need(), nodes, here="a")
    assert [name for name, _ in shares(plan)] == ["a", "b"]
    for said in (
        "draining (is draining)",
        "watching (only",
        "other (speaks protocol 7",
        "small (has no room",
    ):
        assert said in plan.reason
    with pytest.raises(Unavailable, match="no node takes work: draining is draining"):
        split(need(), nodes[2:3], here="a")
    with pytest.raises(Unavailable, match="nobody is there"):
        split(need(), [], here="a")


def test_what_does_not_fit_says_how_much_is_missing() -> None:
    numbers = r"m needs 1\.5 GB with a context of 1 tokens, and a has 1\.0 GB, b has 0\.9 GB free; each takes"
    with pytest.raises(DoesNotFit, match=numbers):
        split(need(), [node("a", 500), node("b", 400)], here="a")
    with pytest.raises(DoesNotFit, match=r"a has 0\.5 GB free$"):
        split(need(), [node("a", 10)], here="a")
    with pytest.raises(DoesNotFit, match=r"n6 has 0\.5 GB, 3 more have 1\.\d GB free"):
        split(need(), [node(f"n{at}", 10) for at in range(11)], here="n0")


def test_more_nodes_than_layers() -> None:
    plan = split(
        need(2, 1000),
        [node(name, size) for name, size in zip("abc", (1100, 1000, 1200), strict=True)],
        here="",
    )
    assert [name for name, _ in shares(plan)] == ["a", "c"]
    assert "b (is not needed)" in plan.reason


def test_float32_on_the_wire_whatever_the_backends() -> None:
    assert split(need(), [node("a", 2000)], here="a").dtype == "float32"
    mixed = [node("a", 600), node("b", 600, backend="metal")]
    assert split(need(), mixed, here="a").dtype == "float32"


@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=40),
    st.lists(st.integers(0, 6000), min_size=1, max_size=8),
    st.integers(0, 300),
    st.randoms(use_true_random=False),
)
def test_whatever_is_planned_covers_the_model_and_fits(
    layers: list[int], frees: list[int], ends: int, random: Any
) -> None:
    size = ModelSize(tuple(mib * MIB for mib in layers), ends * MIB, ends * MIB, 1000, 4096)
    wanted = Need(MODEL, size, 100)
    nodes = [node(f"n{index}", free) for index, free in enumerate(frees)]
    try:
        plan = split(wanted, nodes, here="n0")
    except DoesNotFit:
        assert all(wanted.bytes(0, len(layers)) > usable_bytes(each) for each in nodes)
        return
    stages = plan.replicas[0].stages
    assert [stage.layers[0] for stage in stages] == [0, *(stage.layers[1] for stage in stages[:-1])]
    assert stages[-1].layers[1] == len(layers)
    by_id = {each.id: each for each in nodes}
    for stage in stages:
        assert stage.layers[0] < stage.layers[1]
        assert wanted.bytes(*stage.layers) <= usable_bytes(by_id[stage.ranks[0].node])
    shuffled = list(nodes)
    random.shuffle(shuffled)
    assert split(wanted, shuffled, here="n0") == plan
