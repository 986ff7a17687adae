"""`exo.capture/1`: what one machine's tools said, in memory and in a directory.

A directory holds one node, or a sub-directory for each of several. What is read is somebody else's:
names stay within their directory, links are not followed, sizes are bounded. Knows nothing of what
the texts mean.
"""

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from exo_cli import atomic
from exo_cli.errors import BadData, CannotCreate, InputOutput, NotFound
from exo_cli.rdma.sources import SOURCES, Platform, Source
from exo_cli.schemas.first_use import shared

SCHEMA: Final = "exo.capture/1"
MANIFEST: Final = "capture.json"
MAX_BYTES: Final = 1 << 20
"""Of one text; the longest that real tools print are a tenth of it."""
MAX_NODES: Final = 64
NOT_THERE: Final = 127
TIMED_OUT: Final = 124


@dataclass(frozen=True, slots=True)
class Said:
    """What one command, file or probe said."""

    exit: int
    output: bytes = b""
    error: bytes = b""
    there: bool = True
    """Whether there was any output to keep, be it empty."""


@dataclass(frozen=True, slots=True)
class Capture:
    """What one machine said."""

    platform: Platform
    node: str
    texts: dict[str, Said] = field(default_factory=dict)


class _Entry(msgspec.Struct, kw_only=True):
    name: str
    exit: int
    argv: list[str] | None = None
    path: str | None = None
    probe: str | None = None
    file: str | None = None
    stderr: str | None = None
    provenance: dict[str, str] | None = None


class _Manifest(msgspec.Struct, kw_only=True):
    schema: str
    platform: Platform
    node: str
    entries: list[_Entry]


class _Schema(msgspec.Struct):
    schema: str


# -- reading ---------------------------------------------------------------------------------------


def read(directory: Path) -> tuple[Capture, ...]:
    """The node or the nodes in a directory, by name."""
    if not directory.is_dir():
        raise NotFound(f"there is no directory {directory}", hint="exo rdma-check --capture DIR makes one.")
    if (directory / MANIFEST).exists():
        return (_read_node(directory),)
    nodes = sorted(path for path in directory.iterdir() if (path / MANIFEST).is_file())
    if not nodes:
        raise NotFound(
            f"there is no {MANIFEST} in {directory}", hint="exo rdma-check --capture DIR makes one."
        )
    if len(nodes) > MAX_NODES:
        raise BadData(f"{directory} holds {len(nodes)} captures; {MAX_NODES} are the most")
    captures = tuple(_read_node(path) for path in nodes)
    if len({capture.node for capture in captures}) < len(captures):
        raise BadData(f"two captures in {directory} are of a node of the same name")
    return captures


def _read_node(directory: Path) -> Capture:
    manifest = _manifest(directory)
    texts: dict[str, Said] = {}
    for entry in manifest.entries:
        if entry.name in texts:
            raise BadData(f"{directory / MANIFEST} names {entry.name!r} twice")
        if sum(made is not None for made in (entry.argv, entry.path, entry.probe)) != 1:
            raise BadData(
                f"{directory / MANIFEST} does not say whether {entry.name!r} is argv, path or probe"
            )
        texts[entry.name] = Said(
            exit=entry.exit,
            output=b"" if entry.file is None else _plain_file(directory, entry.file),
            error=b"" if entry.stderr is None else _plain_file(directory, entry.stderr),
            there=entry.file is not None,
        )
    known = SOURCES[manifest.platform]
    kept = {name: said for name, said in texts.items() if name in known}
    return Capture(manifest.platform, manifest.node, kept)


def _manifest(directory: Path) -> _Manifest:
    data = _plain_file(directory, MANIFEST)
    try:
        schema = msgspec.json.decode(data, type=shared(_Schema)).schema
        if schema != SCHEMA:
            raise BadData(
                f"{directory / MANIFEST} is of the schema {schema[:40]!r}, and this exo reads {SCHEMA}",
                hint="Diagnose it with the exo that made it, or make it again.",
            )
        manifest = msgspec.json.decode(data, type=shared(_Manifest))
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadData(f"{directory / MANIFEST} is no capture: {error}") from error
    if not manifest.node or len(manifest.node) > 128:
        raise BadData(f"{directory / MANIFEST} does not name its node")
    return manifest


def _plain_file(directory: Path, name: str) -> bytes:
    """The bytes of a file right inside the directory; nothing else is opened."""
    where = directory / name
    if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise BadData(f"{directory / MANIFEST} names a file that is not inside its directory: {name!r}")
    try:
        descriptor = os.open(where, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise BadData(f"cannot read {where}: {(error.strerror or str(error)).lower()}") from error
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise BadData(f"{where} is no plain file")
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise BadData(f"{where} has more than {MAX_BYTES} bytes: no tool says that much")
    return data


# -- writing ---------------------------------------------------------------------------------------


def write(captures: tuple[Capture, ...], directory: Path, *, several: bool) -> None:
    """Into a new or empty directory; `several` gives each node a directory of its own in it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        full = any(directory.iterdir())
    except OSError as error:
        raise atomic.cannot_write(directory, error) from error
    if full:
        raise CannotCreate(f"{directory} is not empty", hint="Name a new directory.")
    for capture in captures:
        target = directory
        if several:
            target = directory / _as_name(capture.node)
            try:
                target.mkdir()
            except OSError as error:
                raise InputOutput(
                    f"cannot make {target}: {(error.strerror or str(error)).lower()}"
                ) from error
        _write_node(capture, target)


def _as_name(node: str) -> str:
    safe = "".join(char if char.isascii() and (char.isalnum() or char in "-_") else "_" for char in node)
    return safe[:100] or "node"


def _write_node(capture: Capture, directory: Path) -> None:
    entries = []
    for name, said in capture.texts.items():
        source = SOURCES[capture.platform][name]
        entry: dict[str, Any] = {"name": name, **_made_by(source), "exit": said.exit}
        if said.there:
            entry["file"] = f"{name}{source.suffix}"
            atomic.replace(directory / f"{name}{source.suffix}", said.output)
        if said.error:
            entry["stderr"] = f"{name}.err.txt"
            atomic.replace(directory / f"{name}.err.txt", said.error)
        entry["provenance"] = {"kind": "observed", "source": "exo rdma-check --capture"}
        entries.append(entry)
    manifest = {
        "schema": SCHEMA,
        "platform": capture.platform,
        "node": capture.node,
        "entries": entries,
    }
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    # Last: a directory without it is no capture.
    atomic.replace(directory / MANIFEST, text + b"\n")


def _made_by(source: Source) -> dict[str, object]:
    if source.argv:
        return {"argv": list(source.argv)}
    return {"path": source.path} if source.path else {"probe": source.probe}
