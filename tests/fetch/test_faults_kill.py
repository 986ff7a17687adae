"""`exo fetch` killed with SIGKILL at random points, and run again until it is through."""

import random
import sys
from pathlib import Path

import pytest
from huggingface_hub import snapshot_download

from exo_cli.fetch.pieces import PIECE_BYTES
from tests.support import hub as hubs
from tests.support.fetching import METADATA_BYTES, NAME, Fetcher, same, served, total_bytes

FEW, MANY = 4, 200
BUFFERS_BYTES = 0 if sys.platform == "linux" else 16 << 20
"""Sent, and in the system's hands when the process dies. Where it can be seen, the hub waits for it."""


def killed_and_resumed(tmp_path: Path, points: int, seed: int) -> None:
    chance = random.Random(seed)
    model = served(tmp_path / "served")
    size = total_bytes(model)
    with hubs.running() as hub:
        hub.in_step = True
        hub.add(NAME, model)
        killed = cycle = 0
        while killed < points:
            cycle += 1
            fetcher = Fetcher(hub, tmp_path / f"cache{cycle}")
            hub.clear()
            kills = 0
            while True:
                # Beyond the bytes lie comparing, moving and naming: there by time.
                point = chance.randrange(1, size + size // 6)
                code = fetcher.killed(min(point, size - 1), 0.0 if point < size else chance.random() / 2)
                if code == 0:
                    break
                assert code == -9
                kills += 1
                if fetcher.snapshot.is_dir():
                    # Whatever is under a name that others look at is right.
                    for each in fetcher.snapshot.iterdir():
                        assert each.read_bytes() == (model / each.name).read_bytes()
            assert same(fetcher.snapshot, model)
            again = hub.sent_bytes - size
            assert again <= kills * (PIECE_BYTES + METADATA_BYTES + BUFFERS_BYTES), (kills, hub.sent)
            found = snapshot_download(NAME, cache_dir=fetcher.cache, local_files_only=True)
            assert Path(found) == fetcher.snapshot
            killed += kills


@pytest.mark.process
def test_killed_at_a_few_points(tmp_path: Path) -> None:
    killed_and_resumed(tmp_path, FEW, seed=7)


@pytest.mark.nightly
@pytest.mark.process
def test_killed_at_two_hundred_points(tmp_path: Path) -> None:
    killed_and_resumed(tmp_path, MANY, seed=8)
