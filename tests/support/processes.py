"""exo processes of a test: without a cluster key, so that all they say stays on loopback.

Output goes to files, so that no pipe can fill up; everything is ended with the test.
"""

import json
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fcntl import ioctl
from pathlib import Path
from typing import Any

import psutil

from tests.support.cli import EXO


def wait_until(
    true: Callable[[], bool], why: Callable[[], str] = lambda: "it did not happen", *, seconds: float = 40
) -> None:
    until = time.monotonic() + seconds
    while not true():
        if time.monotonic() > until:
            raise AssertionError(f"after {seconds:g} s: {why()}")
        time.sleep(0.02)


@dataclass
class Running:
    """One exo process."""

    popen: "subprocess.Popen[bytes]"
    stdout: Path
    stderr: Path

    def out(self) -> str:
        return self.stdout.read_text()

    def err(self) -> str:
        return self.stderr.read_text()

    def lines(self) -> list[dict[str, Any]]:
        """The JSON lines that are complete by now."""
        return [json.loads(line) for line in self.out().splitlines(keepends=True) if line.endswith("\n")]

    def until(self, true: Callable[[], bool]) -> None:
        """Wait for it while the process lives."""
        wait_until(lambda: true() or self.popen.poll() is not None, self.told)
        assert true(), self.told()

    def told(self) -> str:
        return f"code {self.popen.poll()}\n{self.out()}\n{self.err()}"

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.popen.send_signal(number)
        return self.popen.wait(30)


@dataclass
class Stage:
    """Starts exo processes in a directory."""

    directory: Path
    running: list[Running] = field(default_factory=list)

    def start(self, *arguments: str, **environment: str) -> Running:
        number = len(self.running)
        out, err = self.directory / f"{number}.out", self.directory / f"{number}.err"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            popen = subprocess.Popen(
                [*EXO, *arguments],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
            )
        process = Running(popen, out, err)
        self.running.append(process)
        return process

    def node(self, *arguments: str, verb: Sequence[str] = ("serve-shard",)) -> Running:
        """A node, once it is ready."""
        process = self.start(*verb, "--json", *arguments)
        process.until(lambda: '"type":"ready"' in process.out())
        return process

    def close(self) -> None:
        for process in self.running:
            if process.popen.poll() is None:
                process.popen.kill()
            process.popen.wait(10)


class Terminal:
    """A process on a terminal of its own, and all that it has written there."""

    def __init__(self, popen: "subprocess.Popen[bytes]", master: int) -> None:
        self.popen = popen
        self._master = master
        self.written = b""

    @property
    def text(self) -> str:
        """All of it, without the colours."""
        self._read(0.0)
        return self.written.decode(errors="replace")

    def _read(self, seconds: float) -> bool:
        """Whether there may be more."""
        while select.select([self._master], [], [], seconds)[0]:
            try:
                piece = os.read(self._master, 65536)
            except OSError:  # Linux says so at the end
                return False
            if not piece:
                return False
            self.written += piece
        return True

    def until(self, true: Callable[[str], bool], *, seconds: float = 40) -> str:
        end = time.monotonic() + seconds
        while not true(self.text):
            more = self._read(0.05)
            assert more or true(self.text), self.written
            assert time.monotonic() < end, self.written
        return self.text

    def wait(self) -> int:
        end = time.monotonic() + 40
        while self.popen.poll() is None and time.monotonic() < end:
            self._read(0.05)
        self._read(0.0)
        return self.popen.wait(1)


@contextmanager
def terminal(*arguments: str, columns: int = 100, rows: int = 40, **environment: str) -> Iterator[Terminal]:
    """`exo` where standard output is a terminal; Ctrl-C there is `send_signal(SIGINT)`."""
    master, slave = pty.openpty()
    ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    try:
        popen = subprocess.Popen(
            [*EXO, *arguments],
            env={**os.environ, "TERM": "xterm-256color", **environment},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
    finally:
        os.close(slave)
    try:
        yield Terminal(popen, master)
    finally:
        if popen.poll() is None:
            popen.kill()
        popen.wait(10)
        os.close(master)


def is_engine(process: psutil.Process) -> bool:
    """Whether it is an engine, and not one that has ended meanwhile."""
    with suppress(psutil.NoSuchProcess):  # a zombie is one, too
        return "exo_cli.shard.worker" in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE
    return False
