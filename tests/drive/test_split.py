from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from exo_cli.drive.size import ModelSize, size_of
from exo_cli.drive.split import Need, plan_of, split
from exo_cli.errors import DoesNotFit, Unavailable
from exo_cli.models.directory import ModelDirectory
from exo_cli.planning.cluster import usable_bytes
from exo_cli.planning.constants import BASE_BYTES, FAST_BASE_BYTES
from exo_cli.planning.problem import needed_bytes
from exo_cli.schemas.plan import ModelRef, Plan
from exo_cli.schemas.topology import Memory, Node, Rate
from tests.support import tiny_models
from tests.support.records import link
from tests.support.records import node as record

MIB = 2**20
FIXED = BASE_BYTES["cpu"]
MODEL = ModelRef(name="m", revision=None, digest="d" * 64)


def node(name: str, free_mib: int, **other: Any) -> Node:
    """With so much beside an engine's own size, what its allocator takes included."""
    memory = Memory(
        ram_bytes=1 << 50, limit_bytes=1 << 50, free_bytes=ceil((FIXED + free_mib * MIB * 1.045) / 0.9) + 2
    )
    return record(name, **{"memory": memory, "host": name, "backend": "cpu", "chip": "", **other})


def need(layers: int = 10, layer_mib: int = 100, *, ends_mib: int = 0, kv: int = 0, context: int = 1) -> Need:
    size = ModelSize((layer_mib * MIB,) * layers, ends_mib * MIB, ends_mib * MIB, kv, 4096)
    return Need(MODEL, size, context)


def shares(plan: Plan) -> list[tuple[str, tuple[int, int]]]:
    return [(stage.ranks[0].node, stage.layers) for stage in plan.replicas[0].stages]


def test_one_node_that_has_room_for_all_of_it_and_this_machine_first() -> None:
    nodes = [node("a", 5000), node("b", 1000)]
    plan = split(need(), nodes, here="b")
    assert shares(plan) == [("b", (0, 10))]
    assert plan.reason.startswith("b has room for all of it, and a split over more nodes is no better")
    assert "left out: a (" in plan.reason
    assert shares(split(need(), nodes, here="nowhere")) == [("a", (0, 10))]
    assert shares(split(need(), [node("a", 5000), node("b", 999)], here="b")) == [("a", (0, 10))]


def test_a_quicker_node_before_this_machine() -> None:
    rate = Rate(format="float32", decode_bytes_per_s=9e11, prefill_flop_per_s=9e13, measured_unix_ms=1)
    slow = structs.replace(rate, decode_bytes_per_s=1e11, prefill_flop_per_s=1e13)
    nodes = [node("a", 5000, rates=(rate,)), node("b", 5000, rates=(slow,))]
    assert shares(split(need(), nodes, here="b")) == [("a", (0, 10))]
    # Not measured yet, it is taken to be as quick as its twin.
    assert shares(split(need(), [nodes[0], node("b", 5000)], here="b")) == [("b", (0, 10))]


def test_as_many_layers_as_there_is_room_for() -> None:
    plan = split(need(), [node("b", 300), node("a", 950)], here="b")
    counts = {name: last - first for name, (first, last) in shares(plan)}
    assert sum(counts.values()) == 10
    assert 1 <= counts["b"] <= 3
    assert plan.forecast is not None
    assert plan.forecast.basis == "guessed"
    assert plan.replicas[0].concurrency == 1


def test_links_are_heeded() -> None:
    nodes = [node(name, 600) for name in "abc"]
    good: dict[str, Any] = {"rtt_us_p50": 100.0, "bytes_per_s": 1e9}
    slow: dict[str, Any] = {"rtt_us_p50": 90_000.0, "bytes_per_s": 1e6}
    links = [
        link(a.id, b.id, **(slow if "c" in (a.id, b.id) else good))
        for a in nodes
        for b in nodes
        if a is not b
    ]
    for order in (links, links[::-1]):
        assert {name for name, _ in shares(split(need(), nodes, here="c", links=order))} == {"a", "b"}


def test_as_many_nodes_as_were_asked_for() -> None:
    nodes = [node("a", 5000), node("b", 3000), node("c", 4000)]

    def over(n: int) -> Plan:
        return split(replace(need(), nodes=n), nodes, here="b")

    assert shares(over(1)) == [("b", (0, 10))]
    assert len(shares(over(2))) == 2
    assert {name for name, _ in shares(over(3))} == {"a", "b", "c"}
    with pytest.raises(
        DoesNotFit, match=r"cannot be put on 4 nodes: it has 10 layers, and .* b has 3\.\d GB"
    ):
        over(4)
    with pytest.raises(DoesNotFit, match="cannot be put on 3 nodes: it has 2 layers"):
        split(replace(need(2), nodes=3), nodes, here="b")
    with pytest.raises(DoesNotFit, match=r"needs 109\.\d GB"):
        split(replace(need(layer_mib=10_000), nodes=2), nodes, here="b")


def test_ends_and_caches_are_counted() -> None:
    wanted = need(4, 100, ends_mib=150, kv=MIB // 256, context=50)
    plan = split(wanted, [node("a", 450), node("b", 450)], here="a")
    for stage in plan.replicas[0].stages:
        memory = stage.ranks[0].memory
        assert memory.kv_bytes == (stage.layers[1] - stage.layers[0]) * MIB
        assert needed_bytes(memory) <= memory.limit_bytes
    assert sorted(shares(plan)) == [("a", (0, 2)), ("b", (2, 4))]


def test_caches_of_8_bits_are_counted_and_said() -> None:
    nodes = [node("a", 5000)]
    wide, narrow = (
        split(replace(need(kv=1 << 16, context=1024), kv_bits=bits), nodes, here="a") for bits in (None, 8)
    )
    assert (wide.kv_bits, narrow.kv_bits) == (None, 8)
    bytes_ = [each.replicas[0].stages[0].ranks[0].memory.kv_bytes for each in (wide, narrow)]
    assert bytes_ == [10 * 1024 << 16, (10 * 1024 << 16) * 9 // 32]
    assert plan_of(replace(need(), kv_bits=8), [(nodes[0], (0, 10))], "so").kv_bits == 8


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
    assert {name for name, _ in shares(plan)} == {"a", "b"}
    for said in ("draining (is draining)", "watching (only", "other (speaks protocol 7", "small ("):
        assert said in plan.reason
    with pytest.raises(Unavailable, match="no node takes work: draining is draining"):
        split(need(), nodes[2:3], here="a")
    with pytest.raises(Unavailable, match="nobody is there"):
        split(need(), [], here="a")


def test_what_does_not_fit_says_how_much_is_missing() -> None:
    numbers = r"m needs 1\.2 GB with a context of 1 tokens, and a has 0\.6 GB, b has 0\.5 GB free; each takes"
    with pytest.raises(DoesNotFit, match=numbers):
        split(need(), [node("b", 400), node("a", 500)], here="a")
    with pytest.raises(DoesNotFit, match=r"a has 0\.1 GB free$"):
        split(need(), [node("a", 10)], here="a")
    with pytest.raises(DoesNotFit, match=r"3 more have 0\.\d GB free"):
        split(need(), [node(f"n{at}", 10) for at in range(11)], here="n0")


def test_more_nodes_than_layers() -> None:
    nodes = [node(name, size) for name, size in zip("abc", (1100, 999, 1200), strict=True)]
    assert sorted(shares(split(need(2, 1000), nodes, here=""))) == [("a", (0, 1)), ("c", (1, 2))]


def test_float32_on_the_wire_whatever_the_backends() -> None:
    assert split(need(), [node("a", 2000)], here="a").dtype == "float32"
    mixed = [node("a", 900), node("b", 900, backend="metal")]
    assert split(need(), mixed, here="a").dtype == "float32"


def test_a_known_family_is_planned_by_its_geometry(tmp_path: Path) -> None:
    size = size_of(ModelDirectory.open(tiny_models.build("qwen3_moe", tmp_path / "m", bits=4)))
    assert size.known is not None
    assert any(layer.routed_bytes for layer in size.work.layers)
    wanted = Need(MODEL, size, 100)
    there = node("a", 100)
    plan = split(wanted, [there], here="a")
    said = plan_of(wanted, [(there, (0, 4))], "by hand")
    assert plan.replicas[0].stages == said.replicas[0].stages


@settings(max_examples=60)
@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=40),
    st.lists(st.integers(0, 6000), min_size=1, max_size=5),
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
        assert all(wanted.bytes((0, len(layers)), each) > usable_bytes(each) for each in nodes)
        return
    stages = plan.replicas[0].stages
    assert [stage.layers[0] for stage in stages] == [0, *(stage.layers[1] for stage in stages[:-1])]
    assert stages[-1].layers[1] == len(layers)
    by_id = {each.id: each for each in nodes}
    for stage in stages:
        assert stage.layers[0] < stage.layers[1]
        there = by_id[stage.ranks[0].node]
        assert wanted.bytes(stage.layers, there) <= usable_bytes(there)
    shuffled = list(nodes)
    random.shuffle(shuffled)
    assert split(wanted, shuffled, here="n0") == plan


def test_whoever_wants_it_exact_needs_no_room_for_kernels() -> None:
    more = FAST_BASE_BYTES - FIXED
    able = [node("a", 1000 + more // MIB, numerics=("exact", "fast"))]
    assert split(need(), able, here="").numerics == "fast"
    tight = [node("a", 1000, numerics=("exact", "fast"))]
    with pytest.raises(DoesNotFit):
        split(need(), tight, here="")
    exact = split(replace(need(), exact=True), tight, here="")
    assert exact.numerics == "exact"
    assert shares(exact) == [("a", (0, 10))]
