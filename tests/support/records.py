"""Plain records of the topology for tests; quick to import, since child processes use them too."""

from exo_cli.schemas.topology import Address, Link, Memory, Node


def node(id: str, *, boot: int = 1, seq: int = 1, seen: int = 0, **other: object) -> Node:
    """A plain node; `other` sets any field."""
    fields: dict[str, object] = {
        "name": id,
        "state": "ready",
        "role": "shard",
        "endpoint": "192.168.1.7:52416",
        "host": "h1",
        "version": "0.1.0",
        "protocol": 1,
        "addresses": (Address(interface="en5", kind="thunderbolt", ip="192.168.1.7"),),
        "os": "macOS 26.3",
        "chip": "M3 Ultra",
        "cores": 32,
        "backend": "metal",
        "memory": Memory(ram_bytes=512, limit_bytes=384, free_bytes=300),
    }
    return Node(id=id, boot=boot, seq=seq, seen_unix_ms=seen, **(fields | other))  # type: ignore[arg-type]


def link(from_: str, to: str, *, boot: int = 1, seq: int = 1, measured: int = 0, **other: object) -> Link:
    """A plain link; `other` sets any field."""
    fields: dict[str, object] = {
        "interface": "en5",
        "kind": "thunderbolt",
        "address": "192.168.1.7",
        "rtt_us_p50": 90.0,
        "rtt_us_p99": 140.0,
        "bytes_per_s": 4e9,
        "limited_by": None,
    }
    return Link(from_=from_, to=to, boot=boot, seq=seq, measured_unix_ms=measured, **(fields | other))  # type: ignore[arg-type]
