"""One measurement in a process of its own, on the cores that it is given, with an end to its time.

Its memory is what its whole tree of processes has resident, each shared page counted by its share, and
what of that is not a file's.
Knows nothing of what is measured.
"""

import contextlib
import json
import os
import signal
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks.peers import places

SAMPLE_S: Final = 0.2
_KEPT: Final = ("PATH", "LANG", "LC_ALL", "TMPDIR", "USER", "LOGNAME", "VIRTUAL_ENV", "LD_LIBRARY_PATH")


Sample = tuple[float, int, int]
"""Seconds since the start, resident bytes, anonymous bytes."""


class Failed(Exception):
    """The measurement did not end well; says how, in one line."""


@dataclass
class Outcome:
    """What a child left behind."""

    stdout: str
    seconds: float
    first_output_s: float | None
    """From its start to the first line or piece on stdout."""
    memory: dict[str, int]
    """`resident_bytes` and `anonymous_bytes` while it generated; empty if nobody watched."""

    def results(self) -> list[dict[str, Any]]:
        """The JSON lines on stdout."""
        return [json.loads(line) for line in self.stdout.splitlines() if line.startswith("{")]


def environment() -> dict[str, str]:
    """As little as possible, and a home of the harness's own: no cluster key, nobody's settings."""
    places.home().mkdir(parents=True, exist_ok=True)
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    ours = {"HOME": str(places.home()), "EXO_PEERS_CACHE": str(places.cache())}
    return {**kept, **ours, "PYTHONDONTWRITEBYTECODE": "1"}


def run(
    command: Sequence[str],
    cores: Sequence[int],
    limit_s: float,
    *,
    extra: Mapping[str, str] | None = None,
    watch_memory: bool = False,
) -> Outcome:
    """To its end. Raises Failed where that is a bad one, or does not come in time."""
    begun = time.perf_counter()
    samples: list[Sample] = []
    pieces: list[bytes] = []
    first_s = None
    done = threading.Event()
    with started(command, cores, extra=extra, stdout=subprocess.PIPE) as child:
        popen = child.popen
        assert popen.stdout is not None
        late = threading.Timer(limit_s, child.end)
        watcher = threading.Thread(target=_watch, args=(popen.pid, begun, samples, done))
        try:
            late.start()
            if watch_memory:
                watcher.start()
            while piece := os.read(popen.stdout.fileno(), 65536):
                first_s = first_s if first_s is not None else time.perf_counter() - begun
                pieces.append(piece)
            status = popen.wait()
        finally:
            late.cancel()
            done.set()
            if watch_memory:
                watcher.join()
        last_words = child.last_words()
    seconds = time.perf_counter() - begun
    if seconds >= limit_s:
        raise Failed(f"not done within {limit_s:.0f} s")
    if status:
        raise Failed(f"ended with {status}: {last_words}")
    return Outcome(b"".join(pieces).decode(errors="replace"), seconds, first_s, settled(samples))


@dataclass(frozen=True, slots=True)
class Child:
    """A process that runs, the first of a group of its own."""

    popen: "subprocess.Popen[bytes]"
    errors: Path

    def end(self) -> None:
        """It and whatever it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.popen.pid, signal.SIGKILL)

    def last_words(self) -> str:
        lines = self.errors.read_text(errors="replace").strip().splitlines()
        return (lines[-1] if lines else "it said nothing")[:300]


@contextmanager
def started(
    command: Sequence[str],
    cores: Sequence[int],
    *,
    extra: Mapping[str, str] | None = None,
    stdout: int = subprocess.DEVNULL,
) -> Iterator[Child]:
    """A process and whatever it starts, ended with the block."""
    surroundings = {**environment(), **(extra or {})}
    with tempfile.TemporaryDirectory(prefix="exo-peers-") as place:
        errors = Path(place, "stderr")
        with errors.open("wb") as stderr, _pinned(cores):
            popen = subprocess.Popen(
                list(command),
                cwd=places.REPOSITORY,
                env=surroundings,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                # A session of its own would be a new group to the scheduler, without our priority.
                process_group=0,
            )
        child = Child(popen, errors)
        try:
            yield child
        finally:
            child.end()
            popen.wait()
            if popen.stdout is not None:
                popen.stdout.close()


@contextmanager
def _pinned(cores: Sequence[int]) -> Iterator[None]:
    """What is started in this block stays on these cores, where the system can do that."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _watch(pid: int, begun: float, samples: list[Sample], done: threading.Event) -> None:
    while not done.wait(SAMPLE_S):
        with contextlib.suppress(psutil.Error):
            samples.append((time.perf_counter() - begun, *tree_bytes(pid)))


def tree_bytes(pid: int) -> tuple[int, int]:
    """Resident and anonymous, of a process and all that it started."""
    process = psutil.Process(pid)
    parts = [_held(each.pid) for each in (process, *process.children(recursive=True))]
    return sum(resident for resident, _ in parts), sum(anonymous for _, anonymous in parts)


def _held(pid: int) -> tuple[int, int]:
    """Resident and anonymous bytes; nothing of one that has just ended."""
    found = {"Pss:": 0, "Anonymous:": 0}
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines():
            name, *words = line.split()
            if name in found:
                found[name] = int(words[0]) * 1024
    return found["Pss:"], found["Anonymous:"]


def settled(samples: Sequence[Sample]) -> dict[str, int]:
    """Of the last third of its life, in which it generates."""
    late = [sample for sample in samples if sample[0] >= samples[-1][0] * 2 / 3 and sample[1]]
    if not late:
        return {}
    return {
        "resident_bytes": int(statistics.median(resident for _, resident, _ in late)),
        "anonymous_bytes": int(statistics.median(anonymous for _, _, anonymous in late)),
    }
