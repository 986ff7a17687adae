"""What is advised: each reason by itself, what is never advised, and how many lines."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings

from exo_cli.cluster.advice import MOST_LINES, Advice, advise, names
from exo_cli.schemas.topology import Link, Node, NodeState, Topology
from tests.support import topologies as make
from tests.support.topologies import EXAMPLES, any_topology


def of(nodes: list[Node], *links: Link) -> tuple[Advice, ...]:
    return advise(Topology(nodes=tuple(nodes), links=links))


def small(name: str, *ports: str, host: str | None = None) -> Node:
    """A node whose memory gives no reason for a line."""
    return make.node(name, backend="cpu", limit=None, host=host, ports=ports)  # type: ignore[arg-type]


def test_names_are_told_apart() -> None:
    a, b = make.node("twin", id="aaaaaaaa-1"), make.node("twin", id="bbbbbbbb-1")
    assert list(names(Topology(nodes=(a, b, make.node("", id="cccccccc-1")))).values()) == [
        "twin (aaaaaaaa)", "twin (bbbbbbbb)", "cccccccc",
    ]  # fmt: skip


# -- Wi-Fi -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mine", "theirs", "cable"),
    [
        (
            ("wifi", "thunderbolt"),
            ("thunderbolt", "ethernet"),
            "A Thunderbolt cable between a and b: typically",
        ),
        (("wifi", "ethernet"), ("ethernet",), "An Ethernet cable between a and b, or both on one switch"),
        (
            ("wifi", "thunderbolt"),
            ("ethernet",),
            "An Ethernet cable between a and b (an adapter on a if no port is free)",
        ),
        (("wifi",), ("wifi",), "(an adapter on a and b if no port is free)"),
    ],
)
def test_wifi_names_the_cable_for_the_ports(
    mine: tuple[str, ...], theirs: tuple[str, ...], cable: str
) -> None:
    a, b = small("a", *mine), small("b", *theirs)
    (line,) = of([a, b], make.link(a, b, 0.04, 5, p99_ms=54, kind="wifi"), make.link(b, a, 0.05))
    assert line.about == "a <-> b"
    assert line.seen == "Wi-Fi at 40.0 MB/s, round trips up to 54 ms"
    assert cable in line.do


def test_a_gain_has_a_source_and_is_no_promise() -> None:
    a, b = small("a", "thunderbolt"), small("b", "thunderbolt")
    (line,) = of([a, b], make.link(a, b, 0.04, kind="wifi"))
    assert "typically" in line.do
    assert "field reports" in line.do


def test_one_machine_on_wifi_is_one_line() -> None:
    book = small("book", "wifi", "thunderbolt")
    others = [small("x", "ethernet"), small("y", "thunderbolt"), small("z", "ethernet")]
    links = [make.link(book, other, 0.03 + 0.01 * index, kind="wifi") for index, other in enumerate(others)]
    (line,) = of([book, *others], *links)
    assert line.about == "book"
    assert line.seen.startswith("Wi-Fi to 3 nodes at 30.0 MB/s to 50.0 MB/s")
    assert "Thunderbolt cable between book and y" in line.do


# -- Ethernet --------------------------------------------------------------------------------------


def test_a_gigabit_line_is_recognised() -> None:
    a, b = small("a", "ethernet"), small("b", "ethernet")
    (line,) = of([a, b], *make.both(a, b, 0.112))
    assert line == Advice(
        "a <-> b",
        "Ethernet at 0.11 GB/s: a 1 Gbit/s line",
        "Faster ports, cable and switch: 2.5 Gbit/s gives about 0.29 GB/s, 10 Gbit/s about 1.17 GB/s "
        "(line rates).",
    )


def test_thunderbolt_ports_beside_a_gigabit_line_are_used() -> None:
    a, b = small("a", "ethernet", "thunderbolt"), small("b", "ethernet", "thunderbolt")
    (line,) = of([a, b], *make.both(a, b, 0.112))
    assert "Thunderbolt cable between a and b" in line.do


def test_a_hundred_megabit_line_is_a_fault() -> None:
    a, b = small("a", "ethernet"), small("b", "ethernet")
    (line,) = of([a, b], *make.both(a, b, 0.0118))
    assert "100 Mbit/s" in line.seen
    assert "damaged cable" in line.do


def test_a_switch_is_one_line() -> None:
    nodes = [small(name, "ethernet") for name in "abcde"]
    links = [make.link(a, b, 0.112) for a in nodes for b in nodes if a is not b]
    (line,) = of(nodes, *links)
    assert line.about == "a, b, c and 2 more"
    assert "between 10 pairs of them" in line.seen


def test_ten_gigabit_needs_nothing() -> None:
    a, b = small("a", "ethernet"), small("b", "ethernet")
    assert of([a, b], *make.both(a, b, 1.1)) == ()


# -- directions and steadiness ---------------------------------------------------------------------


def test_one_slow_direction_is_named() -> None:
    a, b = small("a", "ethernet"), small("b", "ethernet")
    (line,) = of([a, b], make.link(a, b, 0.9), make.link(b, a, 0.2))
    assert (line.about, line.seen) == ("b -> a", "0.20 GB/s, but 0.90 GB/s in the other direction")
    assert of([a, b], make.link(a, b, 0.9), make.link(b, a, 0.4)) == ()


def test_a_missing_direction_is_named() -> None:
    a, b = small("a", "ethernet"), small("b", "ethernet")
    (line,) = of([a, b], make.link(a, b, 0.9), make.blocked(b, a, "connection refused"))
    assert line.about == "b -> a"
    assert line.seen == "this direction is missing (connection refused); a -> b works at 0.90 GB/s"
    assert a.endpoint in line.do


def test_a_firewall_is_one_line() -> None:
    wall = small("wall", "ethernet")
    others = [small(name, "ethernet") for name in "abc"]
    links = [
        link
        for other in others
        for link in (make.link(wall, other, 1), make.blocked(other, wall, "timed out"))
    ]
    (line,) = of([wall, *others], *links)
    assert line.about == "a, b and c -> wall"
    (line,) = of(
        [wall, *others],
        *(make.link(x, wall, 1) for x in others),
        *(make.blocked(wall, x, "timed out") for x in others),
    )
    assert line.about == "wall -> a, b and c"


def test_no_way_at_all_is_named() -> None:
    a, b = small("a", "ethernet"), small("b", "ethernet")
    (line,) = of([a, b], make.blocked(a, b, "timed out"), make.blocked(b, a, "timed out"))
    assert (line.about, line.seen) == ("a <-> b", "no way in either direction: timed out")
    assert "exo discover --explain" in line.do


def test_unsteady_round_trips_are_named() -> None:
    a, b = small("a", "ethernet"), small("b", "ethernet")
    (line,) = of([a, b], make.link(a, b, 1.0, 0.5, p99_ms=40))
    assert line.seen == "round trips of 0.50 ms jump to 40 ms"
    assert "power saving" in line.do
    # A scheduler's hiccup on a fast link is no reason.
    assert of([a, b], make.link(a, b, 1.0, 0.1, p99_ms=2)) == ()


# -- never -----------------------------------------------------------------------------------------


def test_one_machine_needs_no_cable() -> None:
    a, b = small("a", "ethernet", host="h"), small("b", "ethernet", host="h")
    assert of([a, b], make.link(a, b, 0.04, 5, p99_ms=80, kind="wifi"), make.blocked(b, a, "refused")) == ()


def test_the_transport_is_no_cables_fault() -> None:
    a, b = small("a", "wifi", "ethernet"), small("b", "wifi", "ethernet")
    assert of([a, b], make.link(a, b, 0.112, transport=True), make.link(b, a, 0.112, transport=True)) == ()
    assert of([a, b], make.link(a, b, 0.04, kind="wifi", transport=True)) == ()
    assert of([a, b], make.link(a, b, 0.9), make.link(b, a, 0.2, transport=True)) == ()


@pytest.mark.parametrize("state", ["dead", "suspect"])
def test_the_silent_need_no_cable(state: NodeState) -> None:
    a, b = small("a", "ethernet"), make.node("b", state=state, ram=64, limit=48, free=40)
    assert of([a, b], *make.both(a, b, 0.04, kind="wifi")) == ()


# -- memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ram", "limit", "free", "wired_limit_mb"),
    [
        (64, 48, 60, 57_344),
        (256, 192, 231, 235_929),
        (24, 18, 21.4, None),  # what must stay with the system leaves nothing to raise
        (64, 48, 40, None),  # the limit is not what is smallest
        (64, 48, 48.5, None),  # not by a clear margin
        (64, 64, 60, None),
    ],
)
def test_the_limit_of_a_mac(ram: float, limit: float, free: float, wired_limit_mb: int | None) -> None:
    lines = of([make.node("mac", ram=ram, limit=limit, free=free)])
    if wired_limit_mb is None:
        assert lines == ()
        return
    (line,) = lines
    assert f"`sudo sysctl iogpu.wired_limit_mb={wired_limit_mb}`" in line.do
    assert "until the machine restarts" in line.do
    reserve = ram * 1024 - wired_limit_mb
    assert reserve >= max(8 * 1024, ram * 1024 // 10)


def test_only_macs_that_work_have_a_limit_to_raise() -> None:
    assert of([make.node("tower", backend="cuda", ram=64, limit=24, free=60)]) == ()
    assert of([make.node("mac", role="announce", ram=64, limit=48, free=60)]) == ()


def test_equal_macs_share_a_line() -> None:
    (line,) = of([make.node(name, ram=64, limit=48, free=60) for name in ("m2", "m1")])
    assert line.about == "m1 and m2"


# -- all together ----------------------------------------------------------------------------------


def test_worst_first_and_memory_is_not_crowded_out() -> None:
    nodes = [make.node(f"n{index}", ram=64, limit=48, free=60, ports=["ethernet"]) for index in range(16)]
    links = []
    for a, b in zip(nodes[::2], nodes[1::2], strict=True):
        links += [make.link(a, b, 0.9), make.link(b, a, 0.01 * (1 + nodes.index(a)), kind="ethernet")]
    links += [make.blocked(nodes[0], nodes[3], "refused"), make.link(nodes[3], nodes[0], 1)]
    lines = of(nodes, *links)
    assert len(lines) == MOST_LINES
    assert lines[0].about == "n0 -> n3"
    assert [line.about for line in lines[1:5]] == ["n1 -> n0", "n3 -> n2", "n5 -> n4", "n7 -> n6"]
    assert "sysctl" in lines[-1].do


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_order_does_not_depend_on_the_files(example: Callable[[], Topology]) -> None:
    topology = example()
    turned = Topology(nodes=topology.nodes[::-1], links=topology.links[::-1])
    assert advise(turned) == advise(topology)


@pytest.mark.parametrize("example", [make.four_macs, make.mixed, make.twelve, make.failing])
def test_our_own_words_are_ascii(example: Callable[[], Topology]) -> None:
    assert all((line.about + line.seen + line.do).isascii() for line in advise(example()))


@settings(max_examples=80, deadline=None)
@given(any_topology())
def test_any_topology_can_be_advised(topology: Topology) -> None:
    lines = advise(topology)
    assert len(lines) <= MOST_LINES
    assert all(line.seen and line.do for line in lines)
