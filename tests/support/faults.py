"""What can go wrong with one answer of the hub of the tests: it is twisted, slowed, cut or never ends.

A fault takes an honest answer and gives the one that is sent instead. Knows nothing of sockets, of
repositories, or of when it applies.
"""

import gzip
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Protocol


class Ending(Enum):
    """What becomes of the connection after the bytes."""

    KEEP = "kept for the next request"
    CLOSE = "closed in good order"
    RESET = "torn down with a RST"
    STALL = "open, and silent until the hub closes"


@dataclass(frozen=True)
class Body:
    """Bytes `start` to `end` of a file, or of a text."""

    source: Path | bytes = b""
    start: int = 0
    end: int = 0

    @classmethod
    def of(cls, text: bytes) -> "Body":
        return cls(text, 0, len(text))

    def __len__(self) -> int:
        return self.end - self.start

    def read(self) -> bytes:
        if isinstance(self.source, bytes):
            return self.source[self.start : self.end]
        with self.source.open("rb") as file:
            file.seek(self.start)
            return file.read(len(self))

    def cut(self, stop: int) -> "Body":
        """No more than the first `stop` bytes."""
        return replace(self, end=min(self.end, self.start + stop))


@dataclass(frozen=True)
class Answer:
    """An answer before it is sent. Without a `Content-Length` among the headers the right one is said."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: Body = field(default_factory=Body)
    whole: Body | None = None
    """The file that `body` is a part of."""
    here: str = ""
    """The URL that was asked for."""
    bytes_per_s: float | None = None
    ending: Ending = Ending.KEEP

    def saying(self, **headers: str) -> "Answer":
        """With these headers; `_` stands for `-`."""
        return replace(self, headers={**self.headers, **{k.replace("_", "-"): v for k, v in headers.items()}})


class Fault(Protocol):
    """Makes a bad answer of a good one."""

    def __call__(self, answer: Answer, /) -> Answer: ...


@dataclass(frozen=True)
class Status:
    """An answer with an error's number; 429 and 503 may say when to come again."""

    status: int
    retry_after: str | None = None
    error_code: str | None = None

    def __call__(self, answer: Answer) -> Answer:
        made = Answer(self.status, body=Body.of(b"no"), here=answer.here)
        if self.retry_after is not None:
            made = made.saying(Retry_After=self.retry_after)
        return made.saying(X_Error_Code=self.error_code) if self.error_code is not None else made


@dataclass(frozen=True)
class Cut:
    """So many bytes, and the connection is gone: as from a proxy that gives up, or by a RST."""

    after: int
    ending: Ending = Ending.CLOSE

    def __call__(self, answer: Answer) -> Answer:
        promised = answer.saying(Content_Length=str(len(answer.body)))
        return replace(promised, body=answer.body.cut(self.after), ending=self.ending)


@dataclass(frozen=True)
class Shortened:
    """Fewer bytes than asked for, and headers that say so: a proxy that truncates and believes it."""

    to: int

    def __call__(self, answer: Answer) -> Answer:
        body = answer.body.cut(self.to)
        if answer.status != 206:
            return replace(answer, body=body)
        total = answer.headers["Content-Range"].rpartition("/")[2]
        made = answer.saying(Content_Range=f"bytes {body.start}-{body.end - 1}/{total}")
        return replace(made, body=body)


@dataclass(frozen=True)
class Dripping:
    """Slow, but it comes."""

    bytes_per_s: float

    def __call__(self, answer: Answer) -> Answer:
        return replace(answer, bytes_per_s=self.bytes_per_s)


@dataclass(frozen=True)
class Flipped:
    """One bit is another one; `bit` counts from the start of the file. Elsewhere nothing changes."""

    bit: int

    def __call__(self, answer: Answer) -> Answer:
        at = self.bit // 8 - answer.body.start
        if not 0 <= at < len(answer.body):
            return answer
        data = bytearray(answer.body.read())
        data[at] ^= 1 << self.bit % 8
        return replace(answer, body=Body.of(bytes(data)))


@dataclass(frozen=True)
class Replaced:
    """Other bytes under the same headers, right in number."""

    fill: int = 0

    def __call__(self, answer: Answer) -> Answer:
        return replace(answer, body=Body.of(bytes([self.fill]) * len(answer.body)))


@dataclass(frozen=True)
class RangeIgnored:
    """The whole file with 200, whatever was asked for."""

    def __call__(self, answer: Answer) -> Answer:
        if answer.status != 206 or answer.whole is None:
            return answer
        headers = {name: value for name, value in answer.headers.items() if name != "Content-Range"}
        return replace(answer, status=200, headers=headers, body=answer.whole)


@dataclass(frozen=True)
class RangeShifted:
    """Bytes beside those that were asked for, on the side where there are some; `silent`: it is not said."""

    by: int
    silent: bool = False

    def __call__(self, answer: Answer) -> Answer:
        if answer.status != 206 or answer.whole is None:
            return answer
        size = len(answer.whole)
        start = answer.body.start + self.by
        if start + len(answer.body) > size:
            start = max(0, answer.body.start - self.by)
        body = replace(answer.whole, start=start, end=start + len(answer.body))
        made = replace(answer, body=body)
        return made if self.silent else made.saying(Content_Range=f"bytes {start}-{body.end - 1}/{size}")


@dataclass(frozen=True)
class Headers:
    """Headers that say something else; None takes one away."""

    values: dict[str, str | None]

    def __call__(self, answer: Answer) -> Answer:
        headers = {name: value for name, value in answer.headers.items() if name not in self.values}
        headers |= {name: value for name, value in self.values.items() if value is not None}
        return replace(answer, headers=headers)


@dataclass(frozen=True)
class Redirected:
    """Sent elsewhere; without a `location` to the same place, for ever."""

    location: str | None = None
    status: int = 302

    def __call__(self, answer: Answer) -> Answer:
        return replace(answer, status=self.status, body=Body()).saying(Location=self.location or answer.here)


@dataclass(frozen=True)
class Text:
    """Something else with 200: the page of a hotel's Wi-Fi, JSON of another shape."""

    body: bytes = b"<!doctype html><title>Log in</title><p>Welcome to our network"
    content_type: str = "text/html; charset=utf-8"

    def __call__(self, answer: Answer) -> Answer:
        made = Answer(200, body=Body.of(self.body), here=answer.here)
        return made.saying(Content_Type=self.content_type)


@dataclass(frozen=True)
class Padded:
    """A JSON document with so many bytes of spaces before its end."""

    count: int

    def __call__(self, answer: Answer) -> Answer:
        data = answer.body.read()
        return replace(answer, body=Body.of(data[:-1] + b" " * self.count + data[-1:]))


@dataclass(frozen=True)
class Compressed:
    """In gzip, whether or not that was asked for."""

    def __call__(self, answer: Answer) -> Answer:
        packed = Body.of(gzip.compress(answer.body.read(), mtime=0))
        return replace(answer, body=packed).saying(Content_Encoding="gzip")


@dataclass
class Rule:
    """A fault, and the answers it befalls: of `least_bytes` about `file`, `times` of them after `skip`."""

    fault: Fault
    file: str | None
    site: str
    method: str | None
    times: int | None
    skip: int
    least_bytes: int
    befell: int = 0

    def meets(self, site: str, method: str, file: str, size: int) -> bool:
        """Whether it befalls this answer, which counts it."""
        if self.site != site or self.method not in (None, method) or self.file not in (None, file):
            return False
        if size < self.least_bytes:
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.times is not None and self.befell >= self.times:
            return False
        self.befell += 1
        return True


def chunks(body: Body, size: int) -> Iterator[Body]:
    """The same bytes in pieces."""
    for start in range(body.start, body.end, size):
        yield replace(body, start=start, end=min(start + size, body.end))
