"""The record of this process's node, made anew each time somebody asks. Knows nothing of gRPC."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from exo_cli import __version__
from exo_cli.cluster import facts
from exo_cli.cluster.identity import Identity
from exo_cli.cluster.interfaces import Interface, as_addresses
from exo_cli.cluster.pairs import join_endpoint
from exo_cli.schemas.topology import LoadedStage, Memory, Node, NodeRole, Rate
from exo_cli.wire.hello import PROTOCOL


@dataclass(slots=True)
class Self:
    """What a node knows of itself."""

    identity: Identity
    machine: facts.Machine
    role: NodeRole
    host: str
    """Where this machine's own processes reach it."""
    port: int
    interfaces: Callable[[], list[Interface]]
    next_seq: Callable[[], int]
    draining: bool = False
    loopback_bytes_per_s: float | None = None
    rates: tuple[Rate, ...] = ()
    memory: Callable[[Memory], Memory] = field(default=lambda found: found)
    """What of the machine's memory this node may give away: less than there is, if somebody said so."""
    formats: tuple[str, ...] = ()
    """Weight formats that the engine computes here; empty until that is known."""
    refused: tuple[str, ...] = ()
    """What it cannot run, each with its reason."""
    stages: Callable[[], tuple[LoadedStage, ...]] = field(default=lambda: ())

    def record(self) -> Node:
        """As of now. Its endpoint is for the asker to fill in: only it knows which address led here."""
        return Node(
            id=self.identity.node_id,
            name=self.identity.name,
            state="draining" if self.draining else "ready",
            role=self.role,
            endpoint=join_endpoint(self.host, self.port),
            host=self.machine.host,
            boot=self.identity.boot,
            seq=self.next_seq(),
            version=__version__,
            protocol=PROTOCOL,
            addresses=as_addresses(self.interfaces()),
            os=self.machine.os,
            chip=self.machine.chip,
            cores=self.machine.cores,
            backend=self.machine.accelerator.backend,
            numerics=self.machine.numerics,
            kernels=self.machine.kernels,
            memory=self.memory(facts.memory(self.machine.accelerator)),
            loopback_bytes_per_s=self.loopback_bytes_per_s,
            rates=self.rates,
            stages=self.stages(),
            seen_unix_ms=time.time_ns() // 1_000_000,
        )
