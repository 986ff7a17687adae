"""HTTP/1.1 as far as a client needs it: where a server is, and what it answers, taken apart. Pure.

Answers come in whatever pieces the network makes of them; what is no HTTP is BadData. Knows nothing of
sockets, and of what is asked or answered.
"""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final
from urllib.parse import urlsplit

from exo_cli.errors import BadData, UsageProblem

MAX_HEAD_BYTES: Final = 64 << 10
MAX_LINE_BYTES: Final = 4 << 10
_NO_BODY: Final = frozenset((204, 304))


@dataclass(frozen=True, slots=True)
class Url:
    """The place of a server; `path` has no slash at its end."""

    host: str
    port: int
    tls: bool
    path: str

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self.tls else ''}://{host}:{self.port}{self.path}"


def parse_url(text: str) -> Url:
    """Raises UsageProblem; a secret in it is refused, since others can read the command line."""
    hint = "Write it like http://127.0.0.1:8080."
    if not text.isascii() or any(char <= " " for char in text):
        raise UsageProblem("the URL has characters that none may have", hint=hint)
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise UsageProblem(f"'{text}' is no URL", hint=hint) from error
    # What no resolver takes, it says with an exception of its own.
    labels = (parts.hostname or "").removesuffix(".").split(".")
    named = all(0 < len(label) < 64 for label in labels)
    if parts.scheme not in ("http", "https") or not named or not parts.hostname or port == 0:
        raise UsageProblem(f"'{text}' is no http:// or https:// URL", hint=hint)
    if "@" in parts.netloc:
        raise UsageProblem("a URL is no place for a secret", hint="Set EXO_API_KEY.")
    if parts.query or parts.fragment:
        raise UsageProblem(f"'{text}' has more than a host and a path", hint=hint)
    tls = parts.scheme == "https"
    return Url(parts.hostname, port or (443 if tls else 80), tls, parts.path.rstrip("/"))


class _Reads(Enum):
    """What the next bytes are."""

    HEAD = auto()
    SIZED = auto()
    CHUNK_SIZE = auto()
    CHUNK = auto()
    CHUNK_END = auto()
    TRAILER = auto()
    UNTIL_CLOSE = auto()
    DONE = auto()


class ResponseReader:
    """Takes one response apart, whatever pieces its bytes come in. Pure; raises BadData."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.keeps_open = False
        self._state = _Reads.HEAD
        self._buffer = b""
        self._left = 0

    @property
    def head_read(self) -> bool:
        return self._state is not _Reads.HEAD

    @property
    def done(self) -> bool:
        return self._state is _Reads.DONE

    def feed(self, data: bytes) -> bytes:
        """The bytes of the body that `data` completes."""
        if self._state is _Reads.UNTIL_CLOSE:
            return data
        buffer = self._buffer + data if self._buffer else data
        body: list[bytes] = []
        at = 0
        while at < len(buffer) and self._state is not _Reads.DONE:
            after = self._step(buffer, at, body)
            if after < 0:
                break
            at = after
        if self._state is _Reads.DONE and at < len(buffer):
            # Nobody asked for more: what comes after an answer is no answer to the next question.
            self.keeps_open = False
            at = len(buffer)
        self._buffer = buffer[at:]
        return b"".join(body) if len(body) != 1 else body[0]

    def end(self) -> bool:
        """The connection was closed; returns whether the answer is whole."""
        if self._state is _Reads.UNTIL_CLOSE:
            self._state = _Reads.DONE
        return self.done

    def _step(self, buffer: bytes, at: int, body: list[bytes]) -> int:
        """Read one part that begins at `at`; where the next begins, or -1 if more bytes are needed."""
        if self._state in (_Reads.SIZED, _Reads.CHUNK, _Reads.UNTIL_CLOSE):
            end = len(buffer) if self._state is _Reads.UNTIL_CLOSE else at + self._left
            piece = buffer[at:end]
            body.append(piece)
            self._left -= len(piece)
            if self._left == 0 and self._state is not _Reads.UNTIL_CLOSE:
                self._state = _Reads.DONE if self._state is _Reads.SIZED else _Reads.CHUNK_END
            return at + len(piece)
        if self._state is _Reads.HEAD:
            end = buffer.find(b"\r\n\r\n", at)
            if end < 0:
                return _wait_for(len(buffer) - at, MAX_HEAD_BYTES, "its head is too long")
            self._take_head(buffer[at:end])
            return end + 4
        end = buffer.find(b"\r\n", at)
        if end < 0:
            return _wait_for(len(buffer) - at, MAX_LINE_BYTES, "a chunk has no size")
        line = buffer[at:end]
        if self._state is _Reads.CHUNK_SIZE:
            self._left = _hexadecimal(line.partition(b";")[0].strip())
            self._state = _Reads.CHUNK if self._left else _Reads.TRAILER
        elif self._state is _Reads.CHUNK_END:
            if line:
                raise BadData("a chunk is longer than it says")
            self._state = _Reads.CHUNK_SIZE
        elif not line:
            self._state = _Reads.DONE
        return end + 2

    def _take_head(self, head: bytes) -> None:
        first, *lines = head.decode("latin-1").split("\r\n")
        version, _, rest = first.partition(" ")
        status = rest[:3]
        if not version.startswith("HTTP/1.") or not (status.isascii() and status.isdigit()):
            raise BadData("it is no HTTP/1 answer")
        headers: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon or name != name.strip():
                raise BadData("it has a header that is none")
            headers[name.lower()] = value.strip()
        self.status = int(status)
        if 100 <= self.status < 200:
            return  # a word between; the answer comes after it
        self.headers = headers
        connection = headers.get("connection", "").lower()
        self.keeps_open = connection == "keep-alive" if version == "HTTP/1.0" else connection != "close"
        self._state = self._body_state()
        if self._state is _Reads.UNTIL_CLOSE:
            self.keeps_open = False

    def _body_state(self) -> _Reads:
        coding = self.headers.get("transfer-encoding", "").lower()
        if self.status in _NO_BODY:
            return _Reads.DONE
        if coding:
            if coding != "chunked":
                raise BadData(f"its transfer encoding is unknown: {coding[:40]}")
            return _Reads.CHUNK_SIZE
        length = self.headers.get("content-length")
        if length is None:
            return _Reads.UNTIL_CLOSE
        if not (length.isascii() and length.isdigit()) or len(length) > 15:
            raise BadData("its length is no number")
        self._left = int(length)
        return _Reads.SIZED if self._left else _Reads.DONE


def _wait_for(have: int, most: int, why: str) -> int:
    if have > most:
        raise BadData(why)
    return -1


def _hexadecimal(digits: bytes) -> int:
    if not 0 < len(digits) <= 12 or digits.strip(b"0123456789abcdefABCDEF"):
        raise BadData("a chunk has no size")
    return int(digits, 16)
