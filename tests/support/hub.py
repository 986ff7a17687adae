"""A hub on this machine: a real HTTP server that answers as much as huggingface_hub's downloads ask.

Repositories are directories. Weights go over a redirect to another path, as on the real one, with ETag,
X-Repo-Commit, X-Linked-Size and ranges; `faults` make it fail where a test wants that.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
_API = re.compile(r"/api/models/([^/]+/[^/]+)/revision/(.+)")
_FILE = re.compile(r"/(cdn/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class Repository:
    """What is served under a name."""

    path: Path
    commit: str = COMMIT
    revisions: tuple[str, ...] = ("main",)
    token: str | None = None
    listed: list[str] | None = None
    """File names to claim, instead of those that are there."""


@dataclass
class Faults:
    """What goes wrong, by the name of a file or for everything."""

    status: int | None = None
    file_status: dict[str, int] = field(default_factory=dict)
    cut_after: dict[str, int] = field(default_factory=dict)
    """The connection is closed once after so many bytes."""
    stall_after: dict[str, int] = field(default_factory=dict)
    """Nothing more comes until the hub closes."""
    api_body: bytes | None = None


@dataclass
class Hub:
    """What the server serves and has seen."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    faults: Faults = field(default_factory=Faults)
    requests: list[str] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)
    """Bytes by file."""
    stalled: threading.Event = field(default_factory=threading.Event)
    closing: threading.Event = field(default_factory=threading.Event)

    def add(self, name: str, path: Path, **options: Any) -> Repository:
        self.repositories[name] = Repository(path, **options)
        return self.repositories[name]

    @property
    def downloads(self) -> list[str]:
        """Names of the files whose bytes were asked for."""
        return [
            line.rsplit("/", 1)[1] for line in self.requests if line.startswith("GET") and "/resolve/" in line
        ]


@contextmanager
def running() -> Iterator[Hub]:
    """A hub on a free port of the loopback."""
    hub = Hub()

    class Handler(_Handler):
        served = hub

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.closing.set()
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: ClassVar[Hub]

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.served.requests.append(f"{self.command} {path}")
        with suppress(ConnectionError):
            if self.served.faults.status is not None:
                self._say(self.served.faults.status)
            elif found := _API.fullmatch(path):
                self._describe(found[1], found[2])
            elif found := _FILE.fullmatch(path):
                self._file(found[2], found[3], found[4], redirected=found[1] is not None)
            else:
                self._say(404)

    def _say(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _repository(self, name: str, revision: str) -> Repository | None:
        """The repository, or the real hub's answer to those who may not have it."""
        found = self.served.repositories.get(name)
        given = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if found is None:
            self._say(404, X_Error_Code="RepoNotFound")
        elif found.token is not None and not given:
            self._say(401, X_Error_Code="GatedRepo")
        elif found.token is not None and given != found.token:
            self._say(403, X_Error_Code="GatedRepo")
        elif revision not in (*found.revisions, found.commit):
            self._say(404, X_Error_Code="RevisionNotFound")
        else:
            return found
        return None

    def _describe(self, name: str, revision: str) -> None:
        repository = self._repository(name, revision)
        if repository is None:
            return
        siblings = [
            sibling(repository.path / file, file)
            for file in repository.listed or sorted(each.name for each in repository.path.iterdir())
        ]
        document = {"id": name, "sha": repository.commit, "siblings": siblings}
        body = self.served.faults.api_body or json.dumps(document).encode()
        self._say(200, body, Content_Type="application/json")

    def _file(self, name: str, revision: str, file: str, *, redirected: bool) -> None:
        repository = self._repository(name, revision) if not redirected else self.served.repositories[name]
        if repository is None:
            return
        if self.command == "GET" and (status := self.served.faults.file_status.get(file)):
            self._say(status)
            return
        data = (repository.path / file).read_bytes()
        headers = {"ETag": f'"{etag(repository.path / file)}"', "X_Repo_Commit": repository.commit}
        if file.endswith(".safetensors") and not redirected:
            headers |= {"X_Linked_Size": str(len(data)), "X_Linked_Etag": headers["ETag"]}
            self._say(302, b"", Location=f"{self.served.url}/cdn/{name}/resolve/{revision}/{file}", **headers)
            return
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "GET":
            self._send(file, data[start:])

    def _send(self, file: str, data: bytes) -> None:
        faults = self.served.faults
        cut, stall = faults.cut_after.pop(file, None), faults.stall_after.get(file)
        part = data[: min(each for each in (cut, stall, len(data)) if each is not None)]
        self.wfile.write(part)
        self.wfile.flush()
        self.served.sent[file] = self.served.sent.get(file, 0) + len(part)
        if stall is not None:
            self.served.stalled.set()
            self.served.closing.wait()
        if len(part) < len(data):
            self.close_connection = True


def etag(path: Path) -> str:
    """sha256 of weights; of small files the name that git gives them."""
    data = path.read_bytes()
    if path.suffix == ".safetensors":
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def sibling(path: Path, name: str) -> dict[str, Any]:
    """A file as the hub's API lists it."""
    size = path.stat().st_size if path.exists() else 100
    found: dict[str, Any] = {"rfilename": name, "size": size}
    if path.exists():
        found["blobId"] = etag(path)
        if path.suffix == ".safetensors":
            found["lfs"] = {"sha256": etag(path), "size": size, "pointerSize": 134}
    return found
