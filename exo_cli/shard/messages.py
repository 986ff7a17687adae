"""What serve-shard's parent and an engine process say to each other: JSON lines over pipes.

The parent's first line is Start; when its pipe ends, the engine ends. The engine's lines go to its
standard output. A signal, LEAVE, tells an engine that is ready to take no new requests. Secrets: a
leaf's private key, never the cluster's.
"""

import signal
from typing import Final, Literal

import msgspec

from exo_cli.models.random_model import RandomModel

LEAVE: Final = signal.SIGUSR1
AHEAD: Final = "ahead"
"""To an engine process, in place of a first line that is still to come: import what every engine needs."""

WireDType = Literal["", "float32", "bfloat16", "float16"]


class LeafText(msgspec.Struct, frozen=True, kw_only=True):
    """A trust.authority.Leaf as text."""

    name: str
    key_pem: str
    certificate_pem: str
    authority_pem: str


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """Everything an engine needs to know."""

    stage_id: str
    node_id: str
    node_name: str
    boot: int
    model_dir: str
    first_layer: int
    last_layer: int
    layers_in_model: int
    memory_bytes: int
    """What it may use in all: weights, KV and everything else."""
    wire_dtype: WireDType = ""
    """How its payload travels; empty: as it is computed."""
    numerics: Literal["exact", "fast"] = "exact"
    kv_bits: Literal[8] | None = None
    """Of a number in the caches; None: as it is computed."""
    context: int = 0
    """The most positions of a request; 0: as many as there is room for."""
    concurrency: int = 0
    """How many requests of that length there must be room for."""
    hosts: list[str]
    ports: tuple[int, int]
    """The data ports to choose from, both included; (0, 0): any free one."""
    leaves: list[LeafText]
    private_only: bool = False
    """It goes to no public address, wherever a route may lead."""
    random: RandomModel | None = None
    """Weights to make instead of those in `model_dir`, which is empty then."""


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag="progress"):
    doing: str
    done: int
    total: int


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    data_port: int
    """Where drivers come in."""
    frame_port: int
    """Where other stages do."""
    weights_bytes: int
    kv_budget_bytes: int
    base_bytes: int
    allowed_cuts: list[int]
    shares_steps: bool
    """Whether requests of this family are computed together in one step."""
    numerics: Literal["exact", "fast"] = "exact"
    """How it computes; `numerics_reason` says why it is exact where fast was asked for."""
    numerics_reason: str = ""


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """The engine cannot go on; it ends after this line."""

    code: str
    message: str
    hint: str | None
    exit: int
    bytes_needed: int = 0
    bytes_free: int = 0


class Beat(msgspec.Struct, frozen=True, kw_only=True, tag="beat"):
    """Twice a second: that it lives, and what it does."""

    requests: int
    kv_used_bytes: int
    steps: int
    tokens: int
    stepping_ms: int
    """How long the step that runs now has been running; 0 between steps."""
    step_ms_p50: float
    step_ms_p99: float
    idle_ms: int
    leaving: bool = False
    """It takes no new request; `requests` are all there will be."""


Line = Progress | Ready | Failed | Beat
