"""`exo fetch` onto a disk that fills up: said before starting if it is known, and nothing is lost if not."""

import os
import resource
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from exo_cli.errors import CannotCreate
from exo_cli.fetch.pieces import PIECE_BYTES
from tests.support import hub as hubs
from tests.support.fetching import METADATA_BYTES, NAME, Fetcher, same, served, total_bytes
from tests.support.hub import Hub

DISK_BYTES = 40 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return served(tmp_path / "served")


@pytest.fixture
def hub(model: Path) -> Iterator[Hub]:
    with hubs.running() as running:
        running.add(NAME, model)
        yield running


def fill(path: Path, left_bytes: int) -> Path:
    """Somebody else's file, which leaves so much."""
    found = os.statvfs(path)
    filler = path / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, found.f_bavail * found.f_frsize - left_bytes)
    return filler


@pytest.mark.net
def test_a_disk_without_room_is_said_before_anything_is_spent(hub: Hub, model: Path, disk: Path) -> None:
    fetcher = Fetcher(hub, disk / "cache")
    filler = fill(disk, total_bytes(model) - PIECE_BYTES)
    done = fetcher.run()
    assert done.returncode == CannotCreate.exit, done.stderr
    assert not any(name.endswith(".safetensors") for name in hub.downloads)
    filler.unlink()
    assert fetcher.run().returncode == 0
    assert same(fetcher.snapshot, model)


@pytest.mark.net
@pytest.mark.parametrize("left_bytes", [1_000_000, 5_000_000])
def test_a_disk_that_fills_up_loses_nothing(hub: Hub, model: Path, disk: Path, left_bytes: int) -> None:
    fetcher = Fetcher(hub, disk / "cache")
    fillers: list[Path] = []

    guard = threading.Lock()

    def watch(file: str, count: int) -> None:
        # Somebody else writes, when the fetch has begun; meanwhile nothing is sent.
        with guard:
            if file.endswith(".safetensors") and not fillers and hub.sent_bytes > PIECE_BYTES:
                fillers.append(fill(disk, left_bytes))

    hub.bytes_per_s = 50e6
    hub.watcher = watch
    done = fetcher.run()
    assert done.returncode == CannotCreate.exit, done.stderr
    assert "Traceback" not in done.stderr
    assert "disk" in done.stderr or "space" in done.stderr
    assert not fetcher.snapshot.exists() or not same(fetcher.snapshot, model)
    fillers[0].unlink()
    assert fetcher.run().returncode == 0
    assert same(fetcher.snapshot, model)
    # What was on its way when the disk was full, in each of some connections, is asked for again.
    most = 8 * PIECE_BYTES + METADATA_BYTES
    assert hub.sent_bytes <= total_bytes(model) + most, (hub.sent, hub.connections)


@pytest.mark.process
def test_a_file_that_may_not_grow(hub: Hub, model: Path, tmp_path: Path) -> None:
    """Where nobody may mount: the system refuses the file at all."""
    fetcher = Fetcher(hub, tmp_path / "cache")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (PIECE_BYTES, before[1]))
    try:
        done = fetcher.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert done.returncode == CannotCreate.exit, done.stderr
    assert "Traceback" not in done.stderr
    assert fetcher.run().returncode == 0
    assert same(fetcher.snapshot, model)
