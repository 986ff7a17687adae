"""A hub on this machine: real HTTP servers that answer what huggingface_hub's own client asks.

Two ports of the loopback, as on the real one: the hub describes repositories (model_info, tree) and
resolves files; those in LFS it sends to a CDN, by links that are signed, expire, and are refused together
with a token; small ones come from the hub, over a relative redirect. Metadata headers, ETags, ranges,
gated and private repositories, branches and commits are as there; xet is not spoken. Every request is
counted with its connection, its range and its bytes, and `fail` makes answers bad on demand.
`python -m tests.support.hub NAME=DIRECTORY…` serves in a process of its own until its input ends.
Knows nothing of exo.
"""

import argparse
import json
import os
import re
import socket
import struct
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, Final
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.support.faults import Answer, Body, Ending, chunks
from tests.support.hub_state import COMMIT, Hub, Repository, Request

__all__ = ["COMMIT", "Hub", "Repository", "Request", "running"]

_MODEL: Final = re.compile(r"/api/models/([^/]+/[^/]+?)(?:/revision/([^/]+))?")
_TREE: Final = re.compile(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)")
_RESOLVE: Final = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_DIRECT: Final = re.compile(r"/api/resolve-cache/models/([^/]+/[^/]+)/([^/]+)/(.+)")
_LINK: Final = re.compile(r"/repos/([^/]+/[^/]+)/([^/]+)/(.+)")
_RANGE: Final = re.compile(r"bytes=(\d*)-(\d*)")
_IN_LFS: Final = (".safetensors", ".bin", ".gguf")
_POINTER_BYTES: Final = 134
_CHUNK_BYTES: Final = 64 * 1024
_STEP_BYTES: Final = 256 * 1024
_MOST_AT_ONCE: Final = 1 << 20
_EVIL: Final = Body.of(b"evil" * 25)
"""What is in files that are listed and not there."""


@contextmanager
def running(host: str = "127.0.0.1") -> Iterator[Hub]:
    """A hub and its CDN on free ports."""
    hub = Hub()
    numbers = count(1)

    class AtHub(_HubHandler):
        served = hub
        connections = numbers

    class AtCdn(_CdnHandler):
        served = hub
        connections = numbers

    with ExitStack() as stack:
        hub.url = stack.enter_context(_serving(host, AtHub))
        hub.cdn_url = stack.enter_context(_serving(host, AtCdn))
        try:
            yield hub
        finally:
            hub.closing.set()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle is no error; of anything else the test's output tells."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def _serving(host: str, handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with _Server((host, 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield f"http://{host}:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    """Reads requests and sends answers, bad ones where that is wanted."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    served: ClassVar[Hub]
    connections: ClassVar[Iterator[int]]
    base: str
    request_now: Request

    def setup(self) -> None:
        super().setup()
        self.number = next(self.connections)

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        with_token = self.headers.get("Authorization") is not None
        self.request_now = Request(self.command, unquote(url.path), self.number, with_token=with_token)
        self.served.see(self.request_now)
        answer = replace(self.answer(url.path, parse_qs(url.query)), here=self.base + self.path)
        for fault in self.served.befalling(self.request_now, len(answer.body)):
            answer = fault(answer)
        self._send(answer)

    def do_HEAD(self) -> None:
        self.do_GET()

    def answer(self, path: str, query: Mapping[str, list[str]]) -> Answer:
        raise NotImplementedError

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def bytes_of(self, path: Path, headers: dict[str, str]) -> Answer:
        """A file, or the range of it that is asked for."""
        whole = Body(path, 0, path.stat().st_size) if path.exists() else _EVIL
        headers |= {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        asked = _RANGE.fullmatch(self.headers.get("Range") or "")
        unchanged = self.headers.get("If-Range") in (None, headers["ETag"])
        if asked is None or asked[0] == asked[1] == "" or not unchanged:
            return Answer(200, headers, whole, whole)
        size = len(whole)
        start = int(asked[1]) if asked[1] else max(0, size - int(asked[2]))
        end = min(size, int(asked[2]) + 1) if asked[1] and asked[2] else size
        if start >= end:
            return Answer(416, {"Content-Range": f"bytes */{size}"})
        self.request_now.range = (start, end)
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        return Answer(206, headers, replace(whole, start=start, end=end), whole)

    def _send(self, answer: Answer) -> None:
        self.request_now.status = answer.status
        self.send_response(answer.status)
        for name, value in ({"Content-Length": str(len(answer.body))} | answer.headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self._send_body(answer)
        if answer.ending is Ending.STALL:
            self.served.stalled.set()
            self.served.closing.wait()
        if answer.ending is Ending.RESET:
            # Without its own object, so that nobody ends it in good order first.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            socket.close(self.connection.detach())
        if answer.ending is not Ending.KEEP:
            self.close_connection = True

    def _send_body(self, answer: Answer) -> None:
        pace = min((each for each in (answer.bytes_per_s, self.served.bytes_per_s) if each), default=None)
        most = _MOST_AT_ONCE if pace is None else max(1, min(_CHUNK_BYTES, int(pace / 20)))
        if self.served.in_step:
            most = min(most, _STEP_BYTES)
        if isinstance(answer.body.source, bytes):
            for chunk in chunks(answer.body, most):
                self.wfile.write(chunk.read())
                self._sent(len(chunk), pace)
            return
        with answer.body.source.open("rb") as file:
            at = answer.body.start
            while at < answer.body.end:
                sent = os.sendfile(
                    self.connection.fileno(), file.fileno(), at, min(most, answer.body.end - at)
                )
                if sent == 0:
                    # The file became shorter: what was promised does not come.
                    self.close_connection = True
                    return
                at += sent
                self._sent(sent, pace)

    def _sent(self, count: int, pace: float | None) -> None:
        self.served.count(self.request_now, count)
        if pace is not None:
            self.served.closing.wait(count / pace)
        while self.served.in_step and self._unread() > 0 and not self.served.closing.wait(0.001):
            pass

    def _unread(self) -> int:
        """Bytes of this connection that its client has not taken from the system; 0 where that is unknown."""
        ends = (self.client_address[1], self.connection.getsockname()[1])
        with suppress(OSError), open("/proc/net/tcp", encoding="ascii") as table:
            for line in table.readlines()[1:]:
                _, local, remote, _, queues, *_ = line.split()
                if (_port(local), _port(remote)) == ends:
                    return int(queues.partition(":")[2], 16)
        return 0


class _HubHandler(_Handler):
    """Descriptions, metadata, and files that are not in LFS."""

    @property
    def base(self) -> str:  # type: ignore[override]
        return self.served.url

    def answer(self, path: str, query: Mapping[str, list[str]]) -> Answer:
        if path == "/-/requests":
            return _json([asdict(each) for each in self.served.requests])
        if found := _MODEL.fullmatch(path):
            return self._model(found[1], unquote(found[2] or "main"), query)
        if found := _TREE.fullmatch(path):
            return self._tree(found[1], unquote(found[2]), query)
        if found := _DIRECT.fullmatch(path):
            return self._direct(found[1], found[2], unquote(found[3]))
        if found := _RESOLVE.fullmatch(path):
            return self._resolve(found[1], unquote(found[2]), unquote(found[3]))
        return _error(404)

    def _model(self, name: str, revision: str, query: Mapping[str, list[str]]) -> Answer:
        found = self._visible(name, revision)
        if isinstance(found, Answer):
            return found
        repository, directory, commit = found
        siblings: list[dict[str, Any]] = [{"rfilename": file} for file in _names(repository, directory)]
        if "blobs" in query:
            for each in siblings:
                described = self._described(repository, directory, each["rfilename"])
                each |= {"size": described["size"], "blobId": described["oid"]}
                if lfs := described.get("lfs"):
                    each["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": _POINTER_BYTES}
        gated = "manual" if repository.token is not None else False
        document = {
            "_id": "0" * 24,
            "id": name,
            "modelId": name,
            "sha": commit,
            "private": repository.private,
        }
        return _json({**document, "gated": gated, "disabled": False, "tags": [], "siblings": siblings})

    def _tree(self, name: str, revision: str, query: Mapping[str, list[str]]) -> Answer:
        found = self._visible(name, revision)
        if isinstance(found, Answer):
            return found
        repository, directory, _ = found
        names = _names(repository, directory)
        first = int(query.get("cursor", ["0"])[0])
        stop = first + self.served.page_entries
        made = _json([self._described(repository, directory, file) for file in names[first:stop]])
        if stop >= len(names):
            return made
        url = f"{self.served.url}/api/models/{name}/tree/{quote(revision, safe='')}"
        return made.saying(Link=f'<{url}?recursive=true&cursor={stop}>; rel="next"')

    def _described(self, repository: Repository, directory: Path, file: str) -> dict[str, Any]:
        path = _safe(directory, file)
        there = path.is_file()
        size = repository.sizes.get(file, path.stat().st_size if there else len(_EVIL))
        sha256, sha1 = self.served.etags(path) if there else ("e" * 64, "e" * 40)
        entry: dict[str, Any] = {"type": "file", "path": file, "size": size, "oid": sha1}
        if _in_lfs(file):
            entry["lfs"] = {"oid": sha256, "size": size, "pointerSize": _POINTER_BYTES}
        return entry

    def _resolve(self, name: str, revision: str, file: str) -> Answer:
        self.request_now.site, self.request_now.file = "resolve", file
        found = self._visible(name, revision, to_have=True)
        if isinstance(found, Answer):
            return found
        repository, directory, commit = found
        if file not in _names(repository, directory):
            return _error(404, "EntryNotFound", "Entry not found").saying(X_Repo_Commit=commit)
        described = self._described(repository, directory, file)
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if lfs := described.get("lfs"):
            to = (
                f"{self.served.cdn_url}/repos/{name}/{commit}/{quote(file)}?Signature={self.served.signature}"
            )
            # The ETag is the pointer's: whoever takes it for that of the bytes is caught.
            headers |= {"ETag": f'"{described["oid"][::-1]}"', "X-Linked-Etag": f'"{lfs["oid"]}"'}
            return Answer(302, {**headers, "X-Linked-Size": str(lfs["size"]), "Location": to})
        to = f"/api/resolve-cache/models/{name}/{commit}/{quote(file)}"
        return Answer(307, {**headers, "ETag": f'"{described["oid"]}"', "Location": to})

    def _direct(self, name: str, commit: str, file: str) -> Answer:
        self.request_now.site, self.request_now.file = "bytes", file
        found = self._visible(name, commit, to_have=True)
        if isinstance(found, Answer):
            return found
        repository, directory, _ = found
        described = self._described(repository, directory, file)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{described["oid"]}"'}
        return self.bytes_of(_safe(directory, file), headers)

    def _visible(
        self, name: str, revision: str, *, to_have: bool = False
    ) -> tuple[Repository, Path, str] | Answer:
        """The repository at a revision, or the real hub's answer to those who may not see or have it."""
        found = self.served.repositories.get(name)
        given = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if found is None or (found.private and given != found.token):
            # Not told apart, and another status for strangers.
            return _error(404 if given else 401, "RepoNotFound", "Repository not found")
        if to_have and found.token is not None and given != found.token:
            message = f"Access to model {name} is restricted."
            return _error(403 if given else 401, "GatedRepo", message)
        there = found.at(revision)
        if there is None:
            return _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found, *there


class _CdnHandler(_Handler):
    """Files in LFS, for those who have a link."""

    @property
    def base(self) -> str:  # type: ignore[override]
        return self.served.cdn_url

    def answer(self, path: str, query: Mapping[str, list[str]]) -> Answer:
        found = _LINK.fullmatch(path)
        if found is None:
            return _error(404)
        file = unquote(found[3])
        self.request_now.site, self.request_now.file = "bytes", file
        if self.request_now.with_token:
            return _error(400, message="Only one auth mechanism allowed")
        if query.get("Signature") != [str(self.served.signature)]:
            return _error(403, message="Request has expired")
        there = self.served.repositories[found[1]].at(found[2])
        if there is None:
            return _error(404)
        path_here = _safe(there[0], file)
        # As S3's of an upload in parts: it changes with the bytes, and is no digest of them.
        tag = self.served.etags(path_here)[1][:32] if path_here.exists() else "e" * 32
        disposition = f'inline; filename="{file.rpartition("/")[2]}";'
        return self.bytes_of(path_here, {"ETag": f'"{tag}-1"', "Content-Disposition": disposition})


def _names(repository: Repository, directory: Path) -> list[str]:
    if repository.listed is not None:
        return repository.listed
    return sorted(each.relative_to(directory).as_posix() for each in directory.rglob("*") if each.is_file())


def _port(address: str) -> int:
    return int(address.rpartition(":")[2], 16)


def _safe(directory: Path, file: str) -> Path:
    """Where a file is; one that is not there for a name that leads out."""
    leads_out = Path(file).is_absolute() or ".." in Path(file).parts
    return directory / ("no such file" if leads_out else file)


def _in_lfs(file: str) -> bool:
    return file.endswith(_IN_LFS)


def _json(value: Any) -> Answer:
    body = Body.of(json.dumps(value).encode())
    return Answer(200, {"Content-Type": "application/json; charset=utf-8"}, body)


def _error(status: int, code: str | None = None, message: str = "no") -> Answer:
    made = Answer(status, {"X-Error-Message": message}, Body.of(json.dumps({"error": message}).encode()))
    return made.saying(X_Error_Code=code) if code is not None else made


def main() -> None:
    """Says its URL in a line of JSON; `/-/requests` tells what it was asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repositories", nargs="+", metavar="NAME=DIRECTORY")
    parser.add_argument("--host", default="127.0.0.1")
    arguments = parser.parse_args()
    with running(arguments.host) as hub:
        for each in arguments.repositories:
            name, _, directory = each.partition("=")
            hub.add(name, Path(directory))
        print(json.dumps({"url": hub.url}), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
