"""What a doctor says: `discover --explain` and `rdma-check`, whose findings are of one kind.

A finding is made from something that was counted or probed in this run; it holds no guess without
saying so in `means`. Knows nothing of how it was found or how it is shown.
"""

from typing import ClassVar, Literal

from exo_cli.schemas.events import Event
from exo_cli.schemas.topology import Record

Level = Literal["ok", "warning", "failure", "info"]


class Finding(Record, frozen=True, kw_only=True):
    id: str
    level: Level
    about: str
    """An interface, a node, an address: what the line is about."""
    seen: str
    """What was counted or probed."""
    means: str | None = None
    do: str | None = None
    """The command to type next."""
    then: tuple[str, ...] = ()
    """What to do after that, in this order."""
    evidence: str = "L3"
    """How far what it means was tried out: L0 designed, L1 on constructed input, L2 on captured input,
    L3 on another backend, L4 on the real hardware, L5 by somebody else."""
    source: str | None = None
    nodes: tuple[str, ...] = ()
    """The nodes it is about, where it is about nodes."""


class InterfaceCount(Record, frozen=True, kw_only=True):
    """Datagrams of one interface in this run; `dropped` maps a reason to a count."""

    interface: str
    kind: str
    addresses: tuple[str, ...]
    sent: int
    send_errors: dict[str, int]
    received: int
    accepted: int
    dropped: dict[str, int]


class Stranger(Record, frozen=True, kw_only=True):
    """Somebody who speaks our beacon format and is not of this cluster. Nothing here is proven."""

    address: str
    fingerprint: str
    reason: str
    name: str
    packets: int


class Explanation(Event, tag="explanation", frozen=True, kw_only=True):
    """`discover --explain --json`."""

    schema: ClassVar[str] = "exo.explain/1"
    interfaces: tuple[InterfaceCount, ...]
    strangers: tuple[Stranger, ...]
    findings: tuple[Finding, ...]
