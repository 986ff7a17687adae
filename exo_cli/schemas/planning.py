"""What `exo plan` prints beside plan.json: two plans compared, models that fit, and news under --watch."""

from typing import ClassVar

from exo_cli.schemas.events import Event
from exo_cli.schemas.plan import Plan
from exo_cli.schemas.topology import Record


class Difference(Record, frozen=True, kw_only=True):
    """One thing in which two plans differ; None where a plan has no such thing."""

    what: str
    a: str | None
    b: str | None


class PlanDiff(Record, frozen=True, kw_only=True):
    """`plan --diff A B --json`."""

    schema: str = "exo.plan-diff/1"
    differences: tuple[Difference, ...]


class Suggestion(Record, frozen=True, kw_only=True):
    """A model of the catalogue that fits."""

    name: str
    on_disk: bool
    download_bytes: int
    memory_bytes: int
    """On all its nodes together."""
    nodes: tuple[str, ...]
    ttft_ms: float
    decode_tokens_per_s: float
    total_tokens_per_s: float


class Suggestions(Record, frozen=True, kw_only=True):
    """`plan --suggest --json`: those that are on disk first, then the larger first."""

    schema: str = "exo.plan-suggestions/1"
    context: int
    concurrency: int
    suggestions: tuple[Suggestion, ...]


class PlanLine(Event, tag="plan", frozen=True, kw_only=True):
    """`plan --watch --json`: the first plan, and each one that is better than the one before."""

    schema: ClassVar[str] = "exo.plan-watch/1"
    reason: str
    """Why it is told."""
    plan: Plan


class NoPlanLine(Event, tag="no-plan", frozen=True, kw_only=True):
    """`plan --watch --json`: nothing fits any more."""

    schema: ClassVar[str] = "exo.plan-watch/1"
    reason: str
