"""The lines of `exo fetch --json`. Types only."""

from typing import ClassVar, Literal

from exo_cli.schemas.events import Event
from exo_cli.schemas.topology import Record


class FetchLine(Event, frozen=True, kw_only=True):
    """One line; `type` says which."""

    schema: ClassVar[str] = "exo.fetch/1"


class FetchShare(Record, frozen=True, kw_only=True):
    """What a fetch costs on one machine."""

    node: str
    layers: tuple[int, int] | None
    """Null: the whole model."""
    total_bytes: int
    here_bytes: int
    hub_bytes: int
    """To come from the hub."""
    neighbour_bytes: int
    """To come from the other nodes."""
    by_source: dict[str, int]
    """The same by name: the hub, a node, the driver; about, where several have the same bytes."""
    lacking_bytes: int
    """That nobody has who may be asked."""
    free_bytes: int | None
    """On the disk; null where the node did not say."""


class FetchForecast(FetchLine, tag="forecast", frozen=True, kw_only=True):
    """`--dry-run`: what would be fetched, from where, before anything is spent."""

    model: str
    revision: str
    digest: str
    layers_in_model: int
    metadata_bytes: int
    """What this look itself cost."""
    hub_bytes: int
    shares: tuple[FetchShare, ...]


class FetchProgress(FetchLine, tag="progress", frozen=True, kw_only=True):
    """How far one file is, and all of it."""

    node: str | None
    """Null: this machine."""
    file: str
    source: str
    file_done_bytes: int
    file_total_bytes: int
    done_bytes: int
    total_bytes: int
    bytes_per_s: float | None
    remaining_s: float | None


class FetchNote(FetchLine, tag="note", frozen=True, kw_only=True):
    """Something that went wrong and was made good: a wait, a bad piece and who served it."""

    message: str


class Fetched(FetchLine, tag="fetched", frozen=True, kw_only=True):
    """The end of a fetch; one line a machine."""

    node: str | None
    model: str
    revision: str
    digest: str
    path: str
    """On that machine; empty where a node that has everything was not asked."""
    layers: tuple[int, int] | None
    total_bytes: int
    by_source: dict[str, int]
    """Bytes that were not here before; empty where nothing was missing."""
    elapsed_s: float


class ModelHere(FetchLine, tag="model", frozen=True, kw_only=True):
    """`--list`, one line a model and place."""

    model: str
    revision: str
    digest: str
    path: str
    place: Literal["hub", "store", "folder"]
    """The hub's cache, exo's own store, or a folder of another program."""
    state: Literal["complete", "partial", "unverified", "bad"]
    layers: tuple[tuple[int, int], ...]
    layers_in_model: int
    held_bytes: int
    total_bytes: int
    used_unix_s: float


class FileChecked(FetchLine, tag="checked", frozen=True, kw_only=True):
    """`--verify`, one line a file."""

    model: str
    path: str
    bytes: int
    state: Literal["right", "wrong", "unknown"]


class ModelRemoved(FetchLine, tag="removed", frozen=True, kw_only=True):
    """`--prune`, one line a model and place."""

    model: str
    revision: str
    path: str
    freed_bytes: int


class ModelExported(FetchLine, tag="exported", frozen=True, kw_only=True):
    """`--export`."""

    model: str
    revision: str
    path: str
    total_bytes: int
