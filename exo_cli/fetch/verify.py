"""Whole files, compared with the name that the hub has for their content.

A follower reads a file from the disk while it grows, just behind its end, so that what is compared is
what is kept and the answer is there soon after the last byte. Knows nothing of where bytes come from.
"""

import hashlib
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from exo_cli.errors import InputOutput
from exo_cli.fetch import pieces
from exo_cli.fetch.partial_writer import PartialWriter
from exo_cli.fetch.pieces import Range, Span

_READ_BYTES: Final = 1024 * 1024
_LOOK_S: Final = 0.5


def hasher(etag: str, size: int) -> Any:
    """What makes the hub's name of a content of `size` bytes: sha256, or git's sha1."""
    if len(etag) == 64:
        return hashlib.sha256()
    # Git's own name for a file; the hub has it for small ones.
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def is_content(data: bytes, etag: str) -> bool:
    """Whether these bytes are what the hub calls `etag`."""
    digest = hasher(etag, len(data))
    digest.update(data)
    return bool(digest.hexdigest() == etag)


def file_is_content(path: Path, etag: str, stopped: threading.Event | None = None) -> bool:
    """The same of a file, read to its end."""
    try:
        with open(path, "rb") as file:
            digest = hasher(etag, os.fstat(file.fileno()).st_size)
            buffer = memoryview(bytearray(_READ_BYTES))
            while count := file.readinto(buffer):
                digest.update(buffer[:count])
                if stopped is not None and stopped.is_set():
                    return False
    except OSError as error:
        raise InputOutput(f"{path} cannot be read: {(error.strerror or '').lower()}") from error
    return bool(digest.hexdigest() == etag)


def to_be_whole(writer: PartialWriter, spans: Iterable[Span]) -> list[str]:
    """The files of which all is here once these spans are; for others a follower would wait in vain."""
    ranges: dict[str, list[Range]] = {}
    for name, start, end in spans:
        file = writer.file(name)
        if file is not None:
            ranges[name] = pieces.add(ranges.get(name, file.ranges), start, end)
    files = ((writer.file(name), held) for name, held in ranges.items())
    return [file.path for file, held in files if file is not None and pieces.covers(held, 0, file.size)]


class Follower:
    """Reads files that are being written, one after the other; `finish` gives those that are not right."""

    def __init__(self, writer: PartialWriter, names: Iterable[str], stopped: threading.Event) -> None:
        self._writer = writer
        self._names = [name for name in names if self._is_due(name)]
        self._stopped = stopped
        self._changed = threading.Condition()
        self._ended = False
        self._bad: list[str] = []
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="verify", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def news(self) -> None:
        """Something was written."""
        with self._changed:
            self._changed.notify_all()

    def finish(self) -> list[str]:
        """Nothing more comes: wait until everything that is whole was read."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        return self._bad

    def _is_due(self, name: str) -> bool:
        file = self._writer.file(name)
        return file is not None and bool(file.etag) and not file.verified

    def _run(self) -> None:
        try:
            for name in self._names:
                self._follow(name)
        except (InputOutput, OSError) as error:
            self._failure = error

    def _follow(self, name: str) -> None:
        file = self._writer.file(name)
        assert file is not None
        digest, at = hasher(file.etag, file.size), 0
        buffer = memoryview(bytearray(_READ_BYTES))
        descriptor = os.open(self._writer.path / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            while at < file.size:
                end = self._reaches(name, at)
                if end <= at or self._stopped.is_set():
                    return  # it does not become whole, or nobody waits
                while at < end and not self._stopped.is_set():
                    count = os.preadv(descriptor, [buffer[: min(end - at, _READ_BYTES)]], at)
                    if count == 0:
                        raise InputOutput(f"{name} became shorter while it was being read")
                    digest.update(buffer[:count])
                    at += count
        finally:
            os.close(descriptor)
        if digest.hexdigest() == file.etag:
            self._writer.verified(name)
        else:
            self._bad.append(name)

    def _reaches(self, name: str, at: int) -> int:
        """How far the file is there from its beginning; waits until that is beyond `at`."""
        with self._changed:
            while True:
                file = self._writer.file(name)
                ended = self._ended or self._stopped.is_set()
                if file is not None and pieces.covers(file.ranges, 0, at + 1):
                    return file.ranges[0][1]
                if ended:
                    return at
                self._changed.wait(_LOOK_S)
