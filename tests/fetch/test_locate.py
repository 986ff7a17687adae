import asyncio
import shutil
from pathlib import Path

import pytest

from exo_cli.errors import BadData, NotFound
from exo_cli.fetch.locate import Locator
from exo_cli.fetch.partial import coverage
from exo_cli.fetch.ranges import stage_ranges
from exo_cli.fetch.share import LocalShare
from exo_cli.fetch.stores import Stores
from exo_cli.models.directory import ModelDirectory
from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire import exo_pb2 as pb
from tests.support import hub as hubs
from tests.support.loopback import bound_socket
from tests.support.weights import Peer, serving, write_model


@pytest.fixture
def model(tmp_path: Path) -> ModelDirectory:
    return ModelDirectory.open(write_model(tmp_path / "model"))


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    return Stores(tmp_path / "ours", hub=tmp_path / "hub")


def asked(model: ModelDirectory, weights_from: str = "") -> pb.LoadRequest:
    return pb.LoadRequest(
        model=pb.ModelRef(name="org/name", digest=model.digest),
        first_layer=1,
        last_layer=3,
        layers_in_model=4,
        weights_from=weights_from,
    )


def test_what_is_here_is_not_fetched(model: ModelDirectory, stores: Stores) -> None:
    stores.open(model.path)
    request = asked(model, "127.0.0.1:1")
    assert asyncio.run(Locator(stores, KeyringSource())(request)) == model.path


def test_from_the_driver_and_then_from_the_part(model: ModelDirectory, stores: Stores) -> None:
    async def main() -> None:
        source = KeyringSource()
        locator = Locator(stores, source)
        heard: list[tuple[int, int]] = []
        async with LocalShare(source, model) as share:
            request = asked(model, f"127.0.0.1:{share.port}")
            path = await locator(request, lambda done, total: heard.append((done, total)))
        assert heard[-1][0] == heard[-1][1] > 0
        assert all(coverage(path)(*span) for span in stage_ranges(model, 1, 3, 4))
        # The driver is gone; the stage is here.
        assert await locator(asked(model)) == path
        request = asked(model)
        request.first_layer = 0
        with pytest.raises(NotFound):
            await locator(request)
        (path / "config.json").unlink()
        with pytest.raises(NotFound):
            await locator(asked(model))

    asyncio.run(main())


def test_from_a_neighbour_after_those_that_have_it_not(
    model: ModelDirectory, stores: Stores, tmp_path: Path
) -> None:
    theirs = Stores(tmp_path / "theirs", hub=tmp_path / "hub", directories=(model.path,))
    empty = Stores(tmp_path / "empty", hub=tmp_path / "hub")

    def lie(reply: pb.HaveReply) -> None:
        reply.models[0].files[0].size += 1

    async def main() -> None:
        source = KeyringSource()
        with bound_socket() as dead:
            async with (
                serving(Peer(empty), source) as first,
                serving(Peer(theirs, listing=lie), source) as second,
                serving(Peer(theirs), source) as third,
            ):
                ports = [first, second, third]
                around = [(f"node{port}", "127.0.0.1", port) for port in ports]
                request = asked(model, f"127.0.0.1:{dead.getsockname()[1]}")
                assert await Locator(stores, source, lambda: around)(request) == stores.weights / model.digest
                shutil.rmtree(stores.weights)
                with pytest.raises(BadData, match=f"node{second}"):
                    await Locator(stores, source, lambda: around[:2])(request)
                with pytest.raises(NotFound) as caught:
                    await Locator(stores, source, lambda: around[:1])(request)
                for place in (str(stores.hub), str(stores.weights), "nothing listens", f"node{first}"):
                    assert place in caught.value.message

    asyncio.run(main())


@pytest.mark.parametrize(
    "endpoint", ["localhost:5", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:x", ":5", "[::1]"]
)
def test_a_driver_is_reached_by_its_address_only(
    model: ModelDirectory, stores: Stores, endpoint: str
) -> None:
    with pytest.raises(BadData, match="no address"):
        asyncio.run(Locator(stores, KeyringSource())(asked(model, endpoint)))


def test_last_of_all_from_the_hub(
    tmp_path: Path, stores: Stores, model: ModelDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For nodes that load what a plan gave them, with no driver that has it."""
    seen: list[tuple[int, int]] = []

    def told(done: int, total: int) -> None:
        seen.append((done, total))

    with hubs.running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.add("org/name", model.path)
        found = asyncio.run(Locator(stores, KeyringSource())(asked(model), told))
        covers = coverage(found)
        assert all(covers(*span) for span in stage_ranges(model, 1, 3, 4))
        assert not covers(model.files[1].file, 0, model.files[1].size)
        assert seen[-1][0] == seen[-1][1] > 0
        # Another model under that name is not this one.
        hub.clear()
        other = write_model(tmp_path / "other", tensor_bytes=7000)
        with pytest.raises(NotFound):
            asyncio.run(Locator(stores, KeyringSource())(asked(ModelDirectory.open(other))))
        # Where a driver has it, it does not come over the internet.
        hub.clear()
        shutil.rmtree(stores.weights)
        with bound_socket() as dead:
            request = asked(model, f"127.0.0.1:{dead.getsockname()[1]}")
            with pytest.raises(NotFound):
                asyncio.run(Locator(stores, KeyringSource())(request))
        assert hub.requests == []
