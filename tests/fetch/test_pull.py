import asyncio
import hashlib
import os
import random
import shutil
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import grpc.aio
import pytest

from exo_cli.errors import BadData, CannotCreate, ExoError, NotFound, TryAgain, Unavailable, VersionMismatch
from exo_cli.fetch.held import Held
from exo_cli.fetch.partial import PartialWriter, coverage
from exo_cli.fetch.pieces import MESSAGE_BYTES, PIECE_BYTES, Span
from exo_cli.fetch.pull import pull_stage
from exo_cli.fetch.ranges import stage_ranges
from exo_cli.fetch.stores import Stores
from exo_cli.models.directory import ModelDirectory
from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.channels import dial
from exo_cli.wire.hello import hello
from exo_cli.wire.status import translated
from exo_cli.wire.stubs import control
from tests.support.weights import Peer, connected, serving, write_model

TENSOR_BYTES = 3_000_000
"""Of eleven tensors in two files: pieces of 4 MiB begin and end inside them."""


class Home:
    """A model in a peer's store, and an empty store of ours."""

    def __init__(self, tmp_path: Path, tensor_bytes: int = TENSOR_BYTES) -> None:
        self.theirs = Stores(tmp_path / "theirs", hub=tmp_path / "no-hub")
        self.model = write_model(tmp_path / "model", tensor_bytes=tensor_bytes)
        self.directory = self.theirs.open(self.model)
        self.ref = pb.ModelRef(name="org/name", digest=self.directory.digest)
        self.ours = tmp_path / "ours"
        self.path = self.ours / self.ref.digest

    def wanted(self, first: int, last: int) -> list[Span]:
        return stage_ranges(self.directory, first, last, 4)

    def whole(self) -> list[Span]:
        return [Span(header.file, 0, header.size) for header in self.directory.files]

    def check(self, spans: list[Span]) -> None:
        """Our bytes are theirs, and the map says that they are here."""
        covers = coverage(self.path)
        for name, start, end in spans:
            assert covers(name, start, end)
            with open(self.path / name, "rb") as ours, open(self.model / name, "rb") as theirs:
                ours.seek(start)
                theirs.seek(start)
                assert ours.read(end - start) == theirs.read(end - start)

    def check_map(self) -> None:
        """Whatever the map says is right, and never anything else."""
        store = PartialWriter.open(self.ours, self.ref.digest)
        try:
            for file in store.view.map.files:
                self.check([Span(file.path, *each) for each in file.ranges])
        finally:
            store.close()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def run(service: Peer, work: Callable[[grpc.aio.Channel], Awaitable[object]]) -> None:
    async def main() -> None:
        async with connected(service) as channel:
            await work(channel)

    asyncio.run(main())


def refused(service: Peer, home: Home, wanted: object = None, **more: float) -> ExoError:
    """The error that a pull of everything ends with."""
    errors: list[ExoError] = []

    async def work(channel: grpc.aio.Channel) -> None:
        spans = home.whole() if wanted is None else wanted
        with pytest.raises(ExoError) as caught:
            await pull_stage(channel, home.ref, spans, home.ours, who="peer", **more)  # type: ignore[arg-type]
        errors.append(caught.value)

    run(service, work)
    return errors[0]


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


# -- peers that are wrong --------------------------------------------------------------------------


def test_another_model_leaves_nothing_behind(home: Home) -> None:
    (home.model / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 5}')
    other = home.theirs.open(home.model)

    class Confused:
        def held(self, digest: str) -> Held | None:
            return home.theirs.held(other.digest)

        def everything(self) -> list[Held]:
            return []

    def listing(reply: pb.HaveReply) -> None:
        reply.models[0].model.digest = home.ref.digest

    error = refused(Peer(Confused(), listing=listing), home)
    assert isinstance(error, BadData)
    assert "another model" in error.message
    assert not any(each.suffix in (".json", ".safetensors") for each in home.path.glob("[!.]*"))


def test_a_peer_without_the_model(home: Home) -> None:
    (home.model / "config.json").write_text('{"model_type": "llama"}')
    error = refused(Peer(home.theirs), home)
    assert isinstance(error, NotFound)


def add(name: str, size: int = 100) -> Callable[[pb.HaveReply], object]:
    return lambda reply: reply.models[0].files.add(path=name, size=size)


def resize(name: str, by: int) -> Callable[[pb.HaveReply], None]:
    def listing(reply: pb.HaveReply) -> None:
        for file in reply.models[0].files:
            if file.path == name:
                file.size = max(0, file.size + by)

    return listing


FIRST = "model-00001-of-00002.safetensors"


@pytest.mark.parametrize(
    "listing",
    [
        add("../../evil.safetensors"),
        add("/tmp/evil.safetensors"),
        add("evil.py"),
        add("MODEL-00001-of-00002.safetensors"),
        add(FIRST),
        add("tokenizer.model", 1 << 62),
        resize(FIRST, 1),
        resize(FIRST, -1),
        resize(FIRST, 1 << 60),
        resize(FIRST, -(1 << 60)),
        resize("config.json", -1),
        resize("config.json", 1),
        resize("tokenizer.json", -1),
        lambda reply: reply.models[0].files.pop(0),
        lambda reply: reply.models[0].ClearField("files"),
    ],
)
def test_lying_listings(home: Home, tmp_path: Path, listing: Callable[[pb.HaveReply], object]) -> None:
    before = sorted(tmp_path.iterdir())
    error = refused(Peer(home.theirs, listing=listing), home)
    assert isinstance(error, BadData)
    assert sorted(tmp_path.iterdir()) == sorted({*before, home.ours})
    assert [each.name for each in home.ours.iterdir()] in ([], [home.ref.digest])
    if home.path.exists():
        home.check_map()


def on_data(
    change: Callable[[pb.WeightsPiece], None],
) -> Callable[[pb.WeightsRequest, pb.WeightsPiece], bool]:
    def piece(request: pb.WeightsRequest, message: pb.WeightsPiece) -> bool:
        if request.path == FIRST and message.offset >= PIECE_BYTES:
            change(message)
        return True

    return piece


def flip(message: pb.WeightsPiece) -> None:
    data = bytearray(message.data)
    data[len(data) // 2] ^= 1
    message.data = bytes(data)


@pytest.mark.parametrize(
    "change",
    [
        flip,
        lambda message: setattr(message, "sha256", b""),
        lambda message: setattr(message, "sha256", b"short"),
        lambda message: setattr(message, "offset", message.offset + 1),
        lambda message: setattr(message, "offset", 0),
        lambda message: setattr(message, "data", b""),
        lambda message: setattr(message, "data", message.data[:-1]),
        lambda message: setattr(message, "data", message.data + b"x"),
        lambda message: setattr(message, "data", bytes(5 * MESSAGE_BYTES)),
    ],
)
def test_bad_pieces_are_thrown_away(home: Home, change: Callable[[pb.WeightsPiece], None]) -> None:
    error = refused(Peer(home.theirs, piece=on_data(change)), home)
    assert isinstance(error, BadData)
    assert "peer" in error.message
    assert FIRST in error.message
    home.check_map()
    assert not coverage(home.path)(FIRST, PIECE_BYTES, PIECE_BYTES + 1)

    async def again(channel: grpc.aio.Channel) -> None:
        await pull_stage(channel, home.ref, home.whole(), home.ours, who="peer")

    run(Peer(home.theirs), again)
    home.check(home.whole())


def test_a_changed_header_or_configuration_is_another_model(home: Home) -> None:
    for name in (FIRST, "config.json"):

        def piece(request: pb.WeightsRequest, message: pb.WeightsPiece, name: str = name) -> bool:
            if request.path == name and message.data.startswith(b"{"):
                # One that stays valid JSON.
                message.data = message.data.replace(b'"', b"'", 0).replace(b": ", b" :", 1)
                message.sha256 = b""
                if len(message.data) >= PIECE_BYTES:
                    return True
                message.sha256 = hashlib.sha256(message.data).digest()
            return True

        error = refused(Peer(home.theirs, piece=piece), home)
        assert isinstance(error, BadData)
        assert "another model" in error.message


def test_a_header_that_announces_gigabytes(home: Home) -> None:
    def piece(request: pb.WeightsRequest, message: pb.WeightsPiece) -> bool:
        if request.path == FIRST and request.offset == 0:
            message.data = (1 << 40).to_bytes(8, "little")
            message.sha256 = hashlib.sha256(message.data).digest()
        return True

    error = refused(Peer(home.theirs, piece=piece), home)
    assert isinstance(error, BadData)
    assert "header" in error.message


def test_a_peer_of_another_protocol(home: Home) -> None:
    async def work(channel: grpc.aio.Channel) -> None:
        old = hello()
        old.protocol = 99
        with pytest.raises(VersionMismatch):
            await pull_stage(channel, home.ref, home.whole(), home.ours, who="peer", from_node=old)
        request = pb.HaveRequest(hello=old)
        with pytest.raises(VersionMismatch), translated("peer"):
            await control(channel).Have(request)

    run(Peer(home.theirs), work)


# -- what we are asked for -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "offset", "size", "kind"),
    [
        ("../model/config.json", 0, 1, NotFound),
        ("/etc/passwd", 0, 1, NotFound),
        ("run_me.py", 0, 1, NotFound),
        ("CONFIG.JSON", 0, 1, NotFound),
        ("./config.json", 0, 1, NotFound),
        ("", 0, 1, NotFound),
        (FIRST, 0, 0, BadData),
        (FIRST, 1 << 63, 1, BadData),
        (FIRST, (1 << 64) - 1, (1 << 64) - 1, BadData),
        ("config.json", 0, 1 << 40, BadData),
    ],
)
def test_requests_that_are_refused(
    home: Home, path: str, offset: int, size: int, kind: type[ExoError]
) -> None:
    async def work(channel: grpc.aio.Channel) -> None:
        request = pb.WeightsRequest(hello=hello(), model=home.ref, path=path, offset=offset, size=size)
        with pytest.raises(kind), translated("peer"):
            await control(channel).Weights(request).read()

    run(Peer(home.theirs), work)


def test_digests_that_are_none(home: Home) -> None:
    async def work(channel: grpc.aio.Channel) -> None:
        for digest in ("../model", "x", "AB" * 32):
            ref = pb.ModelRef(digest=digest)
            with pytest.raises(BadData), translated("peer"):
                await control(channel).Have(pb.HaveRequest(hello=hello(), model=ref))
            request = pb.WeightsRequest(hello=hello(), model=ref, path="config.json", size=1)
            with pytest.raises(BadData), translated("peer"):
                await control(channel).Weights(request).read()
            with pytest.raises(BadData):
                await pull_stage(channel, ref, [], home.ours, who="peer")

    run(Peer(home.theirs), work)


def test_have_names_what_is_here(home: Home) -> None:
    async def work(channel: grpc.aio.Channel) -> None:
        stub = control(channel)
        for ref in (home.ref, None):
            reply = await stub.Have(pb.HaveRequest(hello=hello(), model=ref))
            (model,) = reply.models
            assert (model.model.digest, model.model.name) == (home.ref.digest, "model")
            files = {file.path: file for file in model.files}
            assert files[FIRST].size == (home.model / FIRST).stat().st_size
            assert files[FIRST].map == b"\x1f"
            assert bool(files["tokenizer.json"].sha256) == (ref is not None)
        reply = await stub.Have(pb.HaveRequest(hello=hello(), model=pb.ModelRef(digest="ab" * 32)))
        assert not reply.models

    run(Peer(home.theirs), work)


def test_a_file_that_shrinks_while_it_is_read(home: Home) -> None:
    def piece(request: pb.WeightsRequest, message: pb.WeightsPiece) -> bool:
        if request.path == FIRST and message.offset >= PIECE_BYTES:
            os.truncate(home.model / FIRST, PIECE_BYTES)
        return True

    async def work(channel: grpc.aio.Channel) -> None:
        with pytest.raises(ExoError):
            await pull_stage(channel, home.ref, home.whole(), home.ours, who="peer")

    run(Peer(home.theirs, piece=piece), work)


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
