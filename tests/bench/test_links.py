"""The ways between real nodes of this process on the loopback, over the real transport."""

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from exo_cli import config
from exo_cli.bench import links as module
from exo_cli.bench.here import this_machine
from exo_cli.bench.links import Found, found, measure_links
from exo_cli.cluster import facts
from exo_cli.cluster.facts import Accelerator
from exo_cli.cluster.links import LinkMeter
from exo_cli.cluster.lookout import LookoutOptions
from exo_cli.cluster.node import NodeHost, NodeOptions
from exo_cli.cluster.pairs import Pair
from exo_cli.cluster.topology_file import TopologyFile
from exo_cli.errors import Unavailable
from exo_cli.schemas.bench import LinkFigure, Links
from exo_cli.schemas.topology import Link, Topology
from exo_cli.trust.keyring import KeyringSource
from tests.support.loopback import bound_socket
from tests.support.nodes import serving
from tests.support.records import link, node


@pytest.fixture(autouse=True)
def no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "probe_accelerator", lambda: Accelerator(backend="none"))


def by_names(result: Links) -> dict[tuple[str, str], LinkFigure]:
    return {(each.from_node, each.to_node): each for each in result.links}


def test_every_ordered_pair_is_measured_in_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh: list[float] = []
    way_to = LinkMeter.way_to

    async def noted(self: Any, *arguments: Any, **options: Any) -> Any:
        fresh.append(options["max_age_s"])
        return await way_to(self, *arguments, **options)

    monkeypatch.setattr(LinkMeter, "way_to", noted)

    async def scene() -> Links:
        source = KeyringSource()
        async with serving(source, "a") as a, serving(source, "b") as b, serving(source, "c") as c:
            nodes = [each.me.record() for each in (a, b, c)]
            steps: list[tuple[int, int]] = []
            made = await measure_links(nodes, source, rounds=2, on_progress=lambda *step: steps.append(step))
            assert steps[-1] == (12, 12)
            assert steps == sorted(steps)
            return made

    made = asyncio.run(scene())
    figures = by_names(made)
    assert set(figures) == set(itertools.permutations("abc", 2))
    for figure in figures.values():
        assert (figure.rounds, figure.failed, figure.error) == (2, 0, None)
        assert (figure.kind, figure.address) == ("loopback", "127.0.0.1")
        assert figure.rtt_us_p50 is not None
        assert figure.rtt_us_low is not None
        assert figure.rtt_us_high is not None
        assert figure.rtt_us_p99 is not None
        assert 0 <= figure.rtt_us_low <= figure.rtt_us_p50 <= figure.rtt_us_high
        assert figure.rtt_us_p50 <= figure.rtt_us_p99
        assert figure.bytes_per_s is not None
        assert figure.bytes_per_s_low is not None
        assert figure.bytes_per_s_high is not None
        assert 0 <= figure.bytes_per_s_low <= figure.bytes_per_s <= figure.bytes_per_s_high
    # Nothing that was remembered: each of the rounds asked anew.
    assert set(fresh) == {0.0}
    assert len(fresh) == 12
    assert msgspec.json.decode(msgspec.json.encode(made), type=Links) == made


def test_a_node_that_is_gone_has_reasons_for_figures_and_is_not_waited_for_in_each_round() -> None:
    async def scene() -> Links:
        source = KeyringSource()
        with bound_socket() as held:
            gone = node("f" * 32, name="gone", endpoint=f"127.0.0.1:{held.getsockname()[1]}", host="m" * 16)
            async with serving(source, "a") as a, serving(source, "b") as b:
                return await measure_links([a.me.record(), b.me.record(), gone], source, rounds=4)

    figures = by_names(asyncio.run(scene()))
    assert (figures["a", "b"].rounds, figures["a", "b"].error) == (4, None)
    for way in (("a", "gone"), ("gone", "b")):
        assert (figures[way].rounds, figures[way].failed) == (0, module.FAILURES)
        assert figures[way].error
        assert figures[way].bytes_per_s is None
        assert figures[way].rtt_us_p50 is None


def scripted(
    monkeypatch: pytest.MonkeyPatch, answer: Callable[[int], dict[str, Any]], rounds: int
) -> LinkFigure:
    """What comes of the answers to one pair."""
    numbers = itertools.count()

    async def told(pair: Pair, source: KeyringSource, *, fresh: bool) -> Link:
        number = next(numbers) if pair.source.id == "a" else 0
        return link(pair.source.id, pair.target.id, **answer(number))

    monkeypatch.setattr(module.asked, "link", told)  # type: ignore[attr-defined]
    made = asyncio.run(measure_links([node("a"), node("b", host="h2")], KeyringSource(), rounds=rounds))
    return made.links[0]


def test_figures_are_medians_with_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    rates, trips = [4e9, 5e9, 4.2e9, 9e9, 4.1e9], [100.0, 90.0, 300.0, 95.0, 98.0]
    figure = scripted(
        monkeypatch,
        lambda number: {
            "bytes_per_s": rates[number],
            "rtt_us_p50": trips[number],
            "rtt_us_p99": 2 * trips[number],
            "interface": "en5" if number else "en0",
        },
        5,
    )
    assert (figure.bytes_per_s, figure.rtt_us_p50, figure.rtt_us_p99) == (4.2e9, 98.0, 196.0)
    assert figure.bytes_per_s_low is not None
    assert figure.bytes_per_s_high is not None
    assert figure.bytes_per_s_low < 4e9
    assert figure.bytes_per_s_high > 5e9
    assert figure.interface == "en5"


def test_one_round_has_no_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = scripted(monkeypatch, lambda number: {}, 1)
    assert figure.bytes_per_s == 4e9
    assert (figure.bytes_per_s_low, figure.rtt_us_high) == (None, None)


def test_a_round_that_fails_now_and_then_is_counted_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing: dict[str, Any] = {"rtt_us_p50": None, "rtt_us_p99": None, "bytes_per_s": None, "error": "busy"}
    figure = scripted(monkeypatch, lambda number: nothing if number in (1, 3) else {}, 6)
    assert (figure.rounds, figure.failed, figure.error) == (4, 2, "busy")
    assert figure.bytes_per_s == 4e9


@pytest.mark.parametrize(("count", "said"), [(0, "no node answers"), (1, "one node has no link")])
def test_what_has_no_links_says_so(count: int, said: str) -> None:
    nodes = [node(f"n{number}") for number in range(count)]
    with pytest.raises(Unavailable, match=said):
        asyncio.run(measure_links(nodes, KeyringSource(), rounds=1))


# -- who is there ----------------------------------------------------------------------------------


def looked(tmp_path: Path, act: Callable[[Found], None]) -> None:
    """With one real node that is found by the file alone, as on another subnet."""

    async def scene() -> None:
        options = NodeOptions(
            role="shard", nodes_dir=config.nodes_dir(), topology=tmp_path / "own.json", name="there"
        )
        host = NodeHost(options, KeyringSource())
        await host.start()
        try:
            where = LookoutOptions(nodes_dir=config.nodes_dir(), topology=config.topology_path())
            async with found(where, KeyringSource(), listen_s=1.0) as who:
                act(who)
        finally:
            await host.stop(0)

    asyncio.run(scene())


def test_nodes_are_found_and_the_topology_is_left_as_it_is(tmp_path: Path) -> None:
    gone = node("f" * 32, name="gone", endpoint="127.0.0.1:9", seen=1)
    TopologyFile(config.topology_path()).update(lambda _: Topology(nodes=(gone,)))
    before = config.topology_path().read_bytes()
    looked(tmp_path, lambda who: names_are(who, ["there"]))
    assert config.topology_path().read_bytes() == before


def names_are(who: Found, names: list[str]) -> None:
    assert [each.name for each in who.nodes] == names
    assert who.unreached == ()


def test_this_machine_is_an_end_where_it_runs_no_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "host_id", lambda: "another machine")

    def two(who: Found) -> None:
        assert len(who.nodes) == 2
        assert who.nodes[0].name == "there"
        assert who.nodes[1].role == "announce"

    looked(tmp_path, two)
    assert not config.topology_path().exists()


def test_this_machine_is_measured_both_ways_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # As if it were the nodes' machine, so that the loopback leads from one to the other.
    monkeypatch.setattr(facts, "host_id", lambda: "m" * 16)

    async def scene() -> Links:
        source = KeyringSource()
        async with serving(source, "a") as a, this_machine(source) as here:
            made = await measure_links([a.me.record(), here], source, rounds=1)
        with pytest.raises(Unavailable):
            await measure_links([], source, rounds=1)
        return made

    there, back = asyncio.run(scene()).links
    assert (there.from_node, there.rounds, there.error) == ("a", 1, None)
    assert (back.to_node, back.rounds, back.error) == ("a", 1, None)
    assert not (config.nodes_dir() / there.to_node).exists()
