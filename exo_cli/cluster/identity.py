"""Who a node is across restarts: a directory under a lock, with its id, name and boot counter.

The directory also says which port the node has now, so that processes of one user on one machine
find each other without a network. Knows nothing of beacons or topology.
"""

import fcntl
import os
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from exo_cli import atomic
from exo_cli.errors import BadData, CannotCreate, TryAgain, UsageProblem
from exo_cli.schemas.first_use import shared

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_SCHEMA = "exo.node/1"
_FILE = "node.json"
_LOCK = "lock"


class NodeFile(msgspec.Struct, frozen=True, kw_only=True):
    """node.json."""

    schema: str = _SCHEMA
    id: str
    name: str
    boot: int
    port: int = 0
    """The control port (TCP)."""
    voice_port: int = 0
    """The UDP port that only this node listens on."""


@dataclass(slots=True)
class Identity:
    """A claimed identity; it is ours until `release` or the process's end."""

    directory: Path
    record: NodeFile
    _lock: int

    @property
    def node_id(self) -> str:
        return self.record.id

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def boot(self) -> int:
        return self.record.boot

    def publish(self, *, port: int, voice_port: int) -> None:
        """Tell the other processes of this user where we listen."""
        self.record = msgspec.structs.replace(self.record, port=port, voice_port=voice_port)
        _write(self.directory, self.record)

    def release(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def host_name() -> str:
    """This machine's short name, as far as it can serve as a node's name."""
    short = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname().split(".")[0]).strip("-._")[:60]
    return short or "node"


def claim(nodes_dir: Path, name: str | None) -> Identity:
    """Take the identity called `name`, or the first free one of <host>, <host>-2, …"""
    if name is not None:
        if not _NAME.fullmatch(name):
            raise UsageProblem(
                f"'{name}' is no name for a node",
                hint="Use letters, digits, dots, dashes and underscores, 63 at most.",
            )
        identity = _claim(nodes_dir / name, name)
        if identity is None:
            raise TryAgain(
                f"a node named {name} already runs on this machine",
                hint="Give it another --name, or stop the other one.",
            )
        return identity
    for candidate in _candidates(host_name()):
        identity = _claim(nodes_dir / candidate, candidate)
        if identity is not None:
            return identity
    raise TryAgain("64 nodes already run on this machine", hint="Stop some of them.")


def siblings(nodes_dir: Path) -> list[int]:
    """The UDP ports of the nodes that this user runs on this machine now."""
    ports = []
    try:
        directories = sorted(nodes_dir.iterdir())
    except OSError:  # no node ran here yet, or we may not look
        return []
    for directory in directories:
        if not _held(directory):
            continue
        try:
            record = _read(directory)
        except BadData:
            continue
        if record is not None and record.voice_port:
            ports.append(record.voice_port)
    return ports


def _candidates(host: str) -> Iterator[str]:
    yield host
    for number in range(2, 65):
        yield f"{host}-{number}"


def _claim(directory: Path, name: str) -> Identity | None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CannotCreate(
            f"cannot keep this node's identity in {directory}: {error.strerror}",
            hint="Make it writable, or set XDG_STATE_HOME.",
        ) from error
    if not _lock_now(lock):
        os.close(lock)
        return None
    try:
        old = _read(directory)
        fresh = NodeFile(
            id=old.id if old else os.urandom(16).hex(), name=name, boot=(old.boot if old else 0) + 1
        )
        _write(directory, fresh)
    except BaseException:
        os.close(lock)
        raise
    return Identity(directory, fresh, lock)


def _lock_now(lock: int) -> bool:
    """Take the lock unless a node holds it; `siblings` holds it for microseconds only."""
    for _ in range(5):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            time.sleep(0.01)
        else:
            return True
    return False


def _held(directory: Path) -> bool:
    try:
        probe = os.open(directory / _LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(probe, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(probe)
    return False


def _read(directory: Path) -> NodeFile | None:
    path = directory / _FILE
    try:
        record = msgspec.json.decode(path.read_bytes(), type=shared(NodeFile))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BadData(
            f"cannot read {path}: {error.strerror}", hint="Make it readable, or remove it."
        ) from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadData(
            f"{path} does not hold a node's identity: {error}", hint="Remove it to get a new id."
        ) from error
    if record.schema != _SCHEMA:
        raise BadData(
            f"{path} is of another version of exo: {record.schema!r}",
            hint="Use that version, or remove the file to get a new id.",
        )
    if not re.fullmatch(r"[0-9a-f]{32}", record.id) or not 0 <= record.boot < 1 << 62:
        raise BadData(f"{path} does not hold a node's identity", hint="Remove it to get a new id.")
    return record


def _write(directory: Path, record: NodeFile) -> None:
    atomic.replace(directory / _FILE, msgspec.json.encode(record) + b"\n", mode=0o600)
