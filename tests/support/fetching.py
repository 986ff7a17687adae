"""Fetches from the hub of the tests: in the test's process, or by `exo fetch`, killed where a test wants."""

import asyncio
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from exo_cli.fetch import patience
from exo_cli.fetch.ensure import ensure
from exo_cli.fetch.pieces import PIECE_BYTES
from exo_cli.fetch.stores import Stores
from tests.support import hub as hubs
from tests.support.cli import EXO
from tests.support.hub import COMMIT, Hub
from tests.support.weights import tensor_names, write_model

NAME = "org/name"
GIVE_UP_S = 300
METADATA_BYTES = 256 * 1024
"""Small files and headers, asked for again in each run."""


def get(cache: Path, name: str = NAME) -> Path:
    """A model by the way that `exo run` takes, from the hub that HF_ENDPOINT names."""
    return asyncio.run(asyncio.wait_for(ensure(name, Stores(cache / "weights", hub=cache)), GIVE_UP_S))


@contextmanager
def asked_hub(monkeypatch: pytest.MonkeyPatch, model: Path | None = None) -> Iterator[Hub]:
    """The hub that HF_ENDPOINT names, with this model; nobody waits long before asking it again."""
    monkeypatch.setattr(patience, "FIRST_WAIT_S", 0.01)
    with hubs.running() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        if model is not None:
            running.add(NAME, model)
        yield running


@dataclass(frozen=True)
class Fetcher:
    """What a person with this cache would type."""

    hub: Hub
    cache: Path
    """The hub's; everything of ours lies beside it."""

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))}
        places = {"HF_HUB_CACHE": str(self.cache), "XDG_CACHE_HOME": f"{self.cache}-of-exo"}
        return kept | places | {"HF_ENDPOINT": self.hub.url, "NO_COLOR": "1"}

    @property
    def snapshot(self) -> Path:
        return self.cache / f"models--{NAME.replace('/', '--')}" / "snapshots" / COMMIT

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """To its end."""
        return subprocess.run(
            [*EXO, "fetch", *(arguments or (NAME,))],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=GIVE_UP_S,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    def killed(self, after_bytes: int, then_s: float = 0.0, *arguments: str) -> int:
        """The code of a run, killed `then_s` after the hub has sent so many bytes; 0 if it was faster."""
        before = self.hub.sent_bytes
        process = subprocess.Popen(
            [*EXO, "fetch", *(arguments or (NAME,))],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

        def watch(file: str, count: int) -> None:
            if self.hub.sent_bytes - before >= after_bytes:
                self.hub.watcher = None
                if then_s:
                    threading.Timer(then_s, process.kill).start()
                else:
                    process.kill()

        self.hub.watcher = watch
        try:
            return process.wait(GIVE_UP_S)
        finally:
            self.hub.watcher = None
            process.kill()
            process.wait()


def served(path: Path, *, pieces_a_file: float = 2.5, files: int = 2, seed: int = 0) -> Path:
    """A model of several pieces a file, the last one of them short."""
    names = tensor_names(4)
    size = int(pieces_a_file * PIECE_BYTES) * files // len(names)
    return write_model(path, tensor_bytes=size, files=files, seed=seed)


def total_bytes(model: Path) -> int:
    """Of the files that are fetched."""
    return sum(each.stat().st_size for each in model.iterdir() if each.suffix in (".json", ".safetensors"))


def same(found: Path, model: Path) -> bool:
    """Whether a snapshot is the model, byte for byte."""
    names = [each.name for each in model.iterdir() if each.suffix in (".json", ".safetensors")]
    return all(
        (found / name).exists() and (found / name).read_bytes() == (model / name).read_bytes()
        for name in names
    )
