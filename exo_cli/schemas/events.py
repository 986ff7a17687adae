"""The lines that verbs print under --json: `schema` first, then `type`. Null rather than absent.

A struct's tag is its `type`. msgspec writes the tag first; `line` puts `schema` before it.
"""

from typing import ClassVar, Literal

import msgspec

from exo_cli.schemas.topology import Record, Topology


class Event(Record, frozen=True, kw_only=True, tag_field="type"):
    """One line of output for a program to read."""

    schema: ClassVar[str]


class ErrorLine(Event, tag="error", frozen=True, kw_only=True):
    """Why a verb failed; written to standard error, last."""

    schema: ClassVar[str] = "exo.error/1"
    code: str
    message: str
    hint: str | None
    exit: int


class TokenLine(Event, tag="token", frozen=True, kw_only=True):
    """One generated token; the joined texts are the printed text."""

    schema: ClassVar[str] = "exo.run/1"
    id: int
    text: str
    logprob: float | None = None


class RunSummary(Event, tag="summary", frozen=True, kw_only=True):
    """The last line of a generation."""

    schema: ClassVar[str] = "exo.run/1"
    finish_reason: Literal["stop", "length", "cancelled", "error"]
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    ttft_ms: float | None
    decode_tokens_per_s: float | None
    numerics: str | None = None
    """How it was computed; `mixed` where stages differ."""
    numerics_reason: str | None = None
    """Why it is not all fast where fast was asked for."""


class TopologyLine(Event, tag="topology", frozen=True, kw_only=True):
    """`discover --watch --json`: the file as it stands now."""

    schema: ClassVar[str] = "exo.discover/1"
    topology: Topology


class NodeLine(Event, tag="node", frozen=True, kw_only=True):
    """`discover --watch --json`: what happened to one node."""

    schema: ClassVar[str] = "exo.discover/1"
    change: Literal["joined", "left", "suspect", "refuted", "dead", "changed", "duplicate-id"]
    id: str
    name: str


class ReadyLine(Event, tag="ready", frozen=True, kw_only=True):
    """A serving verb accepts work from now on."""

    schema: ClassVar[str] = "exo.serve-shard/1"
    id: str
    name: str
    endpoint: str
    pid: int


class StoppedLine(Event, tag="stopped", frozen=True, kw_only=True):
    schema: ClassVar[str] = "exo.serve-shard/1"
    reason: str


def line(event: Event) -> str:
    """The event as one line of JSON."""
    body = msgspec.json.encode(event).decode()
    return f'{{"schema":{msgspec.json.encode(event.schema).decode()},{body[1:]}'
