"""Plans as people see them: upstream's wrong answers answered rightly, reasons, alternatives, shortages."""

import random
from dataclasses import replace
from math import inf
from typing import Any

import msgspec
import pytest

from exo_cli.errors import DoesNotFit, Unavailable
from exo_cli.planning import solver
from exo_cli.planning.cluster import Cluster, Way, cluster_of
from exo_cli.planning.others import layout
from exo_cli.planning.planner import make_plan
from exo_cli.planning.problem import Limits, Problem, needed_bytes
from exo_cli.schemas.plan import ModelRef, Plan
from exo_cli.schemas.topology import Node, Rate, Topology
from tests.planning.clusters import GB, cluster, place, problem, way, work
from tests.support import topologies

MODEL = ModelRef(name="m", revision=None, digest="d" * 64)
CLOSED = Way(inf, 0.0, "measured", "connection refused")


def plan(problem: Problem, **other: Any) -> Plan:
    return make_plan(problem, MODEL, **other)


def split(problem: Problem) -> list[list[tuple[str | None, tuple[int, int]]]]:
    return [
        [(stage.ranks[0].name, stage.layers) for stage in replica.stages]
        for replica in plan(problem).replicas
    ]


def fits(plan: Plan) -> bool:
    memories = [rank.memory for replica in plan.replicas for stage in replica.stages for rank in stage.ranks]
    return all(needed_bytes(memory) <= memory.limit_bytes for memory in memories)


# -- what upstream answers wrongly (research/upstream-exo.md 1.5) -----------------------------------


def test_a_small_node_gets_no_more_than_it_holds() -> None:
    """192 GB and 16 GB, a model of 100 GB: upstream puts 50 GB on the small one."""
    made = problem(work(100, 1.0), cluster(place("big", 192), place("small", 16)))
    assert split(made) == [[("big", (0, 100))]]
    both = plan(replace(made, limits=Limits(min_nodes=2)))
    assert fits(both)
    assert both.replicas[0].stages[0].ranks[0].memory.weights_bytes != 50 * GB


def test_memory_to_the_last_byte_is_refused() -> None:
    """64 and 64 GB free, a model of 128 GB: upstream leaves nothing for caches and engines."""
    with pytest.raises(DoesNotFit, match=r"m needs 134\.\d GB .* a has 64\.0 GB and b has 64\.0 GB to give"):
        plan(problem(work(128, 1.0), cluster(place("a", 64), place("b", 64))))


def test_a_split_that_is_not_in_proportion_to_memory() -> None:
    """24 and 128 GB, 150 GB in 80 layers: upstream wants 13 layers on the small one and gives up."""
    model = work(80, 1.875 / 1.045 * 0.98)
    made = problem(model, cluster(place("small", 24), place("big", 128)))
    (stages,) = split(made)
    counts = {name: last - first for name, (first, last) in stages}
    assert counts["small"] + counts["big"] == 80
    assert counts["small"] in (12, 13)
    assert fits(plan(made))


def test_more_nodes_than_there_is_a_use_for_is_possible_but_not_chosen() -> None:
    """100, 1 and 1 GB, 10 layers: upstream raises; one node is the answer, and three can be asked for."""
    made = problem(work(10, 0.2), cluster(place("a", 100), place("b", 1), place("c", 1)))
    assert split(made) == [[("a", (0, 10))]]
    found = plan(made)
    assert "a split over more nodes is no better" in found.reason
    assert {left.name: left.reason for left in found.left_out} == dict.fromkeys(
        "bc", "would not help the time of a token"
    )
    three = replace(made, limits=Limits(min_nodes=3))
    assert len(plan(three).replicas[0].stages) == 3
    with pytest.raises(DoesNotFit, match=r"which fits, but not with --min-nodes"):
        plan(replace(three, work=work(10, 0.9)))


def test_a_way_that_is_closed_is_named() -> None:
    """One direction only: upstream says "no cycles with sufficient memory"."""
    made = problem(work(10, 1.0), cluster(place("a", 8), place("b", 8), a_b=CLOSED))
    with pytest.raises(DoesNotFit, match=r"a does not reach b \(connection refused\)"):
        plan(made)
    third = cluster(place("a", 8), place("b", 8), place("c", 8), a_b=CLOSED)
    (stages,) = split(problem(work(10, 1.0), third))
    assert {name for name, _ in stages} in ({"a", "c"}, {"b", "c"})


def test_three_nodes_whatever_the_heads() -> None:
    """Eight key heads on three nodes: upstream raises; a pipeline does not care."""
    assert len(split(problem(work(32, 1.0), cluster(*(place(name, 13) for name in "abc"))))[0]) == 3


def test_the_accelerators_limit_counts_and_not_the_ram() -> None:
    """A GPU of 24 GB in a machine of 64: upstream plans with the 64."""
    found = cluster_of(topologies.mixed(), format="affine4")
    tower = next(at for at, place in enumerate(found.places) if place.name == "tower")
    assert found.room_bytes(tower) <= 24 * 2**30


# -- choices ----------------------------------------------------------------------------------------


def test_a_model_that_fits_one_machine_is_better_as_replicas() -> None:
    # Where requests bring nothing to read of their own, a batch of eight takes no longer than one of four.
    made = problem(
        work(8, 1.0, kv=4000), cluster(place("a", 12), place("b", 12)), objective="throughput", streams=8
    )
    assert split(made) == [[("a", (0, 8))], [("b", (0, 8))]]
    assert [replica.concurrency for replica in plan(made).replicas] == [4, 4]
    assert "replicas, no split" in plan(made).reason


def test_a_node_that_would_make_it_slower_is_left_out_and_it_is_said_by_how_much() -> None:
    slow = cluster(place("a", 6), place("b", 6), place("slow", 40, speed=5))
    found = plan(problem(work(8, 1.0), slow))
    assert [stage.ranks[0].name for stage in found.replicas[0].stages] == ["a", "b"]
    worth = {each.name: each for each in found.worth}
    assert not worth["slow"].used
    with_it, without = worth["slow"].with_tokens_per_s, worth["slow"].without_tokens_per_s
    assert with_it is not None and without is not None and with_it < without  # noqa: PT018
    assert worth["a"].used
    assert worth["a"].without_tokens_per_s is not None


def test_a_bad_link_is_gone_around() -> None:
    three = cluster(place("a", 5), place("b", 5), place("c", 5), a_b=way(50), b_a=way(50), b_c=way(20))
    made = problem(work(10, 1.0), three)
    (stages,) = split(made)
    order = [name for name, _ in stages]
    # The ring a-c-b has one bad way, the ring a-b-c two.
    assert "".join(map(str, order)) in ("acb", "cba", "bac")
    best = solver.solve(made)
    assert best is not None
    assert [each.split()[0] for each in layout(made, best.chains).split(", ")] == order


def test_memory_binds_or_the_network_or_reading() -> None:
    quick = place("quick", 6, speed=800)
    assert "memory: quick" in str(plan(problem(work(8, 1.0), cluster(quick, place("b", 6)))).binding)
    far = cluster(place("a", 6), place("b", 6), between=way(800))
    assert "the network" in str(plan(problem(work(8, 1.0), far, limits=Limits(min_nodes=2))).binding)
    assert "reading weights: a" in str(plan(problem(work(8, 1.0), cluster(place("a", 40)))).binding)


def test_alternatives_are_other_plans_and_no_better() -> None:
    found = plan(problem(work(8, 1.0), cluster(*(place(name, 20) for name in "abc"))))
    assert found.forecast is not None
    assert len(found.alternatives) == 2
    for other in found.alternatives:
        assert other.decode_tokens_per_s <= found.forecast.decode_tokens_per_s
    assert len({other.layout for other in found.alternatives}) == 2


def test_the_forecast_adds_up() -> None:
    found = plan(
        problem(work(8, 1.0), cluster(place("a", 6), place("b", 6)), streams=2, objective="throughput")
    )
    told = found.forecast
    assert told is not None
    assert told.total_tokens_per_s > told.decode_tokens_per_s * 1.5
    assert told.basis == "measured"
    one = plan(problem(work(8, 1.0), cluster(place("a", 6), place("b", 6)))).forecast
    assert one is not None
    token_ms = sum(stage.compute_ms + stage.wire_ms for stage in one.stages)
    assert 1000 / token_ms == pytest.approx(one.decode_tokens_per_s, rel=1e-4)
    # 8 GB at 100 GB/s, and next to nothing for the way.
    assert 80 < token_ms < 83


def test_layers_by_hand() -> None:
    made = problem(work(8, 1.0), cluster(place("a", 20), place("b", 20)))
    pinned = plan(replace(made, limits=Limits(pins=((1, 0, 3),))))
    assert [(s.ranks[0].name, s.layers) for s in pinned.replicas[0].stages] == [("b", (0, 3)), ("a", (3, 8))]


def test_the_same_plan_whatever_the_order_of_the_files_lines() -> None:
    found = topologies.four_macs()
    nodes, links = list(found.nodes), list(found.links)
    texts = set()
    for seed in range(4):
        random.Random(seed).shuffle(nodes)
        random.Random(seed).shuffle(links)
        mixed = Topology(nodes=tuple(nodes), links=tuple(links))
        made = problem(work(40, 1.0), cluster_of(mixed, format="affine4"), streams=4, objective="balanced")
        texts.add(msgspec.json.encode(plan(made)))
    assert len(texts) == 1


def test_this_machine_where_others_are_as_good() -> None:
    nodes = tuple(topologies.node(name) for name in "abc")
    for here in "abc":
        found = cluster_of(Topology(nodes=nodes), format="affine4", here=f"host-of-{here}")
        assert split(problem(work(4, 1.0), found)) == [[(here, (0, 4))]]
    # Also where the links between them are not alike.
    for streams in (1, 2):
        uneven = cluster(place("a", 9), place("b", 9), place("c", 9), a_b=way(0.2), c_a=way(0.7))
        assert split(problem(work(4, 1.0), uneven, streams=streams)) == [[("a", (0, 4))]]


# -- a topology as the planner sees it --------------------------------------------------------------


def test_measured_rates_win_over_the_table_and_the_table_over_a_guess() -> None:
    rate = Rate(format="affine4", decode_bytes_per_s=7e10, prefill_flop_per_s=3e12, measured_unix_ms=1)
    other = msgspec.structs.replace(rate, format="float32", decode_bytes_per_s=9e10)
    nodes = (
        msgspec.structs.replace(topologies.node("a"), rates=(other, rate)),
        topologies.node("b", chip="Apple M4 Max"),
        topologies.node("c", chip="something", backend="cpu"),
    )
    found = cluster_of(Topology(nodes=nodes), format="affine4")
    assert [each.basis for each in found.places] == ["measured", "table", "guessed"]
    assert found.places[0].bytes_per_s == 7e10
    alone = cluster_of(Topology(nodes=nodes[1:]), format="affine4")
    assert 200e9 < alone.places[0].bytes_per_s < 546e9
    assert cluster_of(Topology(nodes=nodes), format="bfloat16").places[0].bytes_per_s == 9e10
    assert cluster_of(Topology(nodes=nodes), format="affine8").places[0].bytes_per_s == 7e10


def test_rates_are_those_of_how_the_nodes_would_compute_together() -> None:
    slow = Rate(format="affine4", decode_bytes_per_s=1e9, prefill_flop_per_s=1e10, measured_unix_ms=1)
    quick = msgspec.structs.replace(slow, decode_bytes_per_s=5e10, numerics="fast")
    changes = {"numerics": ("exact", "fast"), "rates": (quick, slow)}
    cpus = [msgspec.structs.replace(topologies.node(name, backend="cpu"), **changes) for name in "ab"]
    mac = topologies.node("mac")

    def planned(*nodes: Node) -> tuple[str | None, list[float]]:
        found = cluster_of(Topology(nodes=nodes), format="affine4")
        made = plan(problem(work(4, 1.0), found))
        return made.numerics, [each.bytes_per_s for each in found.places[:2]]

    assert planned(*cpus) == ("fast", [5e10, 5e10])
    assert planned(*cpus, mac)[1] == [1e9, 1e9]
    # Who takes no work has no say.
    assert planned(*cpus, msgspec.structs.replace(mac, state="dead")) == ("fast", [5e10, 5e10])
    assert planned(mac)[0] == "exact"


def test_a_machine_not_measured_yet_reaches_what_its_measured_twin_does() -> None:
    rate = Rate(format="affine4", decode_bytes_per_s=7e10, prefill_flop_per_s=3e12, measured_unix_ms=1)
    chips = {"a": "Apple M4 Pro", "b": "Apple M4 Pro", "c": "Apple M4 Max"}
    nodes = [topologies.node(name, chip=chip) for name, chip in chips.items()]
    nodes[0] = msgspec.structs.replace(nodes[0], rates=(rate,))
    nodes.append(topologies.node("d", chip="something", backend="cpu"))
    one, twin, larger, other = cluster_of(Topology(nodes=tuple(nodes)), format="affine4").places
    assert (one.bytes_per_s, one.flop_per_s) == pytest.approx((twin.bytes_per_s, twin.flop_per_s))
    assert larger.bytes_per_s == pytest.approx(7e10 * 546 / 273)
    assert [each.basis for each in (one, twin, larger, other)] == ["measured", "table", "table", "guessed"]
    # Of another backend it says nothing.
    assert other == cluster_of(Topology(nodes=tuple(nodes[3:])), format="affine4").places[0]


def test_who_takes_no_part_and_why() -> None:
    found = cluster_of(topologies.failing(), format="affine4", exclude=["studio"], protocol=1)
    assert not found.places
    assert dict(found.left_out) == {
        "studio": "is excluded",
        "mini-1": "is draining",
        "mini-2": "is suspect",
        "mini-3": "is dead",
        "den": "only announces itself",
    }
    with pytest.raises(Unavailable, match="no node takes work: den only announces itself"):
        plan(problem(work(), found))
    with pytest.raises(Unavailable, match="nobody is there"):
        plan(problem(work(), Cluster((), (), ())))


def test_nodes_of_one_machine_share_its_memory() -> None:
    twins = [place(name, 10, host="one", free_bytes=10 * GB) for name in "ab"]
    both = cluster(*twins)
    assert [both.room_bytes(at) for at in (0, 1)] == [5 * GB, 5 * GB]
    assert split(problem(work(8, 1.0), both)) == [[("a", (0, 8))]]
    with pytest.raises(DoesNotFit):
        plan(problem(work(10, 1.0), both, limits=Limits(min_nodes=2)))


def test_one_of_many_nodes_on_a_machine_may_have_all_of_it() -> None:
    many = cluster(*(place(f"n{at}", 10, host="one", free_bytes=10 * GB) for at in range(6)))
    assert split(problem(work(8, 1.0), many)) == [[("n0", (0, 8))]]


def test_only_some_links() -> None:
    macs = topologies.four_macs()
    wide = cluster_of(macs, format="affine4")
    narrow = cluster_of(macs, format="affine4", only_link="thunderbolt")
    assert all(way.open for row in wide.ways for way in row)
    names = [each.name for each in narrow.places]
    air = names.index("air")
    assert not any(narrow.ways[air][at].open for at in range(4) if at != air)
    assert narrow.ways[names.index("studio")][names.index("mini-1")].open


def test_headroom() -> None:
    macs = topologies.four_macs()
    usual, all_ = (cluster_of(macs, format="x", headroom=share) for share in (0.1, 0.0))
    for at, each in enumerate(all_.places):
        assert usual.room_bytes(at) == pytest.approx(0.9 * all_.room_bytes(at), rel=1e-6)
        node = next(node for node in macs.nodes if node.name == each.name)
        memory = node.memory
        assert all_.room_bytes(at) == min(memory.ram_bytes, memory.limit_bytes, memory.free_bytes)


# -- nothing fits -----------------------------------------------------------------------------------


def test_the_nearest_miss_and_what_would_make_it_fit() -> None:
    made = problem(work(10, 1.0, kv=100_000), cluster(place("a", 9), place("b", 5)), context=8192, streams=1)
    with pytest.raises(DoesNotFit) as caught:
        plan(made, variants={"4-bit": work(10, 0.5, kv=1000)})
    message, hint = caught.value.message, caught.value.hint or ""
    assert "the nearest miss lacks" in message
    assert "the 4-bit variant" in hint
    context = int(hint.split("--context ")[1].split()[0].rstrip(",."))
    assert context < 8192
    assert fits(plan(replace(made, context=context)))


def test_what_is_said_to_be_missing_is_what_is_missing() -> None:
    made = problem(work(10, 1.0), cluster(place("a", 6), place("b", 4)))
    with pytest.raises(DoesNotFit) as caught:
        plan(made)
    words = caught.value.message.split("lacks ")[1].split()
    missing, name = float(words[0]), words[3]

    def larger(by: float) -> Cluster:
        return cluster(place("a", 6 + by * (name == "a")), place("b", 4 + by * (name == "b")))

    assert fits(plan(replace(made, cluster=larger(missing + 0.1))))
    with pytest.raises(DoesNotFit):
        plan(replace(made, cluster=larger(missing - 0.1)))


def test_packed_caches_are_offered_where_engines_can_pack_them() -> None:
    made = problem(work(4, 1.0, kv=150_000), cluster(place("a", 9)), context=4096)
    with pytest.raises(DoesNotFit) as caught:
        plan(made)
    assert "--kv-bits" not in str(caught.value.hint)
    with pytest.raises(DoesNotFit) as caught:
        plan(made, kv_bits=(8,))
    assert "--kv-bits 8" in str(caught.value.hint)
    assert fits(plan(replace(made, work=made.work.with_kv_bits(8))))


def test_fewer_requests_are_offered() -> None:
    made = problem(work(4, 1.0, kv=50_000), cluster(place("a", 9)), context=4096, streams=8)
    with pytest.raises(DoesNotFit, match="for 8 requests at once") as caught:
        plan(made)
    assert "--concurrency" in str(caught.value.hint)
