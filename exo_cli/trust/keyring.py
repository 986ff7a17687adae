"""Which keys this process holds, and noticing when the file they come from changes.

A keyring has one key, or two during a rotation: the first signs, both are accepted. Knows nothing of
the file's format (keyfile) or of what is derived from a key beyond its fingerprint.
"""

import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from exo_cli import config
from exo_cli.errors import CannotCreate, ExoError, NotFound
from exo_cli.trust import derive, keyfile

Kind = Literal["cluster", "local", "insecure"]

# Published on purpose: --insecure keeps the code path and gives up the secret.
_INSECURE_SECRET: Final = b"exo-insecure-published-constant!"


@dataclass(frozen=True, slots=True)
class ClusterKey:
    """One secret; it shows itself by its fingerprint only."""

    secret: bytes = field(repr=False)
    fingerprint: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.secret) != derive.SECRET_BYTES:
            raise ValueError(f"a secret has {derive.SECRET_BYTES} bytes")
        object.__setattr__(self, "fingerprint", derive.fingerprint(self.secret))


@dataclass(frozen=True)
class Keyring:
    """The keys of a process. `local` serves this machine only; `insecure` everybody knows."""

    kind: Kind
    keys: tuple[ClusterKey, ...]

    @property
    def primary(self) -> ClusterKey:
        return self.keys[0]

    @property
    def fingerprints(self) -> tuple[str, ...]:
        return tuple(key.fingerprint for key in self.keys)

    def by_fingerprint(self, fingerprint: str) -> ClusterKey | None:
        return next((key for key in self.keys if key.fingerprint == fingerprint), None)


INSECURE: Final = Keyring("insecure", (ClusterKey(_INSECURE_SECRET),))


def load_keyring(*, insecure: bool = False) -> Keyring:
    """The cluster's key if there is one, else this user's own, made if it is missing."""
    if insecure:
        return INSECURE
    try:
        return _ring("cluster", keyfile.read(config.cluster_key_path()))
    except NotFound:
        return _ring("local", _local_secrets(config.local_key_path()))


class KeyringSource:
    """The keyring as it is now: the files are looked at on each call and read again when they changed.

    A file that cannot be read (an edit half way, a wrong mode) changes nothing: the last good ring
    stays, `problem` says why, and each call tries again. Safe to call from any thread.
    """

    def __init__(self, insecure: bool = False) -> None:
        self.problem: ExoError | None = None
        self._insecure = insecure
        self._lock = threading.Lock()
        self._stamp = _stamp()
        self._ring = load_keyring(insecure=insecure)

    def current(self) -> Keyring:
        if self._insecure:
            return self._ring
        with self._lock:
            stamp = _stamp()
            if stamp != self._stamp or self.problem is not None:
                self._read_again()
                # Taken before the reading: what changes during it is seen by the next call.
                self._stamp = stamp
            return self._ring

    def _read_again(self) -> None:
        try:
            self._ring = load_keyring()
            self.problem = None
        except ExoError as problem:
            self.problem = problem


def _ring(kind: Kind, secrets: tuple[bytes, ...]) -> Keyring:
    return Keyring(kind, tuple(ClusterKey(secret) for secret in secrets))


def _local_secrets(path: Path) -> tuple[bytes, ...]:
    try:
        return keyfile.read(path)
    except NotFound:
        made = keyfile.new_secret()
    try:
        keyfile.create(path, (made,))
    except CannotCreate:
        # Another process may have been faster; if not, the reason for which it cannot be made counts.
        if not path.exists():
            raise
        return keyfile.read(path)
    return (made,)


def _stamp() -> tuple[tuple[int, ...], ...]:
    return tuple(_stamp_of(path) for path in (config.cluster_key_path(), config.local_key_path()))


def _stamp_of(path: Path) -> tuple[int, ...]:
    try:
        found = os.lstat(path)
    except OSError as error:
        return (error.errno or 0,)
    # The change time as well: a chmod leaves the rest as it was.
    return (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
