"""A model in a peer's store, an empty store of ours, and what is pulled from one into the other."""

import asyncio
import hashlib
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc.aio
import pytest

from exo_cli.errors import ExoError
from exo_cli.fetch.partial import coverage
from exo_cli.fetch.partial_writer import PartialWriter
from exo_cli.fetch.pieces import Span
from exo_cli.fetch.pull import pull_stage
from exo_cli.fetch.ranges import stage_ranges
from exo_cli.fetch.stores import Stores
from exo_cli.wire import exo_pb2 as pb
from tests.support.hub_state import COMMIT
from tests.support.weights import Peer, connected, write_model

FIRST = "model-00001-of-00002.safetensors"
TENSOR_BYTES = 3_000_000
"""Of eleven tensors in two files: pieces of 4 MiB begin and end inside them."""


class Home:
    """A model in a peer's store, and an empty store of ours."""

    def __init__(self, tmp_path: Path, template: Path) -> None:
        """The template is not changed."""
        self.theirs = Stores(tmp_path / "theirs", hub=tmp_path / "hub")
        self.model = shutil.copytree(template, tmp_path / "model")
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


def template(path: Path) -> Path:
    """The model that homes are made of."""
    return write_model(path, tensor_bytes=TENSOR_BYTES)


def in_hub_cache(home: Home, model: Path) -> Peer:
    """A peer that has `model` as the hub's library leaves it: weights under the names of their sums."""
    folder = home.theirs.hub / "models--org--name"
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (folder / "blobs").mkdir()
    for file in model.iterdir():
        blob = folder / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    return Peer(Stores(home.ours.parent / "its-store", hub=home.theirs.hub))


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
