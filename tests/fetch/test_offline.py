"""Without the internet: neighbours are asked, the hub is not; and what a fetch would cost, by source."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from exo_cli.errors import NotFound, Unavailable
from exo_cli.fetch import swarm
from exo_cli.fetch.around import shared_out
from exo_cli.fetch.ensure import fetch, seek_whole
from exo_cli.fetch.forecast import THIS_MACHINE, look
from exo_cli.fetch.inventory import inventory
from exo_cli.fetch.limit import Limit
from exo_cli.fetch.offline import look_at_neighbours
from exo_cli.fetch.order import Order
from exo_cli.fetch.pieces import PIECE_BYTES, Span
from exo_cli.fetch.spread import Target, assign, sources_of
from exo_cli.fetch.stores import Stores
from exo_cli.fetch.swarm import Peer as Place
from exo_cli.trust.keyring import KeyringSource
from tests.support.fetching import NAME, asked_hub, same, served, total_bytes
from tests.support.hub import COMMIT, Hub
from tests.support.weights import Peer, serving

T = TypeVar("T")
GIVE_UP_S = 120
FILE = "model.safetensors"
SECOND = "model-00002-of-00002.safetensors"
MB = PIECE_BYTES


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return served(tmp_path_factory.mktemp("model") / "served", pieces_a_file=1.5, files=2)


@pytest.fixture
def hub(clean_environment: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with asked_hub(monkeypatch, model) as running:
        yield running


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    return Stores(tmp_path / "weights", hub=tmp_path / "hub")


def holder(path: Path, layers: tuple[int, int] | None) -> Stores:
    """A machine that has these layers, from the hub."""
    made = Stores(path / "weights", hub=path / "hub")
    asyncio.run(fetch(NAME, made, Order(layers=layers)))
    return made


def among(nodes: dict[str, Stores], order: Order, work: Callable[[Order], Awaitable[T]]) -> T:
    """The work, with these for neighbours."""

    async def main() -> T:
        keyring = KeyringSource()
        async with AsyncExitStack() as stack:
            peers = [
                Place(name, "127.0.0.1", await stack.enter_async_context(serving(Peer(each), keyring)))
                for name, each in nodes.items()
            ]
            async with asyncio.timeout(GIVE_UP_S):
                return await work(replace(order, peers=peers, keyring=keyring))

    return asyncio.run(main())


OFFLINE = Order(offline=True)


def test_two_neighbours_and_no_internet(hub: Hub, model: Path, stores: Stores, tmp_path: Path) -> None:
    nodes = {"a": holder(tmp_path / "a", None), "b": holder(tmp_path / "b", (0, 2))}
    hub.clear()
    forecast = among(nodes, OFFLINE, lambda order: look(NAME, stores, order))
    brought = among(nodes, OFFLINE, lambda order: fetch(NAME, stores, order))
    assert same(brought.path, model)
    assert brought.commit == COMMIT
    (share,) = forecast.shares
    assert (share.hub_bytes, share.lacking_bytes) == (0, 0)
    assert set(share.by_source) == {"a", "b"}
    assert share.neighbour_bytes == sum(share.by_source.values())
    assert sum(brought.by_source.values()) <= share.neighbour_bytes
    # What a knows the hub's sums of was compared with them; a second run asks nobody.
    assert [(here.name, here.state) for here in inventory(stores)] == [(NAME, "unverified")]
    (store,) = stores.partials()
    assert all(file.verified for file in store.map.files if file.path.endswith(".safetensors"))
    assert asyncio.run(fetch(NAME, stores, Order())).path == brought.path
    assert hub.requests == []


def test_layers_without_internet(
    hub: Hub, stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swarm, "STARVED_S", 0.5)
    nodes = {"b": holder(tmp_path / "b", (1, 3))}
    hub.clear()
    layers = replace(OFFLINE, layers=(1, 2))
    assert among(nodes, layers, lambda order: fetch(NAME, stores, order)).path.exists()
    # More than the neighbour has.
    more = replace(OFFLINE, layers=(0, 3))
    (share,) = among(nodes, more, lambda order: look(NAME, stores, order)).shares
    assert share.lacking_bytes > 0
    assert share.here_bytes > 0
    assert share.total_bytes == share.here_bytes + share.neighbour_bytes + share.lacking_bytes
    with pytest.raises(Unavailable, match="to be had nowhere"):
        among(nodes, more, lambda order: fetch(NAME, stores, order))
    assert hub.requests == []


@pytest.mark.parametrize("name", ["org/other", f"{NAME}@{'beef' * 10}", "no repository"])
def test_what_no_neighbour_has(hub: Hub, stores: Stores, tmp_path: Path, name: str) -> None:
    nodes = {"b": holder(tmp_path / "b", None)}
    hub.clear()
    works: Sequence[Callable[[Order], Awaitable[object]]] = (
        lambda order: fetch(name, stores, order),
        lambda order: look(name, stores, order),
    )
    for work in works:
        with pytest.raises(NotFound) as caught:
            among(nodes, OFFLINE, work)
        assert ("b does not have it" in caught.value.message) == ("/" in name)
    assert hub.requests == []


def test_a_setting_keeps_the_hub_from_being_asked(
    hub: Hub, stores: Stores, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = {"a": holder(tmp_path / "a", None)}
    hub.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert same(among(nodes, Order(), lambda order: fetch(NAME, stores, order)).path, model)
    assert hub.requests == []


def test_rotten_bytes_of_the_only_neighbour_are_not_kept(
    hub: Hub, model: Path, stores: Stores, tmp_path: Path
) -> None:
    there = holder(tmp_path / "a", None)
    victim = next(there.hub.rglob(SECOND)).resolve()
    data = bytearray(victim.read_bytes())
    data[-9] ^= 2
    victim.write_bytes(data)
    notes: list[str] = []
    with pytest.raises(Unavailable) as caught:
        among({"a": there}, replace(OFFLINE, note=notes.append), lambda order: fetch(NAME, stores, order))
    assert any("it came from a" in note for note in notes)
    assert "to be had nowhere" in caught.value.message
    (store,) = stores.partials()
    assert not store.covers(SECOND, 8, 9)


def test_a_look_says_which_neighbour_gives_what(
    hub: Hub, model: Path, stores: Stores, tmp_path: Path
) -> None:
    """And the fetch then keeps to it: the hub gives what nobody has."""
    nodes = {"a": holder(tmp_path / "a", (0, 2)), "b": holder(tmp_path / "b", (1, 3))}
    hub.clear()
    forecast = among(nodes, Order(), lambda order: look(NAME, stores, order))
    (share,) = forecast.shares
    assert share.node == THIS_MACHINE
    assert share.by_source["hub"] == share.hub_bytes == forecast.hub_bytes > 0
    assert set(share.by_source) == {"hub", "a", "b"}
    assert share.total_bytes == total_bytes(model)
    brought = among(nodes, Order(), lambda order: fetch(NAME, stores, order))
    assert same(brought.path, model)
    assert hub.sent_bytes <= share.hub_bytes + forecast.metadata_bytes
    # Nobody there: all of it from the hub.
    empty = Stores(tmp_path / "w2", hub=tmp_path / "h2")
    (share,) = among({}, Order(), lambda order: look(NAME, empty, order)).shares
    assert set(share.by_source) == {"hub"}


def test_what_the_nodes_know_is_enough_for_a_plan(hub: Hub, model: Path, tmp_path: Path) -> None:
    whole, part = holder(tmp_path / "a", None), holder(tmp_path / "b", (0, 1))
    hub.clear()
    sought = seek_whole(NAME, tmp_path / "nowhere")
    seen = among({"a": whole}, OFFLINE, lambda order: look_at_neighbours(sought, order))
    assert seen is not None
    assert seen.repository.commit == COMMIT
    assert seen.total_bytes == total_bytes(model)
    assert {name for name in seen.repository.files if name.endswith("safetensors")} == set(seen.heads.headers)
    assert among({"b": part}, OFFLINE, lambda order: look_at_neighbours(sought, order)) is not None
    # One that had it from a neighbour that knew no sums.
    bare = Stores(tmp_path / "bare", hub=tmp_path / "none", directories=(model,))
    assert among({"c": bare}, OFFLINE, lambda order: look_at_neighbours(sought, order)) is None
    assert hub.requests == []


def test_a_limit_is_for_neighbours_as_well(
    hub: Hub, stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    nodes = {"a": holder(tmp_path / "a", None)}

    def take(_: Limit, count: int) -> float:
        counted.append(count)
        return 0.0

    monkeypatch.setattr(Limit, "take", take)
    order = replace(OFFLINE, limit_bytes_per_s=1_000_000)
    brought = among(nodes, order, lambda given: fetch(NAME, stores, given))
    assert sum(brought.by_source.values()) == sum(counted)
    # A request each, so that nobody is kept waiting in the middle of one.
    assert max(counted) <= PIECE_BYTES


def test_bytes_are_shared_out_among_those_that_have_them() -> None:
    gaps = [Span(FILE, 0, 6 * MB)]
    both = {"a": [Span(FILE, 0, 6 * MB)], "b": [Span(FILE, 0, 6 * MB)]}
    assert shared_out(gaps, both) == ({"a": 3 * MB, "b": 3 * MB}, 0)
    some = {"a": [Span(FILE, 0, 100)], "b": [Span(FILE, 50, MB)], "c": []}
    found, nobodys = shared_out(gaps, some)
    assert nobodys == 5 * MB
    assert found["a"] + found["b"] == MB
    assert found["a"] in (50, 100)
    assert shared_out([], both) == ({}, 0)


def test_a_plan_names_the_source_of_every_byte() -> None:
    def target(name: str, *spans: tuple[int, int]) -> Target:
        return Target(name, "h", 1, None, tuple(Span(FILE, *each) for each in spans))

    targets = [target(name, (0, 6 * MB)) for name in "ab"]
    held = {"c": [Span(FILE, 0, 2 * MB)], "a": [Span(FILE, 0, MB)]}
    driver = {"driver": [Span(FILE, 5 * MB, 6 * MB)]}
    somebody = [span for spans in (*held.values(), *driver.values()) for span in spans]
    assignments = assign(targets, held, somebody)
    found = sources_of(assignments, held, driver, hub=True)
    for each in assignments:
        by_source, nobodys = found[each.target.name]
        assert nobodys == 0
        assert by_source.pop("hub", 0) == each.hub_bytes
        assert sum(by_source.values()) == each.neighbour_bytes
        assert by_source["driver"] == MB
    assert sum(each.hub_bytes for each in assignments) == 3 * MB
    # What one brings, the other gets from it; without the hub, from nobody.
    assert found["a"][0].keys() == {"b", "c", "driver"}
    assert [nobodys for _, nobodys in sources_of(assignments, held, driver, hub=False).values()] == [
        3 * MB
    ] * 2
