"""The chapter of the doctor that every cluster needs: versions, ports, the interface that is chosen.

`discover --explain` and `rdma-check` both have it. From the topology, and from ports of this machine
that are probed now. Knows nothing of RDMA, nor of how findings are shown.
"""

import asyncio
import contextlib
import errno
import sys
from collections import defaultdict
from collections.abc import Iterator

from exo_cli.cluster import ports
from exo_cli.cluster.advice import names
from exo_cli.cluster.beacon import PORT
from exo_cli.schemas.findings import Finding
from exo_cli.schemas.topology import Node, Topology

_KNOCK_S = 2.0
_CABLES = {"ethernet": "Ethernet", "thunderbolt": "Thunderbolt"}


def cluster_findings(topology: Topology) -> Iterator[Finding]:
    """What the file says of several nodes together."""
    yield from _versions(topology)
    yield from _interfaces(topology)


def _alive(topology: Topology) -> list[Node]:
    return [node for node in topology.nodes if node.state in ("ready", "draining", "suspect")]


def _versions(topology: Topology) -> Iterator[Finding]:
    called = names(topology)
    of: dict[str, list[str]] = defaultdict(list)
    for node in _alive(topology):
        of[node.version].append(called[node.id])
    if len(of) > 1:
        told = "; ".join(f"{version} on {', '.join(sorted(of[version]))}" for version in sorted(of))
        yield Finding(
            id="versions-differ",
            level="warning",
            about="exo",
            seen=told,
            means="nodes of different versions may refuse each other's work (exit 76)",
            do="install the same version of exo on every machine",
            then=("exo discover",),
            nodes=tuple(sorted(name for group in of.values() for name in group)),
        )


def _interfaces(topology: Topology) -> Iterator[Finding]:
    """Links over the radio between machines that both have a cable's port with an address."""
    called = names(topology)
    alive = {node.id: node for node in _alive(topology)}
    told: set[frozenset[str]] = set()
    for link in topology.links:
        a, b = alive.get(link.from_), alive.get(link.to)
        if a is None or b is None or link.kind != "wifi" or frozenset((a.id, b.id)) in told:
            continue
        both = {address.kind for address in a.addresses} & {address.kind for address in b.addresses}
        kind = next((kind for kind in ("thunderbolt", "ethernet") if kind in both), None)
        if kind is None:
            continue
        told.add(frozenset((a.id, b.id)))
        yield Finding(
            id="wrong-interface",
            level="warning",
            about=f"{called[a.id]} -> {called[b.id]}",
            seen=f"the link goes over Wi-Fi ({link.interface or '?'}), and both have an address on "
            f"{_CABLES[kind]}",
            means=f"the {_CABLES[kind]} addresses do not reach each other: another network, or no cable "
            "between the two",
            do=f"ping the {_CABLES[kind]} address of {called[b.id]} from {called[a.id]}",
            then=(f"once that answers: exo serve-shard --no-interface {link.interface or 'NAME'}",),
            nodes=(called[a.id], called[b.id]),
        )


def port_findings() -> Iterator[Finding]:
    """Who else holds the ports that exo uses on this machine."""
    if ports.upstream_exo_at("127.0.0.1"):
        yield Finding(
            id="upstream-exo",
            level="info",
            about=f"port {ports.API_PORT}",
            seen="exo-explore/exo answers there (it has /node_id)",
            means="that is a different program of the same name; its nodes and ours do not meet",
        )
    else:
        yield from _taken(
            ports.API_PORT,
            "the API of exo would be there: it has to take another port",
            "stop what holds it, or give another --listen",
        )
    yield from _taken(
        PORT,
        "a node here takes the next free port; who asks this machine with --peer has to say it",
        f"stop what holds it, or say --peer HOST:{PORT + 1} elsewhere",
    )


def _taken(port: int, means: str, do: str) -> Iterator[Finding]:
    holder = ports.listener(port)
    if holder is not None and not holder.is_ours:
        yield Finding(
            id="port-taken",
            level="warning",
            about=f"port {port}",
            seen=f"{holder.text} listens on it",
            means=means,
            do=do,
        )


def local_network_denied(about: str, seen: str) -> Finding:
    """macOS keeps this terminal from the local network, and says 'no route to host'."""
    return Finding(
        id="send-ehostunreach",
        level="warning",
        about=about,
        seen=seen,
        means="macOS denies this terminal the local network",
        do="System Settings > Privacy & Security > Local Network: allow your terminal, then run this again",
    )


async def denied(name: str, host: str, port: int) -> Finding | None:
    """For a node that was not reached: whether macOS is what keeps us from it."""
    if sys.platform != "darwin":
        return None
    try:
        async with asyncio.timeout(_KNOCK_S):
            _, writer = await asyncio.open_connection(host, port)
    except OSError as error:
        if error.errno == errno.EHOSTUNREACH:
            return local_network_denied(name, f"connecting to {host} fails with 'no route to host'")
        return None
    except TimeoutError:
        return None
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return None
