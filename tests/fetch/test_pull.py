import asyncio
import os
import random
import shutil
from contextlib import AsyncExitStack
from pathlib import Path

import grpc.aio
import pytest

from exo_cli.errors import BadData, CannotCreate, NotFound, TryAgain, Unavailable
from exo_cli.fetch.partial import coverage
from exo_cli.fetch.partial_writer import PartialWriter
from exo_cli.fetch.pieces import PIECE_BYTES
from exo_cli.fetch.pull import pull_stage
from exo_cli.fetch.ranges import stage_ranges
from exo_cli.fetch.stores import Stores
from exo_cli.models.directory import ModelDirectory
from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.channels import dial
from tests.support.pulling import FIRST, TENSOR_BYTES, Home, refused, run, template
from tests.support.weights import Peer, serving


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return template(tmp_path_factory.mktemp("template") / "model")


@pytest.fixture
def home(tmp_path: Path, made: Path) -> Home:
    return Home(tmp_path, made)


# -- what it is for --------------------------------------------------------------------------------


def test_a_stage_is_pulled_and_no_more(home: Home) -> None:
    peer = Peer(home.theirs)
    heard: list[tuple[int, int]] = []

    async def work(channel: grpc.aio.Channel) -> None:
        path = await pull_stage(
            channel,
            home.ref,
            lambda directory: stage_ranges(directory, 1, 3, 4),
            home.ours,
            who="peer",
            progress=lambda done, total: heard.append((done, total)),
        )
        assert path == home.path

    run(peer, work)
    wanted = home.wanted(1, 3)
    total = sum(span.size for span in wanted)
    assert total == 5 * TENSOR_BYTES
    home.check(wanted)
    home.check_map()
    assert heard[0] == (0, total)
    assert heard[-1] == (total, total)
    assert heard == sorted(heard)
    ours = ModelDirectory.open(home.path)
    assert ours.digest == home.ref.digest
    assert ours.has_tokenizer
    assert not (home.path / "run_me.py").exists()
    first = home.directory.tensors["model.embed_tokens.weight"]
    assert not coverage(home.path)(first.file, first.start, first.end)
    asked = sum(end - start for name, start, end in peer.asked if name.endswith(".safetensors"))
    headers = sum(header.data_start for header in home.directory.files)
    assert asked == total + headers


def test_a_second_pull_asks_nobody(home: Home) -> None:
    peer = Peer(home.theirs)

    async def work(channel: grpc.aio.Channel) -> None:
        await pull_stage(channel, home.ref, home.wanted(0, 2), home.ours, who="peer")
        before = len(peer.asked)
        await pull_stage(channel, home.ref, home.wanted(0, 1), home.ours, who="peer")
        assert len(peer.asked) == before
        # Another stage of the same model fetches what it lacks only.
        await pull_stage(channel, home.ref, home.whole(), home.ours, who="peer")

    run(peer, work)
    asked = sum(end - start for name, start, end in peer.asked if name.endswith(".safetensors"))
    headers = sum(header.data_start for header in home.directory.files)
    assert asked <= sum(header.size for header in home.directory.files) + headers
    home.check(home.whole())
    assert Stores(home.ours, hub=home.ours / "none").find(home.ref.digest) == home.path


def test_a_part_is_passed_on(home: Home, tmp_path: Path) -> None:
    async def work(channel: grpc.aio.Channel) -> None:
        await pull_stage(channel, home.ref, home.wanted(1, 3), home.ours, who="peer")

    run(Peer(home.theirs), work)
    further = tmp_path / "further"
    middle = Peer(Stores(home.ours, hub=tmp_path / "none"))

    async def on(channel: grpc.aio.Channel) -> None:
        await pull_stage(channel, home.ref, home.wanted(2, 3), further, who="middle")
        assert coverage(further / home.ref.digest)(*home.wanted(2, 3)[0])
        with pytest.raises(NotFound, match="not here"):
            await pull_stage(channel, home.ref, home.wanted(0, 1), further, who="middle")

    run(middle, on)


def test_files_of_another_name_are_told_by_their_headers(home: Home, tmp_path: Path) -> None:
    async def work(channel: grpc.aio.Channel) -> None:
        await pull_stage(channel, home.ref, home.wanted(0, 1), home.ours, who="peer")

    run(Peer(home.theirs), work)
    one, two = sorted(home.model.glob("*.safetensors"))
    one.rename(home.model / "x")
    two.rename(one)
    (home.model / "x").rename(two)
    (home.model / "model.safetensors.index.json").unlink()
    assert home.theirs.open(home.model).digest == home.ref.digest

    async def rest(channel: grpc.aio.Channel) -> None:
        await pull_stage(channel, home.ref, home.whole(), home.ours, who="peer")

    run(Peer(home.theirs), rest)
    assert (home.path / one.name).read_bytes() == two.read_bytes()
    assert (home.path / two.name).read_bytes() == one.read_bytes()


def test_two_at_once_take_turns(home: Home) -> None:
    peer = Peer(home.theirs)

    async def work(channel: grpc.aio.Channel) -> None:
        both = [
            pull_stage(channel, home.ref, home.wanted(*layers), home.ours, who="peer")
            for layers in ((0, 3), (1, 4))
        ]
        await asyncio.gather(*both)

    run(peer, work)
    home.check(home.wanted(0, 3) + home.wanted(1, 4))
    asked = [(name, at) for name, start, end in peer.asked for at in range(start, end, PIECE_BYTES)]
    data = [each for each in asked if each[0].endswith(".safetensors") and each[1] > 100_000]
    assert len(data) == len(set(data))


# -- broken off, and taken up again ----------------------------------------------------------------


def test_a_stream_that_ends_early_goes_on_where_it_was(home: Home) -> None:
    sizes = {header.file: header.size for header in home.directory.files}
    left = random.Random(7)

    def piece(request: pb.WeightsRequest, message: pb.WeightsPiece) -> bool:
        return request.offset + request.size < 100_000 or left.random() > 0.2

    peer = Peer(home.theirs, piece=piece)
    ended = 0

    async def work(channel: grpc.aio.Channel) -> None:
        nonlocal ended
        for _ in range(200):
            try:
                await pull_stage(channel, home.ref, home.whole(), home.ours, who="peer")
                return
            except Unavailable:
                ended += 1
                home.check_map()
        raise AssertionError("no progress in 200 attempts")

    run(peer, work)
    assert ended > 2
    home.check(home.whole())
    assert all(end <= sizes.get(name, end) for name, _, end in peer.asked)


def test_a_dead_peer_is_unavailable_and_what_came_is_kept(home: Home) -> None:
    async def main() -> None:
        begun = asyncio.Event()
        source = KeyringSource()
        async with AsyncExitStack() as server:
            port = await server.enter_async_context(serving(Peer(home.theirs), source))
            channel = await dial("127.0.0.1", port, source.current(), timeout_s=10)
            pulling = asyncio.create_task(
                pull_stage(
                    channel,
                    home.ref,
                    home.whole(),
                    home.ours,
                    who="peer",
                    progress=lambda done, _: begun.set() if done else None,
                )
            )
            await begun.wait()
        async with channel:
            with pytest.raises(Unavailable):
                await pulling
        home.check_map()
        assert coverage(home.path)(FIRST, 0, 1)

    asyncio.run(main())


def test_a_silent_peer_is_given_up(home: Home) -> None:
    class Silent(Peer):
        async def Weights(self, request: pb.WeightsRequest, context: object) -> None:
            if request.path.endswith(".safetensors") and request.offset > 8:
                await asyncio.sleep(60)
            await super().Weights(request, context)

    error = refused(Silent(home.theirs), home, stall_s=0.3)
    assert isinstance(error, TryAgain)
    assert "sent nothing" in error.message


def test_cancelling_lets_go_of_the_store(home: Home) -> None:
    async def work(channel: grpc.aio.Channel) -> None:
        begun = asyncio.Event()
        pulling = asyncio.create_task(
            pull_stage(
                channel,
                home.ref,
                home.whole(),
                home.ours,
                who="peer",
                progress=lambda done, total: begun.set(),
            )
        )
        await begun.wait()
        pulling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pulling
        PartialWriter.open(home.ours, home.ref.digest).close()
        assert not [task for task in asyncio.all_tasks() if "exo_cli/fetch" in str(task)]
        for _ in range(500):
            if not peer._streams:
                break
            await asyncio.sleep(0.01)
        assert peer._streams == 0

    peer = Peer(home.theirs)
    run(peer, work)
    home.check_map()


# -- our own side ----------------------------------------------------------------------------------


def test_ranges_that_are_not_of_the_model(home: Home) -> None:
    size = home.directory.files[0].size
    for span in ((FIRST, 0, size + 1), (FIRST, -1, 5), (FIRST, 9, 5), ("other.safetensors", 0, 1)):
        error = refused(Peer(home.theirs), home, [span])
        assert isinstance(error, BadData)


def test_a_full_disk_is_said_before_anything_is_fetched(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    true = shutil.disk_usage

    def full(path: Path) -> object:
        return true(path)._replace(free=10_000)

    monkeypatch.setattr(shutil, "disk_usage", full)
    peer = Peer(home.theirs)
    error = refused(peer, home)
    assert isinstance(error, CannotCreate)
    assert "0.03 GB are to be fetched" in error.message
    assert max(end - start for _, start, end in peer.asked) < 10_000


def test_files_that_somebody_changed_are_fetched_again(home: Home) -> None:
    async def work(channel: grpc.aio.Channel) -> None:
        await pull_stage(channel, home.ref, home.wanted(0, 1), home.ours, who="peer")
        (home.path / "config.json").write_text(
            '{"model_type": "llama", "x": "not what it was before it all"}'
        )
        await pull_stage(channel, home.ref, home.wanted(0, 1), home.ours, who="peer")
        os.truncate(home.path / FIRST, 50)
        await pull_stage(channel, home.ref, home.wanted(0, 1), home.ours, who="peer")

    run(Peer(home.theirs), work)
    home.check(home.wanted(0, 1))
    assert ModelDirectory.open(home.path).digest == home.ref.digest
