"""The hub, asked: what a repository holds at a commit, and bytes of its files.

Through the library's own client, with its endpoint, token, proxies, offline switch and errors; not through
its HfApi, which takes as long to import as all the rest. Every answer is compared with the listing: the
commit, the name of the content, the size, the place. Knows nothing of disks, nor of asking again.
"""

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from logging import ERROR
from typing import Any, Final, Protocol
from urllib.parse import quote

import msgspec

from exo_cli.errors import BadData, NotAuthorised
from exo_cli.fetch.hub_errors import explained
from exo_cli.fetch.names import check_listing, is_small, is_weights
from exo_cli.fetch.patience import Passing, Patience
from exo_cli.fetch.seek import Sought, is_commit
from exo_cli.models.safetensors import shown
from exo_cli.schemas.first_use import shared

ASK_S: Final = 20.0
STALL_S: Final = 30.0
"""How long a connection may bring nothing."""
_ETAG: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_RANGE: Final = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file as the hub lists it."""

    name: str
    size: int
    etag: str
    """The sha256 of its bytes, or what git calls it: also its name in the hub's cache."""


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository at a commit, as far as it is a model's."""

    name: str
    commit: str
    files: dict[str, HubFile]

    @property
    def sizes(self) -> dict[str, int]:
        return {file.name: file.size for file in self.files.values()}

    @property
    def etags(self) -> dict[str, str]:
        return {file.name: file.etag for file in self.files.values()}

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files.values())


def hub_names(etag: str) -> bool:
    """Whether the hub calls contents so: a sha256, or a sha1 of git's."""
    return _ETAG.fullmatch(etag) is not None


class Client(Protocol):
    """Where a repository's files come from: the hub, or a folder that stands for it."""

    @property
    def endpoint(self) -> str: ...

    def listing(self, patience: Patience) -> Repository: ...

    def read(self, file: HubFile, start: int, end: int, patience: Patience) -> bytes: ...

    def open(self, file: HubFile, start: int, end: int) -> AbstractContextManager[Iterator[bytes]]: ...

    def short(self, file: HubFile, at: int) -> BadData: ...


class _Lfs(msgspec.Struct, frozen=True):
    sha256: str


class _Sibling(msgspec.Struct, frozen=True, rename={"blob_id": "blobId"}):
    rfilename: str
    size: int | None = None
    blob_id: str | None = None
    lfs: _Lfs | None = None


class _Said(msgspec.Struct, frozen=True):
    """What we read of the hub's description of a repository."""

    sha: str
    siblings: list[_Sibling]


class IgnoresRange(Exception):
    """The server sends the whole file, whatever part is asked for."""


class HubClient:
    """One repository of the hub. Safe to use from several threads."""

    def __init__(self, sought: Sought) -> None:
        from huggingface_hub import constants
        from huggingface_hub.utils import logging

        assert sought.repository is not None
        # It would tell of tokens and retries on its own.
        logging.get_logger().setLevel(ERROR)
        self._sought = sought
        self._repository = sought.repository
        self._endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
        self._commit = ""

    @property
    def endpoint(self) -> str:
        return self._endpoint

    def pinned(self, commit: str) -> "HubClient":
        """Somebody else has asked for the listing: answers must be of this commit."""
        self._commit = commit
        return self

    def listing(self, patience: Patience) -> Repository:
        """What the repository holds at the revision that is sought; later answers must be of that commit."""
        repository = patience.until_done(self._listing)
        self._commit = repository.commit
        return repository

    def read(self, file: HubFile, start: int, end: int, patience: Patience) -> bytes:
        """A few bytes, into memory."""
        data = bytearray()

        def more() -> None:
            try:
                with self.open(file, start + len(data), end) as chunks:
                    for chunk in chunks:
                        data.extend(chunk[: end - start - len(data)])
            except IgnoresRange:
                data.clear()
                data.extend(self._whole(file)[start:end])
            if start + len(data) < end:
                raise Passing(self.short(file, start + len(data)))

        patience.until_done(more)
        return bytes(data)

    @contextmanager
    def open(self, file: HubFile, start: int, end: int) -> Iterator[Iterator[bytes]]:
        """Bytes `start` to `end` as they come, perhaps fewer. IgnoresRange: only the whole file is served."""
        from huggingface_hub import get_session
        from huggingface_hub.utils._headers import build_hf_headers
        from huggingface_hub.utils._http import hf_raise_for_status

        url = f"{self._endpoint}/{self._repository}/resolve/{self._commit}/{quote(file.name)}"
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
        whole = (start, end) == (0, file.size)
        if not whole:
            headers["Range"] = f"bytes={start}-{end - 1}"
        with (
            explained(self._sought, self.endpoint),
            get_session().stream("GET", url, headers=headers, timeout=STALL_S) as response,
        ):
            if response.status_code == 416:
                raise self._changed(file, f"it has no bytes {start} to {end}")
            if response.status_code == 403 and response.history:
                # The hub let us have it: the link that it gave expired on the way.
                raise Passing(
                    NotAuthorised(
                        f"{self.endpoint} sends to where {file.name} may not be had (403)",
                        hint="Try again: what came is kept.",
                    )
                )
            hf_raise_for_status(response)
            self._check(response, file)
            if response.status_code == 206:
                self._check_place(response, file, start)
            elif not whole:
                raise IgnoresRange
            else:
                self._check_size(response, file)
            yield response.iter_raw()

    def _whole(self, file: HubFile) -> bytes:
        data = bytearray()
        with self.open(file, 0, file.size) as chunks:
            for chunk in chunks:
                data.extend(chunk[: file.size - len(data)])
        if len(data) < file.size:
            raise Passing(self.short(file, len(data)))
        return bytes(data)

    def short(self, file: HubFile, at: int) -> BadData:
        return BadData(
            f"{self.endpoint} ends {file.name} at byte {at} of {file.size}",
            hint="Is there a proxy that cuts files off? What came is kept.",
        )

    def _check(self, response: Any, file: HubFile) -> None:
        """The hub's own answers, before it sends elsewhere, name commit and content."""
        for each in (*response.history, response):
            commit = each.headers.get("x-repo-commit")
            if commit is None:
                continue
            etag = each.headers.get("x-linked-etag") or each.headers.get("etag") or file.etag
            if commit != self._commit:
                raise self._changed(file, f"it is of commit {shown(commit)}, not {self._commit}")
            if etag.removeprefix("W/").strip('"') != file.etag:
                raise self._changed(file, f"it calls its content {shown(etag)}, not {file.etag}")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise BadData(f"{self.endpoint} sends {file.name} packed, which nobody asked for")

    def _check_place(self, response: Any, file: HubFile, start: int) -> None:
        said = _RANGE.fullmatch(response.headers.get("content-range", ""))
        if said is None or int(said[1]) != start:
            wrong = BadData(f"{self.endpoint} sends other bytes of {file.name} than those from {start} on")
            raise Passing(wrong)
        if said[3] != "*" and int(said[3]) != file.size:
            raise self._changed(file, f"it has {said[3]} bytes, not {file.size}")

    def _check_size(self, response: Any, file: HubFile) -> None:
        length = response.headers.get("content-length", "")
        if length.isdecimal() and int(length) != file.size:
            raise Passing(
                BadData(
                    f"{self.endpoint} answers with {length} bytes for {file.name}, which has {file.size}",
                    hint="Does this network want you to log in first?",
                )
            )

    def _changed(self, file: HubFile, how: str) -> BadData:
        return BadData(
            f"{self.endpoint} has another {file.name} than it listed: {how}",
            hint="Nothing of it was mixed in. Run it again.",
        )

    def _listing(self) -> Repository:
        from huggingface_hub import get_session
        from huggingface_hub.utils._headers import build_hf_headers
        from huggingface_hub.utils._http import hf_raise_for_status

        sought, name = self._sought, self._repository
        url = f"{self._endpoint}/api/models/{name}/revision/{quote(sought.revision, safe='')}"
        with explained(sought, self._endpoint):
            answer = get_session().get(url, headers=build_hf_headers(), params={"blobs": True}, timeout=ASK_S)
            hf_raise_for_status(answer)
        try:
            said = msgspec.json.decode(answer.content, type=shared(_Said))
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise BadData(f"{self._endpoint} does not answer as a hub does: {error}"[:300]) from error
        return _checked(said, sought, name, self._endpoint)


def _checked(said: _Said, sought: Sought, name: str, endpoint: str) -> Repository:
    """The hub's description of a repository, as far as it is a model's."""
    if not is_commit(said.sha):
        raise BadData(f"{endpoint} names no commit of {name}: {shown(said.sha)}")
    if is_commit(sought.revision) and said.sha != sought.revision:
        raise BadData(f"{endpoint} answers with commit {said.sha}, not {sought.revision}")
    found: dict[str, HubFile] = {}
    listed: list[tuple[str, int]] = []
    for each in said.siblings:
        file, size = each.rfilename, each.size or 0
        if file.startswith("/") or "\\" in file or "\0" in file or ".." in file.split("/"):
            raise BadData(f"{name} has a file called {shown(file)}; nothing of it was fetched")
        if is_weights(file) or (is_small(file) and size):
            etag = each.lfs.sha256 if each.lfs is not None else each.blob_id or ""
            if not hub_names(etag):
                raise BadData(f"{endpoint} does not say what the content of {shown(file)} is")
            listed.append((file, size))
            found[file] = HubFile(file, size, etag)
    sizes = check_listing(listed, name)
    # The loader takes those called model…, where there are any; others are the same weights once more.
    if any(is_weights(file) and file.startswith("model") for file in sizes):
        sizes = {file: size for file, size in sizes.items() if is_small(file) or file.startswith("model")}
    # Weights last: what has all of them has everything.
    ordered = sorted(sizes, key=lambda file: (is_weights(file), file))
    return Repository(name, said.sha, {file: found[file] for file in ordered})
