"""Nodes of one test process, each with stores of its own, that get a model together."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from exo_cli.errors import BadData, ExoError, NotFound, Unavailable
from exo_cli.fetch import swarm
from exo_cli.fetch.aside import in_thread
from exo_cli.fetch.ensure import ensure, fetch, seek_whole
from exo_cli.fetch.hub import HubModel, Look
from exo_cli.fetch.node_fetch import NodeFetch
from exo_cli.fetch.order import Order
from exo_cli.fetch.pieces import PIECE_BYTES, Span
from exo_cli.fetch.spread import Target, ask_all, assign, request_of
from exo_cli.fetch.stores import Stores
from exo_cli.fetch.swarm import Peer as Place
from exo_cli.models.directory import ModelDirectory
from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.status import abort
from tests.support.fetching import NAME, asked_hub, same, served, total_bytes
from tests.support.hub import Hub
from tests.support.weights import Peer, serving

GIVE_UP_S = 120
FILE = "model.safetensors"
MB = PIECE_BYTES


class Node(Peer):
    """A peer that can be told to fetch."""

    def __init__(self, stores: Stores, **twisted: Any) -> None:
        super().__init__(stores, **twisted)
        self.stores = stores

    async def Fetch(self, request: pb.FetchRequest, context: Any) -> None:
        try:
            async for event in NodeFetch(self.stores, KeyringSource())(request):
                await context.write(event)
        except ExoError as error:
            await abort(context, error)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return served(tmp_path_factory.mktemp("model") / "served", pieces_a_file=2.5, files=3)


@pytest.fixture
def hub(clean_environment: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with asked_hub(monkeypatch, model) as running:
        yield running


def stores(path: Path) -> Stores:
    return Stores(path / "weights", hub=path / "hub")


async def looked(of: Stores) -> Look:
    sought = seek_whole(NAME, of.hub)

    def work(stopped: Any) -> Look:
        made = HubModel(sought, of, Order().pace(stopped))
        found = made.look()
        with made.store(found):
            return found

    return await in_thread(work)


@dataclass
class Told:
    errors: list[str]

    def __call__(self, target: Target, event: pb.FetchEvent) -> None:
        if event.error:
            self.errors.append(event.error)


async def spread(
    tmp_path: Path, nodes: Sequence[Node], layers: Sequence[tuple[int, int] | None], *, hub: bool = True
) -> tuple[list[pb.FetchEvent | ExoError], list[str]]:
    """What `exo fetch --plan` does, with servers of this process; the driver has the headers alone."""
    from exo_cli.fetch.keeping import wanted_of

    keyring, told = KeyringSource(), Told([])
    own = stores(tmp_path / "driver")
    seen = await looked(own)
    directory = seen.heads.directory(tmp_path)
    async with AsyncExitStack() as stack:
        driver = await stack.enter_async_context(serving(Peer(own), keyring))
        ports = [await stack.enter_async_context(serving(node, keyring)) for node in nodes]
        targets = [
            Target(f"n{number}", "127.0.0.1", port, each, tuple(wanted_of(directory, each, 4)))
            for number, (port, each) in enumerate(zip(ports, layers, strict=True))
        ]
        jobs = []
        for each in assign(targets, {}):
            others = [f"{other.name}=127.0.0.1:{other.port}" for other in targets if other != each.target]
            request = request_of(
                each,
                seen.repository,
                seen.heads.digest,
                [f"driver=127.0.0.1:{driver}", *others],
                hub=hub,
                limit_bytes_per_s=None,
            )
            jobs.append((each.target, request))
        async with asyncio.timeout(GIVE_UP_S):
            return await ask_all(jobs, keyring, told), told.errors


def test_three_nodes_ask_the_hub_once(hub: Hub, model: Path, tmp_path: Path) -> None:
    nodes = [Node(stores(tmp_path / name)) for name in "abc"]
    results, errors = asyncio.run(spread(tmp_path, nodes, [None] * 3))
    assert errors == []
    for result, node in zip(results, nodes, strict=True):
        assert isinstance(result, pb.FetchEvent), result
        assert result.finished
        # Whole and verified: in the hub's cache of each node, where other programs find it.
        assert Path(result.path).parent.parent.parent == node.stores.hub
        assert same(Path(result.path), model)
    assert hub.sent_bytes <= 1.05 * total_bytes(model)


def test_each_stage_gets_its_part(hub: Hub, model: Path, tmp_path: Path) -> None:
    nodes = [Node(stores(tmp_path / name)) for name in "ab"]
    results, _ = asyncio.run(spread(tmp_path, nodes, [(0, 2), (2, 4)]))
    assert all(isinstance(result, pb.FetchEvent) and result.finished for result in results), results
    assert hub.sent_bytes <= 1.05 * total_bytes(model)
    for node in nodes:
        (part,) = node.stores.partials()
        assert not part.is_complete
        held = sum(high - low for file in part.map.files for low, high in file.ranges)
        assert held < 0.75 * total_bytes(model)


def test_a_bad_piece_is_thrown_away_and_its_peer_named(hub: Hub, model: Path, tmp_path: Path) -> None:
    def flip(request: pb.WeightsRequest, message: pb.WeightsPiece) -> bool:
        if request.path.endswith("safetensors") and message.offset >= PIECE_BYTES:
            message.data = bytes([message.data[0] ^ 1]) + message.data[1:]
        return True

    good, bad = Node(stores(tmp_path / "good")), Node(stores(tmp_path / "bad"), piece=flip)
    whole = asyncio.run(ensure(NAME, bad.stores))
    asyncio.run(ensure(NAME, good.stores))
    assert same(whole, model)
    hub.clear()
    ours = stores(tmp_path / "ours")
    notes: list[str] = []

    async def main() -> Path:
        keyring = KeyringSource()
        async with serving(good, keyring) as right, serving(bad, keyring) as wrong:
            peers = [Place("right", "127.0.0.1", right), Place("wrong", "127.0.0.1", wrong)]
            order = Order(peers=peers, keyring=keyring, note=notes.append)
            return (await asyncio.wait_for(fetch(NAME, ours, order), GIVE_UP_S)).path

    assert same(asyncio.run(main()), model)
    assert any(note.startswith("wrong sent a bad piece of model-") for note in notes)
    assert not any("right" in note for note in notes)
    # Neighbours have all of it: of the hub only metadata is asked.
    assert hub.sent_bytes < 0.1 * total_bytes(model)


def test_a_peer_whose_disk_is_wrong_is_found_out_by_the_whole_file(
    hub: Hub, model: Path, tmp_path: Path
) -> None:
    """Its digests are those of its bytes; only the hub's sum tells."""
    peer = Node(stores(tmp_path / "peer"))
    path = asyncio.run(ensure(NAME, peer.stores))
    victim = next(path.glob("*00002*.safetensors")).resolve()
    data = bytearray(victim.read_bytes())
    data[PIECE_BYTES + 5] ^= 4
    victim.write_bytes(data)
    hub.clear()
    ours = stores(tmp_path / "ours")
    notes: list[str] = []

    async def main() -> Path:
        keyring = KeyringSource()
        async with serving(peer, keyring) as port:
            order = Order(peers=[Place("rot", "127.0.0.1", port)], keyring=keyring, note=notes.append)
            return (await asyncio.wait_for(fetch(NAME, ours, order), GIVE_UP_S)).path

    assert same(asyncio.run(main()), model)
    assert any("it came from rot" in note for note in notes)


def test_nobody_has_it(hub: Hub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swarm, "STARVED_S", 0.5)
    results, _ = asyncio.run(spread(tmp_path, [Node(stores(tmp_path / "a"))], [None], hub=False))
    assert isinstance(results[0], Unavailable)
    assert "to be had nowhere" in results[0].message
    # What the driver has is kept; with the hub it goes on.
    results, _ = asyncio.run(spread(tmp_path, [Node(stores(tmp_path / "a"))], [None]))
    assert isinstance(results[0], pb.FetchEvent)


def test_a_node_that_may_not_ask_the_hub_asks_none(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the driver thinks that it may."""
    monkeypatch.setattr(swarm, "STARVED_S", 0.5)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    results, _ = asyncio.run(spread(tmp_path, [Node(stores(tmp_path / "a"))], [None]))
    assert isinstance(results[0], Unavailable)
    assert not any(each.range and each.range[0] > PIECE_BYTES for each in hub.requests)


@pytest.mark.parametrize(
    "wrong",
    [
        {"digest": "x"},
        {"name": "../evil"},
        {"revision": "main"},
        {"path": "../evil.safetensors"},
        {"path": "/etc/passwd"},
        {"sha256": "../../x"},
        {"neighbour": "a=example.com:80"},
        {"neighbour": "a=127.0.0.1:0"},
    ],
)
def test_a_driver_is_not_believed(wrong: dict[str, str], tmp_path: Path) -> None:
    model = {"name": NAME, "revision": "0" * 40, "digest": "0" * 64}
    model |= {key: value for key, value in wrong.items() if key in model}
    files = [
        pb.FilePieces(path="config.json", size=2, sha256="1" * 40),
        pb.FilePieces(path=wrong.get("path", FILE), size=100, sha256=wrong.get("sha256", "2" * 64)),
    ]
    request = pb.FetchRequest(
        model=pb.ModelRef(**model), wanted=files, neighbours=[wrong.get("neighbour", "a=127.0.0.1:9")]
    )

    async def main() -> None:
        async for _ in NodeFetch(stores(tmp_path), KeyringSource())(request):
            pass

    with pytest.raises(BadData):
        asyncio.run(main())
    assert not (tmp_path / "weights").exists() or not list((tmp_path / "weights").iterdir())


def test_without_neighbours_there_are_no_headers(tmp_path: Path) -> None:
    files = [
        pb.FilePieces(path="config.json", size=2, sha256="1" * 40),
        pb.FilePieces(path=FILE, size=100, sha256="2" * 64),
    ]
    ref = pb.ModelRef(name=NAME, revision="0" * 40, digest="0" * 64)

    async def main() -> None:
        async for _ in NodeFetch(stores(tmp_path), KeyringSource())(pb.FetchRequest(model=ref, wanted=files)):
            pass

    with pytest.raises(NotFound, match="nobody gives the headers"):
        asyncio.run(main())


def target(name: str, *spans: tuple[int, int]) -> Target:
    return Target(name, "h", 1, None, tuple(Span(FILE, *each) for each in spans))


def test_pieces_are_shared_out_evenly() -> None:
    everything = (0, 6 * MB)
    found = assign([target(name, everything) for name in "abc"], {})
    assert [each.hub_bytes for each in found] == [2 * MB] * 3
    assert [each.neighbour_bytes for each in found] == [4 * MB] * 3
    asked = sorted(span for each in found for span in each.hub)
    assert sum(span.size for span in asked) == 6 * MB
    # The last piece of a file is shorter, and a piece all the same.
    found = assign([target(name, (0, MB + 9)) for name in "ab"], {})
    assert sorted(each.hub_bytes for each in found) == [9, MB]


def test_what_somebody_holds_is_asked_of_no_hub() -> None:
    half = [Span(FILE, 0, 3 * MB)]
    found = assign([target(name, (0, 6 * MB)) for name in "ab"], {"a": half})
    assert sum(each.hub_bytes for each in found) == 3 * MB
    assert [each.here_bytes for each in found] == [3 * MB, 0]
    found = assign([target("a", (0, 6 * MB))], {}, others=[Span(FILE, 0, 6 * MB)])
    assert (found[0].hub_bytes, found[0].neighbour_bytes) == (0, 6 * MB)


def test_needs_that_overlap_are_cut_where_they_begin_and_end() -> None:
    found = assign([target("a", (0, MB + 7)), target("b", (MB + 7, 2 * MB))], {})
    assert [each.hub for each in found] == [(Span(FILE, 0, MB + 7),), (Span(FILE, MB + 7, 2 * MB),)]
    found = assign([target("a", (0, 70)), target("b", (50, 200))], {})
    assert sum(each.hub_bytes for each in found) == 200
    assert [each.neighbour_bytes for each in found] in ([20, 0], [0, 20])
    assert [each.hub for each in found] == [(Span(FILE, 0, 70),), (Span(FILE, 70, 200),)]


def test_a_model_that_is_whole_opens(hub: Hub, model: Path, tmp_path: Path) -> None:
    found = asyncio.run(ensure(NAME, stores(tmp_path)))
    assert ModelDirectory.open(found).digest == ModelDirectory.open(model).digest
