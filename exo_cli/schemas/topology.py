"""topology.json: which nodes there are, what they can do, and the measured links between them.

Knows nothing of where the file lies or how it is merged (cluster.topology_file does).
Every clock value in here was read on the machine that wrote the file.
"""

from typing import Literal

from msgspec import Struct, field

SCHEMA = "exo.topology/1"

# ready: answers; suspect: silent for a moment; dead: did not answer; draining: finishing its work.
NodeState = Literal["ready", "draining", "suspect", "dead"]
# shard: takes work (serve-shard); announce: only says that it is here (discover --announce).
NodeRole = Literal["shard", "announce"]
InterfaceKind = Literal[
    "thunderbolt", "ethernet", "wifi", "loopback", "bridge", "tunnel", "virtual", "infiniband", "unknown"
]


class Record(Struct, frozen=True):
    """A value in a file. Unknown keys are accepted: keys are only ever added within a version."""


class Address(Record, frozen=True, kw_only=True):
    """One address at which a node can be reached."""

    interface: str
    kind: InterfaceKind
    ip: str


class Memory(Record, frozen=True, kw_only=True):
    """DESIGN's three numbers; plans use the smallest."""

    ram_bytes: int
    limit_bytes: int
    free_bytes: int


class Batch(Record, frozen=True, kw_only=True):
    """A step of several requests' tokens."""

    rows: int
    times: float
    """So many times as long as with one row, without what a step costs whatever is in it."""


class Rate(Record, frozen=True, kw_only=True):
    """How fast a node computes with weights of one format, measured with the real kernels."""

    format: str
    decode_bytes_per_s: float
    prefill_flop_per_s: float
    step_s: float | None = None
    """What a step costs whatever is in it."""
    batches: tuple[Batch, ...] = ()
    """By rows, the fewest first."""
    measured_unix_ms: int
    numerics: str = "exact"
    """How it computed."""


class LoadedStage(Record, frozen=True, kw_only=True):
    """A stage that a node holds."""

    model: str
    layers: tuple[int, int]
    state: Literal["loading", "ready", "failed", "unloading"]
    kv_free_bytes: int | None = None
    numerics: str | None = None
    """How it computes, once it is ready."""
    pinned: bool = False
    """A plan gave it to its node, which keeps it."""


class Node(Record, frozen=True, kw_only=True):
    """One running `serve-shard` (or `discover --announce`). A machine may run several."""

    id: str
    name: str
    state: NodeState
    role: NodeRole
    endpoint: str
    host: str
    """Names the machine, so that two nodes on one machine can be told from two machines."""
    boot: int
    seq: int
    version: str
    protocol: int
    addresses: tuple[Address, ...]
    os: str
    chip: str
    cores: int
    backend: str
    memory: Memory
    numerics: tuple[str, ...] = ("exact",)
    """How its engine can compute: `exact`, and `fast` where there are kernels for its processor."""
    kernels: str | None = None
    """Their class: avx512-vnni, avx-vnni, avx2, neon, generic."""
    loopback_bytes_per_s: float | None = None
    """What the transport itself does on this machine: the ceiling of every link to it."""
    rates: tuple[Rate, ...] = ()
    stages: tuple[LoadedStage, ...] = ()
    seen_unix_ms: int


class Link(Record, frozen=True, kw_only=True):
    """The measured way from one node to another, in that direction, over the best address."""

    from_: str = field(name="from")
    to: str
    interface: str | None
    kind: InterfaceKind | None
    address: str | None
    rtt_us_p50: float | None
    rtt_us_p99: float | None
    bytes_per_s: float | None
    limited_by: Literal["transport"] | None
    boot: int
    seq: int
    """Counters of the node `from`: they order two measurements without comparing clocks."""
    error: str | None = None
    """Why there is no figure: the way is blocked, refused, or leads to somebody else."""
    measured_unix_ms: int


class Topology(Record, frozen=True, kw_only=True):
    """The whole file."""

    schema: str = SCHEMA
    generation: int = 0
    nodes: tuple[Node, ...] = ()
    links: tuple[Link, ...] = ()
