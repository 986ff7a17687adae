"""Why a node is not seen: findings from this run's counters, and from probes made now.

No line without a counter or a probe behind it. Knows nothing of how findings are shown.
"""

import asyncio
import sys
from collections.abc import Iterator

from exo_cli.cluster import general
from exo_cli.cluster.beacon import PORT
from exo_cli.cluster.lookout import Lookout
from exo_cli.cluster.pairs import join_endpoint, split_endpoint
from exo_cli.cluster.station import Station
from exo_cli.errors import BadData, NotAuthorised, Unavailable, VersionMismatch
from exo_cli.schemas.findings import Explanation, Finding, InterfaceCount, Stranger
from exo_cli.schemas.topology import Node
from exo_cli.trust.keyring import INSECURE, Keyring
from exo_cli.wire.channels import diagnose
from exo_cli.wire.reach import Reach

PROBE_S = 1.5


async def explain(lookout: Lookout) -> Explanation:
    """Everything that this run can say."""
    interfaces = lookout.station.radio.report()
    strangers = lookout.station.strangers
    keyring = lookout.source.current()
    findings = [
        *_keys(lookout, keyring),
        *_ears(lookout),
        *(finding for each in interfaces for finding in _interface(each, lookout.station)),
        *(_stranger(each, keyring) for each in strangers),
        *_unreached(lookout),
        *_doubles(lookout),
        *await _named_hosts(lookout, keyring),
        *await _silent_nodes(lookout, keyring),
        *general.cluster_findings(lookout.survey.topology),
        *await asyncio.to_thread(lambda: list(general.port_findings())),
        *_found(lookout),
    ]
    return Explanation(interfaces=interfaces, strangers=strangers, findings=tuple(findings))


def _keys(lookout: Lookout, keyring: Keyring) -> Iterator[Finding]:
    if keyring.kind == "local":
        yield Finding(
            id="no-cluster-key",
            level="warning",
            about="cluster key",
            seen="this user has no cluster key, so only nodes of this machine are looked for",
            means="other machines can be neither seen nor reached",
            do="exo key new   (or, where a key is already: exo key export | ssh THIS-MACHINE exo key join -)",
        )
    elif keyring.kind == "insecure":
        yield Finding(
            id="insecure",
            level="warning",
            about="cluster key",
            seen="this run uses the published key (--insecure)",
            means="nodes with a key of their own are strangers to it",
            do="exo key new",
        )
    problem = lookout.source.problem
    if problem is not None:
        yield Finding(
            id="key-unreadable", level="failure", about="cluster key", seen=problem.message, do=problem.hint
        )


def _ears(lookout: Lookout) -> Iterator[Finding]:
    deaf = lookout.station.radio.deaf
    if deaf is not None:
        yield Finding(
            id="beacon-port-taken",
            level="failure",
            about=f"UDP port {PORT}",
            seen=f"it cannot be shared: {deaf.strerror or deaf}",
            means="another program holds the port for itself: beacons are not heard, only answers are",
            do=f"sudo lsof -nP -iUDP:{PORT}",
        )


def _interface(count: InterfaceCount, station: Station) -> Iterator[Finding]:
    for reason, times in sorted(count.send_errors.items()):
        yield _send_error(count, reason, times)
    if count.interface == "unicast" or count.kind == "loopback" or station.loopback_only:
        return
    if count.dropped.get("public"):
        yield Finding(
            id="public-refused",
            level="info",
            about=count.interface,
            seen=f"{count.dropped['public']} packets from public addresses were refused",
            means="--insecure talks to private addresses only",
            do="exo key new",
        )
    for reason, means in (
        (
            "signature",
            "they claim our cluster and are not signed with its key: damaged on the way, or forged",
        ),
        ("replay", "packets that were heard before: repeated by the network, or recorded and sent again"),
    ):
        if count.dropped.get(reason):
            yield Finding(
                id=f"dropped-{reason}",
                level="info" if reason == "replay" else "warning",
                about=count.interface,
                seen=f"{count.dropped[reason]} packets dropped ({reason})",
                means=means,
            )
    if count.sent and not count.received and station.radio.deaf is None:
        yield Finding(
            id="nothing-comes-back",
            level="failure",
            about=count.interface,
            seen=f"{count.sent} packets sent, none received, not even our own broadcast",
            means=f"a firewall on this machine drops UDP port {PORT}, or the interface has no link",
            do=_open_firewall(),
        )
    elif count.sent and count.received and not count.accepted:
        yield Finding(
            id="nobody-answers",
            level="info",
            about=count.interface,
            seen=f"{count.sent} packets sent, {count.received} received, none from a node of this cluster",
            means="no node runs there, its firewall drops the probe, or the network keeps its guests apart",
            do="on the other machine: exo serve-shard, then here: exo discover --explain --peer ITS-ADDRESS",
        )


def _send_error(count: InterfaceCount, reason: str, times: int) -> Finding:
    means, do = "the system refused to send", None
    seen = f"{times} packets could not be sent ({reason})"
    if reason == "EHOSTUNREACH" and sys.platform == "darwin":
        return general.local_network_denied(count.interface, seen)
    if reason in ("EHOSTUNREACH", "ENETUNREACH"):
        means, do = (
            "there is no route to that network",
            "ip route" if sys.platform == "linux" else "netstat -rn",
        )
    elif reason == "EPERM":
        means, do = "a firewall of this machine forbids sending", _open_firewall()
    elif reason == "ECONNREFUSED":
        means = f"a host that was asked directly has no process on UDP port {PORT}"
        do = "on that host: exo serve-shard"
    elif reason == "EADDRNOTAVAIL":
        means = "the interface has no usable address yet"
    return Finding(
        id=f"send-{reason.lower()}",
        level="warning",
        about=count.interface,
        seen=seen,
        means=means,
        do=do,
    )


def _open_firewall() -> str:
    if sys.platform == "darwin":
        return "/usr/libexec/ApplicationFirewall/socketfilterfw --listapps"
    return f"sudo ufw allow {PORT}   (or: sudo firewall-cmd --add-port={PORT}/udp --add-port={PORT}/tcp)"


def _stranger(stranger: Stranger, keyring: Keyring) -> Finding:
    who = f" ({stranger.name})" if stranger.name else ""
    seen = f"{stranger.packets} packets of cluster {stranger.fingerprint}{who}"
    if stranger.reason == "version":
        return Finding(
            id="stranger-version",
            level="warning",
            about=stranger.address,
            seen=f"{stranger.packets} packets in another version of the beacon format",
            means="that machine runs another version of exo",
            do="exo --version   (on both; install the same one)",
        )
    if stranger.reason == "signature":
        return Finding(
            id="stranger-forged",
            level="warning",
            about=stranger.address,
            seen=f"{stranger.packets} packets that name our cluster without its signature",
            means="damaged on the way, or somebody pretends",
        )
    if stranger.fingerprint == INSECURE.primary.fingerprint:
        means, do = (
            "that machine runs with --insecure",
            "give it the cluster's key and start it without --insecure",
        )
    elif keyring.kind == "cluster":
        means = f"it has another key than this machine ({keyring.primary.fingerprint})"
        do = f"exo key export | ssh {stranger.address} exo key join --replace -"
    else:
        means, do = (
            "it has a cluster key and this run does not",
            "there: exo key export | ssh THIS-MACHINE exo key join -",
        )
    return Finding(id="stranger", level="warning", about=stranger.address, seen=seen, means=means, do=do)


def _unreached(lookout: Lookout) -> Iterator[Finding]:
    for each in lookout.survey.unreached.values():
        peer, failure = each.peer, each.failure
        places = ", ".join(join_endpoint(ip, peer.port) for ip in peer.ips())
        means: str | None = None
        if isinstance(failure, VersionMismatch):
            means = "it is of another version"
        elif isinstance(failure, NotAuthorised):
            means = "it is there and refuses us: its key differs from this machine's"
        elif isinstance(failure, BadData):
            means = "it answers, and not as a node of this version does"
        elif isinstance(failure, Unavailable):
            means = f"its beacons arrive; TCP port {peer.port} does not: a firewall, or it just starts"
        yield Finding(
            id="heard-not-reached",
            level="failure",
            about=peer.name,
            seen=f"heard from {places}; {failure.message}",
            means=means,
            do=failure.hint,
        )


def _doubles(lookout: Lookout) -> Iterator[Finding]:
    for change in lookout.doubles:
        peer = change.peer
        yield Finding(
            id="duplicate-id",
            level="failure",
            about=peer.name,
            seen=f"two nodes answer with the id {peer.node_id} (from {', '.join(peer.ips())})",
            means="a node's state directory was copied to another machine",
            do=f"on one of them remove nodes/{peer.name} below the exo state directory, and start it again",
        )


async def _named_hosts(lookout: Lookout, keyring: Keyring) -> list[Finding]:
    """Hosts given by --peer that did not answer the knock: what their TCP port says."""
    silent = [
        (ip, port) for ip, port in lookout.options.peers if not lookout.station.answered_hosts[f"{ip}:{port}"]
    ]
    reached = await asyncio.gather(*(diagnose(ip, port, keyring, PROBE_S) for ip, port in silent))
    return [
        _verdict(
            "peer-silent",
            join_endpoint(ip, port),
            f"{lookout.station.asked_hosts[f'{ip}:{port}']} probes without an answer",
            reach,
            host=ip,
            keyring=keyring,
        )
        for (ip, port), reach in zip(silent, reached, strict=True)
    ]


async def _silent_nodes(lookout: Lookout, keyring: Keyring) -> list[Finding]:
    """Nodes of the topology file that nobody hears now."""
    silent = [
        node
        for node in lookout.survey.topology.nodes
        if node.state == "dead" and split_endpoint(node.endpoint) not in lookout.options.peers
    ]
    reached = await asyncio.gather(*(_reach(node, keyring) for node in silent))
    return [
        _verdict(
            "node-silent",
            f"{node.name} ({node.endpoint})",
            "known from before, not heard now",
            reach,
            host=split_endpoint(node.endpoint)[0],
            keyring=keyring,
        )
        for node, reach in zip(silent, reached, strict=True)
    ]


async def _reach(node: Node, keyring: Keyring) -> Reach:
    return await diagnose(*split_endpoint(node.endpoint), keyring, PROBE_S)


def _verdict(kind: str, about: str, knocked: str, reach: Reach, *, host: str, keyring: Keyring) -> Finding:
    told: dict[Reach, tuple[str, str, str]] = {
        Reach.OK: (
            "its TCP port answers with our cluster's certificate",
            f"UDP port {PORT} is filtered on the way, TCP is not",
            f"let UDP {PORT} through on that machine: {_open_firewall()}",
        ),
        Reach.REFUSED: (
            "TCP connection refused",
            "the machine is up and no node runs on that port",
            "on that machine: exo serve-shard",
        ),
        Reach.DOWN: (
            "TCP does not answer either",
            "the machine is off, the address is wrong, or a firewall drops everything",
            f"ping {host}",
        ),
        Reach.PLAINTEXT: (
            "another program answers there, without TLS",
            "the port belongs to something else",
            "on that machine: exo serve-shard --listen :PORT with a free port",
        ),
        Reach.FOREIGN: (
            "a node with another key answers there",
            "it is reachable and refuses us",
            f"exo key export | ssh {host} exo key join --replace -"
            if keyring.kind == "cluster"
            else "there: exo key export | ssh THIS-MACHINE exo key join -",
        ),
    }
    seen, means, do = told[reach]
    return Finding(
        id=f"{kind}-{reach.value}",
        level="failure",
        about=about,
        seen=f"{knocked}; {seen}",
        means=means,
        do=do,
    )


def _found(lookout: Lookout) -> Iterator[Finding]:
    for node in lookout.survey.described.values():
        if node.state in ("ready", "draining"):
            yield Finding(
                id="node-found",
                level="ok",
                about=node.name,
                seen=f"answers at {node.endpoint} with our cluster's certificate",
            )
