"""Merging: counters decide, an equal pair is judged anew, and the order of news does not matter."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo_cli.cluster.merge import DEAD_KEPT_MS, merge, merge_links, merge_nodes
from exo_cli.schemas.topology import Link, Node, Topology
from tests.support.records import link, node

NOW = 10**12
IDS = "abcd"


def _by_id(topology: Topology) -> dict[str, Node]:
    return {node.id: node for node in topology.nodes}


# What a node says is decided by its counters, so two records with equal counters say the same.
_KNOWN = st.builds(
    lambda id, boot, seq, seen: node(id, boot=boot, seq=seq, seen=NOW - seen, endpoint=f"{boot}.{seq}"),
    st.sampled_from(IDS),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 1000),
)


@st.composite
def _topologies(draw: st.DrawFn) -> Topology:
    nodes = merge_nodes((), draw(st.lists(_KNOWN, max_size=6)))
    ids = [node.id for node in nodes]
    links = []
    for from_, to in (
        draw(st.lists(st.permutations(ids).map(lambda p: p[:2]), max_size=6)) if len(ids) > 1 else []
    ):
        boot, seq = draw(st.integers(1, 3)), draw(st.integers(1, 3))
        links.append(
            link(from_, to, boot=boot, seq=seq, measured=draw(st.integers(0, 9)), rtt_us_p50=boot + seq / 10)
        )
    return Topology(nodes=nodes, links=merge_links((), links))


def _join(one: Topology, other: Topology) -> Topology:
    return merge(one, other.nodes, other.links, now_unix_ms=NOW)


def _without_times(topology: Topology) -> Topology:
    return msgspec.structs.replace(
        topology,
        nodes=tuple(msgspec.structs.replace(node, seen_unix_ms=0) for node in topology.nodes),
        links=tuple(msgspec.structs.replace(link, measured_unix_ms=0) for link in topology.links),
    )


@given(_topologies(), _topologies())
def test_the_same_news_twice_changes_nothing_more(one: Topology, other: Topology) -> None:
    joined = _join(one, other)
    assert _join(one, one) == one
    assert _join(joined, other) == joined


@given(_topologies(), _topologies())
def test_order_does_not_matter(one: Topology, other: Topology) -> None:
    assert _without_times(_join(one, other)) == _without_times(_join(other, one))


@given(_topologies(), _topologies(), _topologies())
def test_grouping_does_not_matter(one: Topology, two: Topology, three: Topology) -> None:
    assert _join(_join(one, two), three) == _join(one, _join(two, three))


@given(_topologies(), _topologies())
def test_counters_never_fall_and_nothing_is_lost(one: Topology, other: Topology) -> None:
    after = _join(one, other)
    for before in (one, other):
        for known in before.nodes:
            found = _by_id(after)[known.id]
            assert (found.boot, found.seq) >= (known.boot, known.seq)
        pairs = {(link.from_, link.to): link for link in after.links}
        for measured in before.links:
            found_link = pairs[measured.from_, measured.to]
            assert (found_link.boot, found_link.seq) >= (measured.boot, measured.seq)


@pytest.mark.parametrize(
    ("old", "new", "winner"),
    [
        ((1, 5), (1, 6), "new"),
        ((1, 5), (1, 4), "old"),
        ((1, 900), (2, 1), "new"),
        ((2, 1), (1, 900), "old"),
        ((1, 5), (1, 5), "new"),
    ],
)
def test_which_record_stands(old: tuple[int, int], new: tuple[int, int], winner: str) -> None:
    known = node("a", boot=old[0], seq=old[1], endpoint="old")
    incoming = node("a", boot=new[0], seq=new[1], endpoint="new")
    assert merge_nodes([known], [incoming])[0].endpoint == winner
    one = link("a", "b", boot=old[0], seq=old[1], address="old")
    other = link("a", "b", boot=new[0], seq=new[1], address="new")
    assert merge_links([one], [other])[0].address == winner


def test_a_judgement_without_news_changes_the_state_and_keeps_the_newer_time() -> None:
    known = node("a", seq=7, seen=2000)
    (after,) = merge_nodes([known], [node("a", seq=7, seen=1000, state="suspect")])
    assert (after.state, after.seen_unix_ms) == ("suspect", 2000)
    (refuted,) = merge_nodes([after], [node("a", seq=8, seen=2500)])
    assert (refuted.state, refuted.seen_unix_ms) == ("ready", 2500)


def test_a_late_verdict_does_not_bury_who_has_spoken_since() -> None:
    (after,) = merge_nodes([node("a", seq=8)], [node("a", seq=7, state="dead")])
    assert after.state == "ready"


def test_who_has_gone_is_gone_with_its_links() -> None:
    old = Topology(generation=4, nodes=(node("a"), node("b")), links=(link("a", "b"), link("b", "a")))
    after = merge(old, [node("c"), node("b", seq=9)], [link("a", "c")], gone={"b"}, now_unix_ms=NOW)
    assert list(_by_id(after)) == ["a", "c"]
    assert [(found.from_, found.to) for found in after.links] == [("a", "c")]
    assert after.generation == 4


def test_a_link_to_a_node_that_is_not_there_is_dropped() -> None:
    after = merge(Topology(nodes=(node("a"),)), [], [link("a", "x"), link("x", "a")], now_unix_ms=NOW)
    assert after.links == ()


def test_the_dead_are_forgotten_after_a_day_and_nobody_else_is() -> None:
    long_ago = NOW - DEAD_KEPT_MS - 1
    old = Topology(
        nodes=(
            node("old-dead", state="dead", seen=long_ago),
            node("dead", state="dead", seen=NOW - DEAD_KEPT_MS),
            node("old-ready", seen=long_ago),
            node("from-tomorrow", state="dead", seen=NOW + DEAD_KEPT_MS),
        ),
        links=(link("old-dead", "dead"),),
    )
    after = merge(old, [], [], now_unix_ms=NOW)
    assert list(_by_id(after)) == ["dead", "from-tomorrow", "old-ready"]
    assert after.links == ()


def test_two_nodes_may_share_a_name() -> None:
    after = merge(Topology(), [node("2", name="mac"), node("1", name="mac")], [], now_unix_ms=NOW)
    assert [(found.name, found.id) for found in after.nodes] == [("mac", "1"), ("mac", "2")]


def test_the_last_of_several_records_in_one_batch_is_not_special() -> None:
    batch = [node("a", seq=3), node("a", seq=9), node("a", seq=5)]
    assert [found.seq for found in merge_nodes([], batch)] == [9]


@given(_topologies())
def test_links_are_sorted_and_one_a_pair(one: Topology) -> None:
    pairs = [(found.from_, found.to) for found in merge_links((), (*one.links, *reversed(one.links)))]
    assert pairs == sorted(set(pairs))


def test_an_equal_measurement_keeps_the_newer_time() -> None:
    found: tuple[Link, ...] = merge_links([link("a", "b", measured=9)], [link("a", "b", measured=3)])
    assert found[0].measured_unix_ms == 9
