"""plan.json: how a model is split over nodes, whether it fits, and how fast it should be.

Knows nothing of how a plan is found (planning does) or carried out (drive and shard do).
"""

from typing import Literal

from exo_cli.schemas.topology import Record

SCHEMA = "exo.plan/1"


class ModelRef(Record, frozen=True, kw_only=True):
    """A model, named by digest: sha256 over config.json and the safetensors headers."""

    name: str
    revision: str | None
    digest: str


class RankMemory(Record, frozen=True, kw_only=True):
    """Where a rank's bytes go, item by item, and what it may use."""

    weights_bytes: int
    kv_bytes: int
    buffers_bytes: int
    base_bytes: int
    limit_bytes: int


class Rank(Record, frozen=True, kw_only=True):
    """One member of a tensor-parallel group; a stage without tensor parallelism has one."""

    node: str
    share: float
    memory: RankMemory


class PlannedStage(Record, frozen=True, kw_only=True):
    """A contiguous range of layers, first included, last excluded."""

    layers: tuple[int, int]
    ranks: tuple[Rank, ...]


class Replica(Record, frozen=True, kw_only=True):
    """One complete chain."""

    stages: tuple[PlannedStage, ...]


class StageForecast(Record, frozen=True, kw_only=True):
    """Where a token's time should go on one stage."""

    compute_ms: float
    wire_ms: float
    wait_ms: float


class Forecast(Record, frozen=True, kw_only=True):
    ttft_ms: float
    decode_tokens_per_s: float
    total_tokens_per_s: float
    stages: tuple[StageForecast, ...] = ()


class Plan(Record, frozen=True, kw_only=True):
    """The whole file. The same inputs give the same bytes."""

    schema: str = SCHEMA
    model: ModelRef
    dtype: Literal["float32", "bfloat16", "float16"]
    context: int
    concurrency: int
    replicas: tuple[Replica, ...]
    forecast: Forecast | None
    binding: str | None
    reason: str
