"""What a person's name for a model stands for: a directory that is here, or a repository of the hub.

A path, `pocket`, a name of the catalogue, or a repository with or without @revision. The hub's cache is
read by its published layout, without its library. No network in here.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from exo_cli.errors import NotFound
from exo_cli.fetch import elsewhere
from exo_cli.fetch.names import CONFIG
from exo_cli.models import catalogue
from exo_cli.models.safetensors import shown

FOLDER: Final = "models--"
MAIN: Final = "main"
_REPOSITORY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
_REVISION: Final = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Sought:
    """What was found for a name, or where it was looked for."""

    name: str
    path: Path | None
    repository: str | None = None
    """The hub's, if the name stands for one that can be asked for."""
    revision: str = MAIN
    tried: tuple[str, ...] = ()
    hint: str | None = None

    def missing(self) -> NotFound:
        """To say that it is not here."""
        looked = f"looked at {', '.join(self.tried)}" if self.tried else "nothing was looked at"
        return NotFound(f"there is no model {shown(self.name)} on this machine; {looked}", hint=self.hint)


def seek(name: str, hub: Path) -> Sought:
    """A directory that holds a model goes before any other meaning of its name."""
    if not name or "\0" in name:
        return Sought(name, None)
    path = Path(os.path.abspath(os.path.expanduser(name)))
    if _holds_model(path):
        return Sought(name, path)
    tried: tuple[str, ...] = (f"{path} ({_what(path)})",)
    if name.startswith(("/", "./", "../", "~")) or name in (".", ".."):
        return Sought(name, None, tried=tried, hint="Name a directory with config.json, as mlx-lm writes it.")
    if name.casefold() == catalogue.POCKET:
        return _pocket(name, tried)
    spelled, _, revision = name.partition("@")
    row = catalogue.find(spelled)
    repository, revision = row.repository if row is not None else spelled, revision or MAIN
    if not is_repository(repository):
        return Sought(name, None, tried=tried, hint=_hint(name))
    found, place = _snapshot(hub, repository, revision)
    if found is None:
        tried += (place,)
        if revision == MAIN:
            found = elsewhere.named(repository)
    # A bare word may lie in the cache from long ago, but nobody means to ask the hub for it.
    to_ask = repository if "/" in repository and _is_revision(revision) else None
    return Sought(name, found, to_ask, revision, tried, _hint(name))


def repository_folder(hub: Path, repository: str) -> Path:
    """Where the hub's cache keeps a repository."""
    return hub / (FOLDER + repository.replace("/", "--"))


def is_offline() -> bool:
    """Whether this user's settings keep the hub from being asked."""
    values = (os.environ.get(name, "") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return any(value.upper() in ("1", "ON", "YES", "TRUE") for value in values)


def is_commit(revision: str) -> bool:
    return _COMMIT.fullmatch(revision) is not None


def _snapshot(hub: Path, repository: str, revision: str) -> tuple[Path | None, str]:
    """The snapshot that a revision of a repository stands for, or what is there instead."""
    folder = repository_folder(hub, repository)
    if not os.path.isdir(folder):
        return None, f"{folder} ({_what(folder)})"
    if not _is_revision(revision):
        return None, f"{folder} ({shown(revision)} is no revision)"
    commit = revision
    if not is_commit(revision):
        reference = folder / "refs" / revision
        try:
            commit = reference.read_bytes()[:100].decode().strip()
        except (OSError, UnicodeDecodeError):
            return None, f"{reference} ({_what(reference)})"
        if not is_commit(commit):
            return None, f"{reference} (it names no commit)"
    snapshot = folder / "snapshots" / commit
    if not _holds_model(snapshot):
        return None, f"{snapshot} (no config.json is there)"
    return snapshot, ""


def _pocket(name: str, tried: tuple[str, ...]) -> Sought:
    path = catalogue.POCKET_DIRECTORY
    if _holds_model(path):
        return Sought(name, path)
    tried += (f"{path} ({_what(path)})",)
    return Sought(name, None, tried=tried, hint="It is a part of exo-cli; install that again.")


def _hint(name: str) -> str:
    alike = catalogue.near(name)
    if alike and catalogue.find(name) is None:
        return f"Did you mean {' or '.join(alike)}?"
    return "Name a directory with config.json, a repository of the hub (org/name), or pocket."


def _holds_model(path: Path) -> bool:
    # Unlike Path's, this says no of what may not be looked at or is no name for a file.
    return os.path.exists(path / CONFIG)


def _what(path: Path) -> str:
    """What is wrong with a place, in a few words."""
    if os.path.isdir(path):
        return "no config.json is there"
    return "it is a file, not a directory" if os.path.exists(path) else "it is not there"


def is_repository(name: str) -> bool:
    return _REPOSITORY.fullmatch(name) is not None and "--" not in name and ".." not in name


def _is_revision(revision: str) -> bool:
    return _REVISION.fullmatch(revision) is not None and not {".", ".."} & set(revision.split("/"))
