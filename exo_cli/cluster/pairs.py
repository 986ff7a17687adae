"""Which links need measuring, and in which order, so that no machine measures twice at a time.

Pure. Knows nothing of how a link is measured.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from exo_cli.schemas.topology import InterfaceKind, Link, Node, Topology

REUSE_MS = 600_000
# The kinds that are worth trying first: a cable before the air.
_ORDER: dict[InterfaceKind, int] = {
    "thunderbolt": 0,
    "infiniband": 1,
    "ethernet": 2,
    "bridge": 3,
    "unknown": 4,
    "wifi": 5,
    "virtual": 6,
    "tunnel": 7,
    "loopback": 8,
}
# A figure this near to what the transport does within one machine says nothing about the cable.
NEAR_LOOPBACK = 0.75


@dataclass(frozen=True, slots=True)
class Pair:
    """An ordered pair of nodes."""

    source: Node
    target: Node

    @property
    def hosts(self) -> frozenset[str]:
        return frozenset((self.source.host, self.target.host))


def wanted(topology: Topology, now_unix_ms: int, *, fresh: bool = False) -> list[Pair]:
    """The pairs of nodes that answer and whose link has no figure, or one that is too old."""
    nodes = [node for node in topology.nodes if node.state in ("ready", "draining")]
    known = {(link.from_, link.to): link for link in topology.links}
    return [
        Pair(source, target)
        for source in nodes
        for target in nodes
        if source.id != target.id
        and (fresh or not _usable(known.get((source.id, target.id)), source, now_unix_ms))
    ]


def _usable(link: Link | None, source: Node, now_unix_ms: int) -> bool:
    return (
        link is not None
        and link.error is None
        and link.boot == source.boot
        and 0 <= now_unix_ms - link.measured_unix_ms < REUSE_MS
    )


def startable(waiting: Sequence[Pair], running: Iterable[Pair]) -> list[Pair]:
    """Those of `waiting` that share no machine with one that runs, nor with each other."""
    busy: set[str] = set().union(*(pair.hosts for pair in running))
    chosen = []
    for pair in waiting:
        if pair.hosts.isdisjoint(busy):
            busy |= pair.hosts
            chosen.append(pair)
    return chosen


def addresses_to(pair: Pair, *, also: Collection[str] = ()) -> list[tuple[str, int]]:
    """Where `source` might reach `target`: what led us there, then what the target says of itself."""
    host, port = split_endpoint(pair.target.endpoint)
    same_host = pair.source.host == pair.target.host
    own = sorted(
        (address for address in pair.target.addresses if same_host or address.kind != "loopback"),
        key=lambda address: (_ORDER[address.kind], ":" in address.ip, address.ip),
    )
    found = [*also, host, *(address.ip for address in own)]
    if same_host:
        found.insert(0, "127.0.0.1")
    # A scoped address names an interface of this machine; it means nothing on another one.
    plain = (ip for ip in found if "%" not in ip and (same_host or not _loopback(ip)))
    return [(ip, port) for ip in dict.fromkeys(plain)]


def _loopback(ip: str) -> bool:
    return ip.startswith("127.") or ip == "::1"


UNIX = "unix:"


def is_unix(host: str) -> bool:
    """Whether it is no host but a socket of the file system: `unix:/path`, numbered like a port."""
    return host.startswith(UNIX)


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """`host:port`, where an IPv6 host stands in brackets; or `unix:/path:number`."""
    host, _, port = endpoint.rpartition(":")
    return host.strip("[]"), int(port)


def join_endpoint(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host and not is_unix(host) else f"{host}:{port}"


def limited_by_transport(link: Link, nodes: dict[str, Node]) -> bool:
    """Whether the figure is near what the two machines do without any cable."""
    ends = [nodes.get(link.from_), nodes.get(link.to)]
    figures = [node.loopback_bytes_per_s for node in ends if node and node.loopback_bytes_per_s]
    return (
        link.bytes_per_s is not None
        and len(figures) == 2
        and link.bytes_per_s >= NEAR_LOOPBACK * min(figures)
    )
