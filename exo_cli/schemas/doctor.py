"""`exo rdma-check --json`: what every node has, which cable joins which, and what was found.

Knows nothing of how it was found, or of how it is shown.
"""

from typing import ClassVar, Literal

from exo_cli.schemas.events import Event
from exo_cli.schemas.findings import Finding
from exo_cli.schemas.topology import Record

Generation = Literal["thunderbolt-5", "thunderbolt-4"]


class RdmaPort(Record, frozen=True, kw_only=True):
    """A port that could carry RDMA: of a Mac's Thunderbolt, or of an InfiniBand or RoCE card."""

    device: str | None
    """`rdma_en2`, `mlx5_0`; null where it is not known."""
    interface: str | None
    receptacle: str | None
    """The number printed beside it in macOS: Thunderbolt 2."""
    state: str | None
    """In the words of the verbs tools: PORT_ACTIVE, PORT_DOWN."""
    rate: str | None
    peer: str | None
    """What is at the other end, as far as this machine says."""


class RdmaNode(Record, frozen=True, kw_only=True):
    """One machine; null is what could not be read."""

    name: str
    platform: Literal["darwin", "linux"]
    os: str | None
    build: str | None
    chip: str | None
    thunderbolt: Generation | None
    mlx: str | None
    ports: tuple[RdmaPort, ...]


class Cable(Record, frozen=True, kw_only=True):
    """One cable between two Macs, and the port at each end."""

    a: str
    a_interface: str
    b: str
    b_interface: str
    hub: bool
    """Whether a hub or dock is between them: RDMA does not go through one."""
    active: bool | None
    """Whether the RDMA ports at both ends are active; null where that could not be read."""


class Collective(Record, frozen=True, kw_only=True):
    """What `--probe` measured with MLX's own collective, or why there is no figure."""

    backend: str | None
    ranks: int
    where: str
    """`this machine`, or that it joined a group which something else had started."""
    latency_us_p50: float | None
    latency_us_p99: float | None
    bytes_per_s: float | None
    """Of an all-sum over a large buffer: its size over the time that it took."""
    message_bytes: int
    rounds: int
    """How often the latency was taken."""
    seconds: float
    error: str | None


class RdmaCheck(Event, tag="rdma-check", frozen=True, kw_only=True):
    """The whole answer."""

    schema: ClassVar[str] = "exo.rdma-check/1"
    would_work: bool
    uses: str
    """What MLX would do its collectives with as things are."""
    nodes: tuple[RdmaNode, ...]
    cables: tuple[Cable, ...]
    missing_cables: tuple[tuple[str, str], ...]
    """Pairs of Macs that no cable joins directly."""
    mesh: bool | None
    """Whether each pair has a cable; null where fewer than two Macs could be read."""
    ring: bool | None
    findings: tuple[Finding, ...]
    collective: Collective | None = None
