"""The changes a person makes to the cluster key: new, join, rotate, finish. Each is one locked step.

Joining only ever adds: no key is dropped by accident, none that was dropped comes back. Knows nothing
of command lines or of what the keys protect.
"""

from dataclasses import dataclass
from pathlib import Path

from exo_cli.errors import CannotCreate, NotFound
from exo_cli.trust import keyfile
from exo_cli.trust.derive import fingerprint

Secrets = tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """What the file holds now, by fingerprint, and which keys it held before."""

    changed: bool
    fingerprints: tuple[str, ...]
    dropped: tuple[str, ...] = ()


def new(path: Path, *, if_missing: bool = False) -> Change:
    """Make the key of a new cluster."""
    with keyfile.locked(path):
        ours = _read_or_none(path)
        if ours is None:
            made = (keyfile.new_secret(),)
            keyfile.create(path, made)
            return _change((), made)
        if if_missing:
            return _change(ours, ours)
    raise CannotCreate(
        f"this machine has a cluster key already ({fingerprint(ours[0])})",
        hint="Another key for the same cluster: exo key rotate. Keep this one: exo key new --if-missing",
    )


def join(path: Path, theirs: Secrets, *, replace: bool = False) -> Change:
    """Take over the keys of another machine."""
    with keyfile.locked(path):
        ours = _read_or_none(path)
        if ours is None:
            keyfile.create(path, theirs)
            return _change((), theirs)
        kept = after_join(ours, theirs, replace=replace)
        if kept is None:
            raise CannotCreate(
                f"this machine has the key of another cluster, {fingerprint(ours[0])}",
                hint="To leave that cluster for the other: exo key join --replace",
            )
        return _write(path, ours, kept)


def after_join(ours: Secrets, theirs: Secrets, *, replace: bool = False) -> Secrets | None:
    """What `ours` becomes when `theirs` arrives; None where they are different clusters."""
    if theirs[0] in ours:
        return theirs if replace else ours
    # A rotation whose previous key is one of ours: whoever made it belonged to our cluster.
    if replace or any(previous in ours for previous in theirs[1:]):
        return theirs
    return None


def rotate(path: Path) -> Change:
    """A new primary; the old one stays valid beside it."""
    with keyfile.locked(path):
        ours = _ours(path)
        if len(ours) > 1:
            raise CannotCreate(
                f"a rotation is under way already ({fingerprint(ours[1])} to {fingerprint(ours[0])})",
                hint="When every machine has joined: exo key rotate --finish",
            )
        return _write(path, ours, (keyfile.new_secret(), ours[0]))


def finish(path: Path) -> Change:
    """Drop the previous key; nothing to do where there is none."""
    with keyfile.locked(path):
        ours = _ours(path)
        return _write(path, ours, ours[:1])


def cluster_secrets(path: Path) -> Secrets:
    """The keys in the file; NotFound with the next step where there is none."""
    return _ours(path)


def _ours(path: Path) -> Secrets:
    ours = _read_or_none(path)
    if ours is None:
        raise NotFound(
            "this machine has no cluster key", hint="Make one: exo key new. Or get one: exo key join FILE"
        )
    return ours


def _read_or_none(path: Path) -> Secrets | None:
    try:
        return keyfile.read(path)
    except NotFound:
        return None


def _write(path: Path, before: Secrets, after: Secrets) -> Change:
    if after != before:
        keyfile.replace(path, after)
    return _change(before, after)


def _change(before: Secrets, after: Secrets) -> Change:
    return Change(
        changed=after != before,
        fingerprints=tuple(fingerprint(secret) for secret in after),
        dropped=tuple(fingerprint(secret) for secret in before if secret not in after),
    )
