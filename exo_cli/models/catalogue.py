"""The built-in catalogue: the models that people run on such clusters, by short names.

The rows are data (catalogue.json): the repository to run, the settings of config.json that make the
geometry, and what the publisher says of its size, each with its source and whether anybody could check
it. Knows nothing of what is on this machine, and asks no hub.
"""

import difflib
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from exo_cli.models.geometry import Geometry, geometry
from exo_cli.schemas.first_use import shared

POCKET: Final = "pocket"
POCKET_DIRECTORY: Final = Path(__file__).parent / POCKET
"""The small model that comes with exo itself."""
_FILE: Final = Path(__file__).parent / "catalogue.json"

Part = Literal["layers", "embedding", "head", "further"]


class Figure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A number of parameters as it was published, in steps of `precision`."""

    figure: int
    precision: int
    counts: tuple[Part, ...]
    """What it covers, by the publisher's own rule; a tied head that is counted is the embedding again."""
    source: str
    checked: bool
    """Whether it is precise enough to be compared with the geometry within 0.5 %, and agrees."""


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model."""

    name: str
    aliases: tuple[str, ...]
    repository: str
    """Converted for mlx-lm, at 4 bits or as published for it: the one to run."""
    base: str
    """The publisher's own repository."""
    config: dict[str, Any]
    config_checked: bool
    """Whether the settings that make the geometry were compared with a copy of config.json or the like."""
    config_source: str
    read_from: tuple[str, ...]
    """Where it was read; the source itself may not be open to everybody."""
    total: Figure
    active: Figure | None
    """None where every parameter takes part in every token."""
    note: str

    @property
    def geometry(self) -> Geometry:
        return geometry(self.config)


class _Catalogue(msgspec.Struct, frozen=True, kw_only=True):
    schema: Literal["exo.catalogue/1"]
    models: tuple[Row, ...]


@cache
def rows() -> tuple[Row, ...]:
    """Every model, in the order of the file."""
    return msgspec.json.decode(_FILE.read_bytes(), type=shared(_Catalogue)).models


@cache
def _by_name() -> dict[str, Row]:
    return {name: row for row in rows() for name in (row.name, *row.aliases)}


def names() -> list[str]:
    """What a model can be called: the catalogue's names and aliases, and pocket."""
    return [POCKET, *_by_name()]


def find(name: str) -> Row | None:
    """The model of that name or alias, however it is capitalised."""
    return _by_name().get(name.casefold())


def near(name: str) -> list[str]:
    """Names that somebody who wrote this one may have meant."""
    return difflib.get_close_matches(name.casefold(), names(), n=3, cutoff=0.6)
