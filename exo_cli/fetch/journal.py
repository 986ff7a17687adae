"""What was written into a partial store since its map was last saved, one line a range.

A line costs microseconds where the map costs a wait for the disk, and it survives the process: the
kernel still has the bytes. It does not survive the machine: the first line names the system's run, and
a journal of another run is not believed. Knows nothing of what the map says.
"""

import os
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final

from exo_cli import atomic
from exo_cli.fetch.pieces import Range, Span

JOURNAL: Final = ".exo-journal"
_MAX_BYTES: Final = 64 * 1024 * 1024
_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


@cache
def system_run() -> str:
    """What is another text after each start of the machine; empty where nobody says."""
    if sys.platform == "darwin":
        with suppress(OSError, subprocess.SubprocessError):
            asked = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
            said = subprocess.run(asked, capture_output=True, text=True, timeout=5, check=True)
            return said.stdout.strip()
        return ""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


def read(path: Path) -> dict[str, list[Range]]:
    """By file, the ranges in the journal of the directory `path`, if it is of this run of the machine."""
    try:
        with open(path / JOURNAL, "rb") as file:
            data = file.read(_MAX_BYTES)
    except OSError:
        return {}
    # The last line may be half written.
    lines = data[: data.rfind(b"\n") + 1].decode(errors="replace").split("\n")
    if not system_run() or lines[0] != system_run():
        return {}
    found: dict[str, list[Range]] = {}
    for line in lines[1:]:
        start, _, rest = line.partition(" ")
        end, _, name = rest.partition(" ")
        if start.isdecimal() and end.isdecimal() and int(start) < int(end):
            found.setdefault(name, []).append((int(start), int(end)))
    return found


class Journal:
    """The writer's end. Not safe to use from several threads at once."""

    def __init__(self, path: Path) -> None:
        self._path = path / JOURNAL
        self._descriptor = -1

    def note(self, name: str, start: int, end: int) -> None:
        try:
            if self._descriptor < 0:
                self._descriptor = os.open(self._path, _FLAGS | os.O_APPEND, 0o644)
                if os.fstat(self._descriptor).st_size == 0:
                    os.write(self._descriptor, _head())
            os.write(self._descriptor, _line(name, start, end))
        except OSError as error:
            raise atomic.cannot_write(self._path, error) from error

    def keep(self, spans: Iterable[Span]) -> None:
        """Begin anew, with these."""
        self.close()
        lines = b"".join(_line(span.path, span.start, span.end) for span in spans)
        try:
            if not lines:
                self._path.unlink(missing_ok=True)
                return
            new = self._path.with_name(f"{JOURNAL}.new")
            descriptor = os.open(new, _FLAGS | os.O_TRUNC, 0o644)
            try:
                os.write(descriptor, _head() + lines)
            finally:
                os.close(descriptor)
            os.replace(new, self._path)
        except OSError as error:
            raise atomic.cannot_write(self._path, error) from error

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _head() -> bytes:
    return f"{system_run()}\n".encode()


def _line(name: str, start: int, end: int) -> bytes:
    return f"{start} {end} {name}\n".encode()
