"""What the hub of the tests serves, what it does wrong, and what it has seen. Knows nothing of HTTP."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tests.support.faults import Cut, Ending, Fault, Rule, Status, Text

COMMIT = "c0ffee" + "0" * 34
Site = Literal["api", "resolve", "bytes"]
"""Descriptions of repositories; metadata of a file, or the way to it; an answer with its bytes."""


@dataclass
class Repository:
    """What is served under a name."""

    path: Path
    """The directory that the branches stand for."""
    commit: str = COMMIT
    revisions: tuple[str, ...] = ("main",)
    token: str | None = None
    """Gated: everybody sees what it has, who has this token gets it."""
    private: bool = False
    """Without the token nobody sees it."""
    listed: list[str] | None = None
    """File names to claim, instead of those that are there."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Sizes to claim, instead of the right ones."""
    older: dict[str, Path] = field(default_factory=dict)

    def push(self, path: Path, commit: str) -> None:
        """The branches stand for another commit from now on; the one before keeps its name."""
        self.older[self.commit] = self.path
        self.path, self.commit = path, commit

    def at(self, revision: str) -> tuple[Path, str] | None:
        """The directory and the commit that a revision stands for."""
        if revision in (*self.revisions, self.commit):
            return self.path, self.commit
        return (self.older[revision], revision) if revision in self.older else None


@dataclass
class Faults:
    """The plainest faults, set and cleared by the name of a file. `Hub.fail` has all others."""

    status: int | None = None
    file_status: dict[str, int] = field(default_factory=dict)
    cut_after: dict[str, int] = field(default_factory=dict)
    """The connection is closed once after so many bytes."""
    stall_after: dict[str, int] = field(default_factory=dict)
    """Nothing more comes until the hub closes."""
    api_body: bytes | None = None

    def of(self, site: str, method: str, file: str) -> Iterator[Fault]:
        if self.status is not None:
            yield Status(self.status)
        if site == "api" and self.api_body is not None:
            yield Text(self.api_body, "application/json")
        if site == "bytes" and method == "GET":
            if status := self.file_status.get(file):
                yield Status(status)
            if (cut := self.cut_after.pop(file, None)) is not None:
                yield Cut(cut)
            if (stall := self.stall_after.get(file)) is not None:
                yield Cut(stall, Ending.STALL)


@dataclass
class Request:
    """One request as it was seen, and what was sent for it."""

    method: str
    path: str
    connection: int
    site: Site = "api"
    file: str = ""
    range: tuple[int, int] | None = None
    """Of the file, its end excluded; None if the whole was asked for."""
    with_token: bool = False
    status: int = 0
    sent_bytes: int = 0


@dataclass
class Hub:
    """A hub, whether or not somebody serves it."""

    url: str = ""
    cdn_url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    faults: Faults = field(default_factory=Faults)
    rules: list[Rule] = field(default_factory=list)
    bytes_per_s: float | None = None
    """How fast each connection is at most."""
    in_step: bool = False
    """Send 256 KiB only after a client has read those before: what was sent was received (Linux)."""
    page_entries: int = 1000
    """Of a tree in one answer."""
    requests: list[Request] = field(default_factory=list)
    """All that were seen."""
    sent: dict[str, int] = field(default_factory=dict)
    """Bytes by file."""
    watcher: Callable[[str, int], None] | None = None
    """Told of file and count whenever bytes were sent, by the thread that sends them."""
    stalled: threading.Event = field(default_factory=threading.Event)
    closing: threading.Event = field(default_factory=threading.Event)
    signature: int = 1
    _guard: threading.Lock = field(default_factory=threading.Lock)
    _etags: dict[tuple[Path, int, int], tuple[str, str]] = field(default_factory=dict)

    def add(self, name: str, path: Path, **options: Any) -> Repository:
        self.repositories[name] = Repository(path, **options)
        return self.repositories[name]

    def fail(
        self,
        fault: Fault,
        *,
        file: str | None = None,
        site: Site = "bytes",
        method: str | None = "GET",
        times: int | None = 1,
        skip: int = 0,
        least_bytes: int = 0,
    ) -> Rule:
        """From now on this befalls `times` answers (None: all) after the first `skip` that match."""
        self.rules.append(Rule(fault, file, site, method, times, skip, least_bytes))
        return self.rules[-1]

    def befalling(self, request: Request, size: int) -> list[Fault]:
        """The faults that an answer of so many bytes meets, which uses them up."""
        met = (request.site, request.method, request.file)
        with self._guard:
            return [*self.faults.of(*met), *(rule.fault for rule in self.rules if rule.meets(*met, size))]

    def expire_links(self) -> None:
        """Links to the CDN that were given out are refused from now on."""
        self.signature += 1

    def clear(self) -> None:
        """Forget what was seen, and the faults."""
        with self._guard:
            self.faults, self.rules = Faults(), []
            self.requests, self.sent = [], {}
            self.stalled.clear()

    def see(self, request: Request) -> None:
        with self._guard:
            self.requests.append(request)

    def count(self, request: Request, sent_bytes: int) -> None:
        """Bytes went out."""
        with self._guard:
            request.sent_bytes += sent_bytes
            if request.file and request.site == "bytes":
                self.sent[request.file] = self.sent.get(request.file, 0) + sent_bytes
        if self.watcher is not None and request.site == "bytes":
            self.watcher(request.file, sent_bytes)

    @property
    def downloads(self) -> list[str]:
        """Names of the files whose bytes were asked for."""
        with self._guard:
            return [each.file for each in self.requests if each.site == "bytes" and each.method == "GET"]

    def asked(self, file: str) -> list[tuple[int, int] | None]:
        """The ranges of a file that were asked for; None for the whole."""
        with self._guard:
            seen = [each for each in self.requests if each.file == file and each.site == "bytes"]
            return [each.range for each in seen if each.method == "GET"]

    @property
    def sent_bytes(self) -> int:
        """Of all files."""
        with self._guard:
            return sum(self.sent.values())

    @property
    def connections(self) -> int:
        """How many there were, to both ports."""
        with self._guard:
            return len({each.connection for each in self.requests})

    def etags(self, path: Path) -> tuple[str, str]:
        """sha256 of a file's bytes, and the name that git gives them."""
        found = path.stat()
        key = (path, found.st_size, found.st_mtime_ns)
        with self._guard:
            if key not in self._etags:
                sha256 = hashlib.sha256()
                sha1 = hashlib.sha1(b"blob %d\0" % found.st_size, usedforsecurity=False)
                with path.open("rb") as file:
                    while data := file.read(1 << 20):
                        sha256.update(data)
                        sha1.update(data)
                self._etags[key] = (sha256.hexdigest(), sha1.hexdigest())
            return self._etags[key]
