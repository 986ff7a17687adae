"""What has to be known of a model before anything is spent: its configuration and its files' headers.

Brought once and kept by content, so that a look before and the fetch after it ask the hub for them
together only once. From the headers come the digest, every tensor's place and the bytes of each layer.
Knows nothing of the store that the weights go to.
"""

import os
import secrets
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from exo_cli.errors import BadData
from exo_cli.fetch.crew import side_by_side
from exo_cli.fetch.hub_client import Client, HubFile, Repository
from exo_cli.fetch.names import CONFIG, is_small, is_weights
from exo_cli.fetch.seek import repository_folder
from exo_cli.fetch.transfer import Pace
from exo_cli.fetch.verify import is_content
from exo_cli.models.digest import model_digest
from exo_cli.models.directory import TOKENIZER_FILES, ModelDirectory, parse_config
from exo_cli.models.safetensors import (
    MAX_HEADER_BYTES,
    Header,
    header_length,
    iter_tensors,
    parse_header,
)

FOLDER: Final = "heads"
_MOST_GUESSED_BYTES: Final = 128 * 1024
_AT_ONCE: Final = 8
MAX_HEADS_BYTES: Final = 4 * MAX_HEADER_BYTES


@dataclass(frozen=True, slots=True)
class Heads:
    """The beginning of every file, and the small ones whole."""

    digest: str
    small: dict[str, bytes]
    headers: dict[str, Header]
    beginnings: dict[str, bytes]
    """At least the header of each file; what came with it is not fetched again."""
    fetched_bytes: int

    def directory(self, path: Path) -> ModelDirectory:
        """The model as it will lie at `path`."""
        config = self.small[CONFIG]
        files = tuple(self.headers[name] for name in sorted(self.headers))
        table = {tensor.name: tensor for tensor in iter_tensors(files)}
        names = tuple(name for name in TOKENIZER_FILES if name in self.small)
        return ModelDirectory(path, parse_config(config), config, files, table, names)


class HeadShelf:
    """Beginnings of files that were brought before, by what the hub calls the whole file."""

    def __init__(self, weights: Path) -> None:
        self._path = weights / FOLDER

    def get(self, etag: str) -> bytes | None:
        try:
            return (self._path / etag).read_bytes()
        except OSError:
            return None

    def put(self, etag: str, data: bytes) -> None:
        # Nothing is lost but a question where it cannot be kept.
        with suppress(OSError):
            self._path.mkdir(parents=True, exist_ok=True)
            new = self._path / f".{etag}.{secrets.token_hex(4)}"
            new.write_bytes(data)
            new.replace(self._path / etag)

    def clear(self) -> None:
        """Looks that no fetch followed."""
        with suppress(OSError):
            for path in self._path.iterdir():
                path.unlink(missing_ok=True)

    def drop(self, etags: list[str]) -> None:
        for etag in etags:
            with suppress(OSError):
                (self._path / etag).unlink(missing_ok=True)


def bring_heads(client: Client, repository: Repository, hub: Path, weights: Path, pace: Pace) -> Heads:
    """From the hub's cache, from an earlier look, else from the hub."""
    return _Bringing(client, repository, hub, weights, pace).all()


class _Bringing:
    def __init__(self, client: Client, repository: Repository, hub: Path, weights: Path, pace: Pace) -> None:
        self._client = client
        self._repository = repository
        self._blobs = repository_folder(hub, repository.name) / "blobs"
        self._shelf = HeadShelf(weights)
        self._pace = pace
        self._guard = threading.Lock()
        self._small: dict[str, bytes] = {}
        self._headers: dict[str, Header] = {}
        self._beginnings: dict[str, bytes] = {}
        self._fetched_bytes = 0
        self._held_bytes = 0

    def all(self) -> Heads:
        config = self._repository.files[CONFIG]
        self._bring(config)
        parse_config(self._small[CONFIG])  # a model that cannot run costs no more than this
        others = [file for file in self._repository.files.values() if file is not config]
        side_by_side(self._bring, others, most=min(_AT_ONCE, len(others)), stopped=self._pace.stopped)
        digest = model_digest(self._small[CONFIG], (header.sha256 for header in self._headers.values()))
        return Heads(digest, self._small, self._headers, self._beginnings, self._fetched_bytes)

    def _bring(self, file: HubFile) -> None:
        if is_small(file.name):
            self._small[file.name] = self._whole(file)
            return
        assert is_weights(file.name)
        shelved = self._shelf.get(file.etag)
        data = self._blob(file, 8) or shelved or b""
        try:
            self._take(file, data)
        except BadData:
            if data is not shelved:
                raise
            # Cut short when the machine stopped, or changed since.
            self._take(file, b"")

    def _take(self, file: HubFile, data: bytes) -> None:
        """The header, from its first bytes on."""
        if len(data) < 8:
            guess = max(8, min(_MOST_GUESSED_BYTES, file.size // 512))
            data = self._ask(file, 0, min(guess, file.size))
        end = 8 + header_length(data[:8], file=file.name, size=file.size)
        self._room(end)
        if len(data) < end:
            data = self._blob(file, end) or data + self._ask(file, len(data), end)
        self._headers[file.name] = parse_header(data[:end], file=file.name, size=file.size)
        self._beginnings[file.name] = data
        if self._blob(file, 8) is None:
            self._shelf.put(file.etag, data)

    def _whole(self, file: HubFile) -> bytes:
        data = self._blob(file, file.size) or self._shelf.get(file.etag)
        if data is not None and is_content(data, file.etag):
            return data
        data = self._ask(file, 0, file.size)
        if not is_content(data, file.etag):
            raise BadData(
                f"{self._client.endpoint} sent {file.name} with another content than it is listed with",
                hint="Nothing of it was kept. Try again.",
            )
        self._shelf.put(file.etag, data)
        return data

    def _ask(self, file: HubFile, start: int, end: int) -> bytes:
        self._room(end - start)
        data = self._client.read(file, start, end, self._pace.patience())
        with self._guard:
            self._fetched_bytes += len(data)
        return data

    def _blob(self, file: HubFile, end: int) -> bytes | None:
        """The beginning, if another program brought the whole file."""
        try:
            with open(self._blobs / file.etag, "rb") as blob:
                whole = os.fstat(blob.fileno()).st_size == file.size
                return blob.read(end) if whole else None
        except OSError:
            return None

    def _room(self, count: int) -> None:
        with self._guard:
            self._held_bytes += count
        if self._held_bytes > MAX_HEADS_BYTES:
            raise BadData(f"the headers of {self._repository.name} have more than {MAX_HEADS_BYTES} bytes")
