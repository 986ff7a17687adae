"""Single bits that change on their way, from the hub and from neighbours: each one is caught."""

import asyncio
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import grpc.aio
import pytest

from exo_cli.errors import BadData
from exo_cli.fetch.pieces import PIECE_BYTES, Span
from exo_cli.fetch.pull import pull_stage
from exo_cli.fetch.ranges import stage_ranges, whole_files
from exo_cli.fetch.stores import Stores
from exo_cli.models.directory import ModelDirectory
from exo_cli.wire import exo_pb2 as pb
from tests.support import faults
from tests.support.fetching import NAME, asked_hub, get, same
from tests.support.hub import Hub
from tests.support.weights import Peer, connected, write_model

FEW, MANY = 9, 1000
TENSOR_BYTES = 400


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "served", tensor_bytes=TENSOR_BYTES)


@pytest.fixture
def hub(clean_environment: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with asked_hub(monkeypatch) as running:
        yield running


def flips(count: int, model: Path) -> Iterator[tuple[str, int]]:
    """Bits of its files; every file has some, each in proportion to its size."""
    chance = random.Random(count)
    files = [each for each in sorted(model.iterdir()) if each.suffix in (".json", ".safetensors")]
    sizes = [each.stat().st_size for each in files]
    chosen = [*files, *chance.choices(files, sizes, k=count - len(files))]
    for file in chosen:
        yield file.name, chance.randrange(file.stat().st_size * 8)


def from_the_hub(count: int, hub: Hub, model: Path, tmp_path: Path) -> None:
    hub.add(NAME, model)
    for number, (name, bit) in enumerate(flips(count, model)):
        cache = tmp_path / "cache" / str(number)
        rule = hub.fail(faults.Flipped(bit), file=name, times=None)
        with pytest.raises(BadData, match=name):
            get(cache)
        assert rule.befell > 0
        hub.clear()
        # It was thrown away, so that the same place is right once the bytes are.
        found = get(cache)
        assert same(found, model), (name, bit)


def test_a_few_from_the_hub(hub: Hub, model: Path, tmp_path: Path) -> None:
    from_the_hub(FEW, hub, model, tmp_path)


@pytest.mark.nightly
def test_a_thousand_from_the_hub(hub: Hub, model: Path, tmp_path: Path) -> None:
    from_the_hub(MANY, hub, model, tmp_path)


def from_a_peer(count: int, tmp_path: Path) -> None:
    """In small files, headers, whole pieces, and those that a stage's tensors begin or end in."""
    model = write_model(tmp_path / "served", tensor_bytes=PIECE_BYTES // 5, files=2)
    theirs = Stores(tmp_path / "theirs", hub=tmp_path / "none")
    directory = theirs.open(model)
    files = {each.name: each.read_bytes() for each in model.iterdir()}
    now: tuple[str, int] | None = None
    befell = 0

    def piece(request: pb.WeightsRequest, message: pb.WeightsPiece) -> bool:
        nonlocal befell
        if now is not None and request.path == now[0]:
            at = now[1] // 8 - message.offset
            if 0 <= at < len(message.data):
                data = bytearray(message.data)
                data[at] ^= 1 << now[1] % 8
                message.data = bytes(data)
                befell += 1
        return True

    def middle(found: ModelDirectory) -> list[Span]:
        return stage_ranges(found, 1, 3, 4)

    async def in_two_steps(channel: grpc.aio.Channel, store: Path) -> Path:
        for wanted in (middle, whole_files):
            reference = pb.ModelRef(digest=directory.digest)
            path = await pull_stage(channel, reference, wanted, store, who="the peer")
        return path

    async def main() -> None:
        nonlocal now, befell
        async with connected(Peer(theirs, piece=piece)) as channel:
            for number, now in enumerate(flips(count, model)):
                befell = 0
                store = tmp_path / "ours" / str(number)
                with pytest.raises(BadData, match="the peer"):
                    await in_two_steps(channel, store)
                assert befell > 0
                now = None
                found = await in_two_steps(channel, store)
                assert all(
                    (found / name).read_bytes() == data
                    for name, data in files.items()
                    if (found / name).exists()
                )
                assert Stores(store, hub=tmp_path / "none").find(directory.digest) == found
                shutil.rmtree(store)

    asyncio.run(main())


def test_a_few_from_a_peer(tmp_path: Path) -> None:
    from_a_peer(FEW, tmp_path)


@pytest.mark.nightly
def test_a_thousand_from_a_peer(tmp_path: Path) -> None:
    from_a_peer(MANY, tmp_path)
