"""The topology file: read at any time, changed by one process at a time, written whole.

Readers take no lock, since the file is only ever replaced. Writers hold flock on `PATH.lock`, which
the kernel releases when they die. `generation` grows by one with every change and never otherwise.
Knows nothing of what a change means: callers hand in a function (`merge` is the usual one).
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from exo_cli import atomic
from exo_cli.errors import BadData, InputOutput, NotFound, TryAgain
from exo_cli.schemas.decode import MAX_DOCUMENT_BYTES, decode, too_large
from exo_cli.schemas.topology import SCHEMA, Topology

STEPS = ("lock", "locked", "read", "apply", *atomic.STEPS, "unlock")
"""What `step` is called with during an update, in this order."""

_RETRY_S = 0.005


def _no_step(_name: str) -> None:
    pass


class TopologyFile:
    """One topology file at a path, which need not exist yet."""

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        step: Callable[[str], None] = _no_step,
    ) -> None:
        self.path = path
        # A link is followed, so that all writers of one file meet at one lock.
        self._file = Path(os.path.realpath(path))
        self._lock = self._file.with_name(self._file.name + ".lock")
        self._clock = clock
        self._sleep = sleep
        self._step = step

    def read(self, *, must_exist: bool = False) -> Topology:
        """What the file says; without a file an empty topology, unless it must exist."""
        data = self._load()
        if data is None:
            if must_exist:
                raise NotFound(
                    f"there is no topology at {self.path}", hint="Find the nodes first: exo discover"
                )
            return Topology()
        return self._decode(data)

    def read_bytes(self) -> bytes:
        """The file as it is, unchecked; without a file, what an empty one would hold."""
        data = self._load()
        return encode(Topology()) if data is None else data

    def update(self, change: Callable[[Topology], Topology], *, timeout_s: float = 5.0) -> Topology:
        """Apply `change` under the lock; write only if something but the generation changed."""
        with self._locked(timeout_s):
            self._step("read")
            return self._apply(self.read(), change)

    def compare_and_swap(
        self, expected_generation: int, topology: Topology, *, timeout_s: float = 5.0
    ) -> Topology:
        """Write `topology` if nobody has written since `expected_generation` was read."""

        def swap(current: Topology) -> Topology:
            if current.generation != expected_generation:
                raise TryAgain(
                    f"{self.path} is at generation {current.generation}, not {expected_generation}: "
                    "somebody has written it in between",
                    hint="Read it again and repeat.",
                )
            return topology

        return self.update(swap, timeout_s=timeout_s)

    def _apply(self, current: Topology, change: Callable[[Topology], Topology]) -> Topology:
        self._step("apply")
        generation = current.generation + 1
        try:
            data = encode(msgspec.structs.replace(change(current), generation=generation))
        except UnicodeEncodeError as error:
            raise BadData(f"a name for {self.path} is not valid text; nothing was written") from error
        # Records come from other machines: what could not be read again is not written.
        changed = decode(data, Topology, schema=SCHEMA, where=f"what was to be written to {self.path}")
        unchanged = changed == _in_order(msgspec.structs.replace(current, generation=generation))
        # A Makefile waits for the file: one that says "nobody" is better than none.
        if unchanged and self.path.exists():
            return current
        atomic.replace(self._file, data, step=self._step)
        return changed

    def _load(self) -> bytes | None:
        try:
            with open(self.path, "rb", buffering=0) as file:
                if os.fstat(file.fileno()).st_size > MAX_DOCUMENT_BYTES:
                    raise too_large(str(self.path), hint=self._remedy())
                return _read_bounded(file.fileno())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputOutput(
                f"cannot read {self.path}: {(error.strerror or str(error)).lower()}",
                hint=f"Look at it with: ls -ld {self.path}",
            ) from error

    def _decode(self, data: bytes) -> Topology:
        return decode(data, Topology, schema=SCHEMA, where=str(self.path), hint=self._remedy())

    def _remedy(self) -> str:
        return f"Remove it (rm {self.path}) or use another file: exo discover --topology OTHER"

    @contextmanager
    def _locked(self, timeout_s: float) -> Iterator[None]:
        self._step("lock")
        try:
            with suppress(FileExistsError):
                self._file.parent.mkdir(mode=0o700, parents=True)
            descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise atomic.cannot_write(self.path, error) from error
        try:
            self._wait_for(descriptor, timeout_s)
            self._step("locked")
            try:
                _sign(descriptor, f"{os.getpid()}\n")
                yield
            finally:
                _sign(descriptor, "")
                self._step("unlock")
                # A forked child would keep the lock if it were only closed here.
                fcntl.flock(descriptor, fcntl.LOCK_UN)
        finally:
            os.close(descriptor)

    def _wait_for(self, descriptor: int, timeout_s: float) -> None:
        give_up = self._clock() + timeout_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if self._clock() >= give_up:
                    raise self._busy(descriptor) from None
                self._sleep(_RETRY_S)
            except OSError as error:
                raise atomic.cannot_write(self.path, error) from error

    def _busy(self, descriptor: int) -> TryAgain:
        pid = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
        if not pid.isdecimal():
            return TryAgain(f"{self.path} is being written by somebody else", hint="Try again in a moment.")
        return TryAgain(
            f"{self.path} is being written by process {pid}",
            hint=f"Try again in a moment, or see what it is: ps -p {pid}",
        )


def encode(topology: Topology) -> bytes:
    """The bytes of the file: the same topology gives the same bytes."""
    return msgspec.json.format(msgspec.json.encode(_in_order(topology)), indent=2) + b"\n"


def _in_order(topology: Topology) -> Topology:
    return msgspec.structs.replace(
        topology,
        nodes=tuple(sorted(topology.nodes, key=lambda node: (node.name, node.id))),
        links=tuple(sorted(topology.links, key=lambda link: (link.from_, link.to))),
    )


def _read_bounded(descriptor: int) -> bytes:
    # A pipe has no size to look at first; `decode` refuses what is one byte too long.
    pieces = bytearray()
    while len(pieces) <= MAX_DOCUMENT_BYTES:
        piece = os.read(descriptor, MAX_DOCUMENT_BYTES + 1 - len(pieces))
        if not piece:
            break
        pieces += piece
    return bytes(pieces)


def _sign(descriptor: int, text: str) -> None:
    """Write who holds the lock, for the message that another writer gets."""
    # On a full disk the holder stays unnamed, and the update itself says what is wrong.
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)
