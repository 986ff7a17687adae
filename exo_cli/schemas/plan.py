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
    name: str | None = None
    """What people call the node."""


class PlannedStage(Record, frozen=True, kw_only=True):
    """A contiguous range of layers, first included, last excluded."""

    layers: tuple[int, int]
    ranks: tuple[Rank, ...]


class Replica(Record, frozen=True, kw_only=True):
    """One complete chain."""

    stages: tuple[PlannedStage, ...]
    concurrency: int | None = None
    """How many of the plan's requests it serves at once; None: all of them."""


class StageForecast(Record, frozen=True, kw_only=True):
    """Where a token's time should go on one stage."""

    compute_ms: float
    wire_ms: float
    """To the next stage; from the last one back to the first."""
    wait_ms: float
    """For the others, until the next step."""


class Forecast(Record, frozen=True, kw_only=True):
    """How fast it should be; with several replicas, of the slowest one where it is not a total."""

    ttft_ms: float
    decode_tokens_per_s: float
    """Of a request that is alone."""
    total_tokens_per_s: float
    """Of as many requests as the plan is for."""
    stages: tuple[StageForecast, ...] = ()
    """Chain after chain, with as many requests as the plan is for."""
    prompt_tokens: int | None = None
    basis: Literal["measured", "table", "guessed"] | None = None
    """What its weakest figure stands on: a node's own measurement, its maker's word, or nothing."""


class LeftOut(Record, frozen=True, kw_only=True):
    """A node that takes no part, and why."""

    name: str
    reason: str


class Worth(Record, frozen=True, kw_only=True):
    """What a node changes: the best plan with it and the best without it, in tokens a second of all."""

    name: str
    used: bool
    with_tokens_per_s: float | None
    without_tokens_per_s: float | None
    """None: nothing fits then."""


class Alternative(Record, frozen=True, kw_only=True):
    """Another plan, the best of its kind."""

    layout: str
    """In words: who has which layers."""
    ttft_ms: float
    decode_tokens_per_s: float
    total_tokens_per_s: float


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
    objective: str | None = None
    left_out: tuple[LeftOut, ...] = ()
    worth: tuple[Worth, ...] = ()
    alternatives: tuple[Alternative, ...] = ()
    numerics: Literal["exact", "fast"] | None = None
    """How all of its stages are to compute; None: as its nodes can, when it is carried out."""
    kv_bits: Literal[8] | None = None
    """Of a number in the caches of all stages; None: as it is computed."""
    gap: float | None = None
    """By how much the best plan there is can be better at the most; 0 where this is it."""
