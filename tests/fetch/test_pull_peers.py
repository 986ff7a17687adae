"""Peers that are wrong: nothing of what they send is kept, and they are named."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import grpc.aio
import pytest

from exo_cli.errors import BadData, ExoError, NotFound, VersionMismatch
from exo_cli.fetch.held import Held
from exo_cli.fetch.partial import Partial, coverage
from exo_cli.fetch.pieces import MESSAGE_BYTES, PIECE_BYTES
from exo_cli.fetch.pull import pull_stage
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.hello import hello
from exo_cli.wire.status import translated
from exo_cli.wire.stubs import control
from tests.support.hub_state import COMMIT
from tests.support.pulling import FIRST, Home, in_hub_cache, refused, run, template
from tests.support.weights import Peer


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return template(tmp_path_factory.mktemp("template") / "model")


@pytest.fixture
def home(tmp_path: Path, made: Path) -> Home:
    return Home(tmp_path, made)


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


def test_a_peer_whose_disk_is_wrong_is_found_out_by_the_whole_file(home: Home) -> None:
    """The digests of its pieces are those of its bytes; the name in the hub's cache tells."""
    rotten = in_hub_cache(home, home.model)
    blob = (home.theirs.hub / "models--org--name/snapshots" / COMMIT / FIRST).resolve()
    data = bytearray(blob.read_bytes())
    data[-5] ^= 4
    blob.write_bytes(data)
    error = refused(rotten, home)
    assert isinstance(error, BadData)
    assert f"{FIRST} is not what its sha256 says" in error.message
    assert "peer" in error.message
    assert not coverage(home.path)(FIRST, 8, 9)
    blob.write_bytes((home.model / FIRST).read_bytes())

    async def again(channel: grpc.aio.Channel) -> None:
        await pull_stage(channel, home.ref, home.whole(), home.ours, who="peer")

    run(rotten, again)
    home.check(home.whole())
    store = Partial.read(home.path)
    assert store is not None
    assert all(file.verified for file in store.map.files if file.path.endswith(".safetensors"))


def test_weights_of_the_same_shape_are_not_mixed(home: Home, tmp_path: Path) -> None:
    """A fine-tune: equal configuration and headers, so an equal digest."""
    other = shutil.copytree(home.model, tmp_path / "tune")
    for file in other.glob("*.safetensors"):
        data = file.read_bytes()
        file.write_bytes(data[:-100] + bytes(100))
    tuned = in_hub_cache(home, other)

    async def a_part(channel: grpc.aio.Channel) -> None:
        await pull_stage(channel, home.ref, home.wanted(0, 1), home.ours, who="the one")

    run(tuned, a_part)
    shutil.rmtree(home.theirs.hub)
    error = refused(in_hub_cache(home, home.model), home)
    assert isinstance(error, BadData)
    assert "peer has other weights of the same shape" in error.message
