"""Which pairs are measured when, and over which addresses."""

from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exo_cli.cluster.pairs import (
    NEAR_LOOPBACK,
    REUSE_MS,
    Pair,
    addresses_to,
    join_endpoint,
    limited_by_transport,
    split_endpoint,
    startable,
    wanted,
)
from exo_cli.schemas.topology import Address, Topology
from tests.support.records import link, node

NOW = 10**12


def pairs_of(topology: Topology, *, fresh: bool = False) -> list[tuple[str, str]]:
    return [(pair.source.id, pair.target.id) for pair in wanted(topology, NOW, fresh=fresh)]


_PLACES = st.lists(st.integers(0, 4), min_size=0, max_size=6)


@settings(deadline=None)
@given(_PLACES, st.randoms(use_true_random=False))
def test_no_machine_measures_twice_at_a_time_and_all_is_measured(hosts: list[int], random: Random) -> None:
    nodes = tuple(node(str(number), host=f"h{host}") for number, host in enumerate(hosts))
    waiting = wanted(Topology(nodes=nodes), NOW)
    assert len(waiting) == len(nodes) * max(0, len(nodes) - 1)
    running: list[Pair] = []
    done: list[Pair] = []
    while waiting or running:
        for pair in startable(waiting, running):
            waiting.remove(pair)
            running.append(pair)
        busy = [host for pair in running for host in pair.hosts]
        assert len(busy) == len(set(busy))
        assert running, "nothing runs and nothing may start"
        done.append(running.pop(random.randrange(len(running))))
    assert {(pair.source.id, pair.target.id) for pair in done} == {
        (one.id, other.id) for one in nodes for other in nodes if one is not other
    }
    assert len(done) == len(nodes) * max(0, len(nodes) - 1)


def test_pairs_of_other_machines_run_at_once() -> None:
    nodes = tuple(node(name, host=name) for name in "abcd")
    first = startable(wanted(Topology(nodes=nodes), NOW), [])
    assert [(pair.source.id, pair.target.id) for pair in first] == [("a", "b"), ("c", "d")]


@pytest.mark.parametrize(
    ("known", "measured_again"),
    [
        (link("a", "b", measured=NOW), False),
        (link("a", "b", measured=NOW - REUSE_MS + 1), False),
        (link("a", "b", measured=NOW - REUSE_MS), True),
        (link("a", "b", measured=NOW + 1), True),
        (link("a", "b", measured=NOW, boot=2), True),
        (link("a", "b", measured=NOW, error="refused", bytes_per_s=None), True),
        (link("b", "a", measured=NOW), True),
    ],
    ids=["young", "nearly-old", "old", "of-the-future", "before-a-restart", "without-a-figure", "other-way"],
)
def test_a_figure_is_used_for_ten_minutes_of_one_run(known: object, measured_again: bool) -> None:
    assert REUSE_MS == 10 * 60 * 1000
    topology = Topology(nodes=(node("a", host="1"), node("b", host="2")), links=(known,))  # type: ignore[arg-type]
    assert (("a", "b") in pairs_of(topology)) == measured_again
    assert set(pairs_of(topology, fresh=True)) == {("a", "b"), ("b", "a")}


def test_only_nodes_that_answer_are_measured() -> None:
    nodes = tuple(node(state, state=state) for state in ("ready", "draining", "suspect", "dead"))
    assert set(pairs_of(Topology(nodes=nodes))) == {("ready", "draining"), ("draining", "ready")}


def _far(host: str, *addresses: tuple[str, str], endpoint: str = "10.0.0.2:7") -> object:
    return node(
        "far",
        host=host,
        endpoint=endpoint,
        addresses=tuple(Address(interface="x", kind=kind, ip=ip) for kind, ip in addresses),  # type: ignore[arg-type]
    )


def test_what_led_us_there_comes_first_then_cables_then_air() -> None:
    target = _far(
        "h2",
        ("wifi", "192.168.9.2"),
        ("loopback", "127.0.0.1"),
        ("tunnel", "100.64.0.2"),
        ("ethernet", "fd00::2"),
        ("ethernet", "10.0.0.2"),
        ("thunderbolt", "fe80::1%en5"),
        ("thunderbolt", "169.254.7.2"),
    )
    pair = Pair(node("near", host="h1"), target)  # type: ignore[arg-type]
    assert addresses_to(pair, also=["10.9.9.9", "10.0.0.2"]) == [
        (ip, 7)
        for ip in (
            "10.9.9.9",
            "10.0.0.2",
            "169.254.7.2",
            "fd00::2",
            "192.168.9.2",
            "100.64.0.2",
        )
    ]


def test_a_loopback_endpoint_means_nothing_to_another_machine() -> None:
    for endpoint in ("127.0.0.1:7", "127.5.0.1:7", "[::1]:7"):
        target = _far("h2", ("ethernet", "10.0.0.2"), endpoint=endpoint)
        assert addresses_to(Pair(node("near", host="h1"), target)) == [("10.0.0.2", 7)]  # type: ignore[arg-type]


def test_nodes_of_one_machine_try_loopback_first() -> None:
    target = _far("h1", ("ethernet", "10.0.0.2"), ("loopback", "127.0.0.1"), endpoint="[fd00::1]:7")
    found = addresses_to(Pair(node("near", host="h1"), target))  # type: ignore[arg-type]
    assert found == [("127.0.0.1", 7), ("fd00::1", 7), ("10.0.0.2", 7)]


@pytest.mark.parametrize(
    ("endpoint", "parts"),
    [
        ("10.0.0.1:52416", ("10.0.0.1", 52416)),
        ("[::1]:1", ("::1", 1)),
        ("[fe80::1%en5]:52416", ("fe80::1%en5", 52416)),
        ("studio.local:80", ("studio.local", 80)),
        ("unix:/tmp/a b:c/node:7", ("unix:/tmp/a b:c/node", 7)),
    ],
)
def test_endpoints_go_both_ways(endpoint: str, parts: tuple[str, int]) -> None:
    assert split_endpoint(endpoint) == parts
    assert join_endpoint(*parts) == endpoint


@pytest.mark.parametrize("figure", [0.5, NEAR_LOOPBACK - 0.01, NEAR_LOOPBACK, 1.0, 2.0])
def test_a_figure_near_the_slower_loopback_is_the_transports(figure: float) -> None:
    nodes = {
        "a": node("a", loopback_bytes_per_s=2e9),
        "b": node("b", loopback_bytes_per_s=1e9),
        "c": node("c"),
    }
    assert limited_by_transport(link("a", "b", bytes_per_s=figure * 1e9), nodes) == (figure >= NEAR_LOOPBACK)
    assert not limited_by_transport(link("a", "c", bytes_per_s=9e9), nodes)
    assert not limited_by_transport(link("a", "z", bytes_per_s=9e9), nodes)
    assert not limited_by_transport(
        msgspec.structs.replace(link("a", "b"), bytes_per_s=None, error="blocked"), nodes
    )
