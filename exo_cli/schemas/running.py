"""What runs where: the lines of `exo ps` and `exo unload` under --json. Types only."""

from typing import ClassVar

from exo_cli.schemas.events import Event
from exo_cli.schemas.topology import Record


class RunningStage(Record, frozen=True, kw_only=True):
    """One stage that a node holds."""

    node: str
    node_id: str
    stage_id: str
    model: str
    digest: str
    layers: tuple[int, int]
    state: str
    requests: int
    tokens_per_s: float
    kv_used_bytes: int
    kv_budget_bytes: int
    weights_bytes: int
    step_ms_p50: float
    step_ms_p99: float
    idle_s: float
    keep_alive_s: float | None
    """For how long it stays without use; null: until it is unloaded."""
    numerics: str | None = None
    """How it computes; null until it is loaded."""
    numerics_reason: str | None = None
    """Why it is exact where fast was asked for."""
    failure: str | None = None
    """Why its engine ended, if it did."""


class NodeMemory(Record, frozen=True, kw_only=True):
    node: str
    node_id: str
    used_bytes: int
    free_bytes: int
    error: str | None = None
    """Why the node could not be asked."""


class Running(Event, frozen=True, kw_only=True, tag="running"):
    """`exo ps --json`."""

    schema: ClassVar[str] = "exo.ps/1"
    nodes: tuple[NodeMemory, ...]
    stages: tuple[RunningStage, ...]


class Unloaded(Event, frozen=True, kw_only=True, tag="unloaded"):
    """`exo unload --json`, one line a node."""

    schema: ClassVar[str] = "exo.unload/1"
    node: str
    stages: tuple[str, ...]
    freed_bytes: int
    error: str | None = None
