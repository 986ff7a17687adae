"""What `exo key` prints under --json. Only an export to standard output holds a secret."""

from typing import ClassVar, Literal

from exo_cli.schemas.events import Event

SCHEMA = "exo.key/1"


class KeyShown(Event, tag="key", kw_only=True, frozen=True):
    """`key show`: which key this machine uses. The primary fingerprint comes first."""

    schema: ClassVar[str] = SCHEMA
    kind: Literal["cluster", "local"]
    path: str
    mode: str | None
    """The file's mode in octal; null where there is no file yet."""
    fingerprints: tuple[str, ...]
    rotating: bool


class KeyChanged(Event, tag="change", kw_only=True, frozen=True):
    """`key new`, `join` and `rotate`: what the file holds now."""

    schema: ClassVar[str] = SCHEMA
    verb: Literal["new", "join", "rotate", "finish"]
    changed: bool
    path: str
    fingerprints: tuple[str, ...]
    dropped: tuple[str, ...]


class KeyExported(Event, tag="export", kw_only=True, frozen=True):
    """`key export`: where the keys were written, or the keys themselves."""

    schema: ClassVar[str] = SCHEMA
    path: str | None
    fingerprints: tuple[str, ...]
    bundle: str | None
    """The content of a key file, for `exo key join -`; null where it went to a file."""

    def __repr__(self) -> str:
        return f"KeyExported(path={self.path!r}, fingerprints={self.fingerprints!r})"
