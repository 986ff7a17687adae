"""Who is in the cluster, as far as this process heard: alive, suspected, dead, gone.

Pure: packets and the time go in, changes and addresses to probe come out. Knows nothing of
sockets, certificates or the topology file. A peer counts only when it proved to be there now: it
answered a nonce of this run, or its sequence advanced while we watched. What is neither, a packet that
was overtaken or one that somebody recorded, keeps nobody alive.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Literal

from exo_cli.cluster.beacon import Kind, Packet, Role

# A beacon comes every 2.5 s: two may be lost. Death is reported within 10 s, a scan every 0.5 s.
SUSPECT_AFTER_S = 5.5
DEAD_AFTER_S = 9.0
ASK_EVERY_S = 0.8
# A scan that comes this late means that this process slept, not that the others were silent.
LATE_S = 1.5
MAX_PEERS = 1024
MAX_ADDRESSES = 16
MAX_DEPARTED = 1024
ADDRESS_LIFE_S = 30.0

Status = Literal["alive", "suspect", "dead"]
What = Literal["joined", "left", "suspect", "refuted", "dead", "changed", "duplicate-id"]
Address = tuple[str, int]
EVERYBODY: Address = ("", 0)
"""To ask on every link: no address of the peer is proven."""


@dataclass(slots=True)
class Peer:
    """One node that was heard."""

    node_id: str
    instance: bytes
    boot: int
    seq: int
    name: str
    port: int
    role: Role
    fingerprint: str
    draining: bool
    heard_s: float
    status: Status = "alive"
    proven: bool = False
    told: bool = False
    """Whether others believe that it is there: it was reported as joined, and not as dead since."""
    asked_s: float = -1e9
    addresses: dict[str, float] = field(default_factory=dict)
    """IP -> when it was last heard from there."""
    voices: dict[str, int] = field(default_factory=dict)
    """IP -> the port it speaks from: a packet sent there reaches this node and no sibling of it."""
    answered_from: set[str] = field(default_factory=set)
    """IPs from which it answered a nonce: a recording can be sent from anywhere, an answer cannot."""
    rivals: dict[bytes, float] = field(default_factory=dict)
    """Other instances with the same id, and when each first answered while this one was there."""
    contested: bool = False

    def ips(self) -> list[str]:
        """Where it was heard: where it answered first, addresses of this link alone last."""

        def rank(ip: str) -> tuple[bool, bool, float, str]:
            return ip not in self.answered_from, "%" in ip, -self.addresses[ip], ip

        return sorted(self.addresses, key=rank)

    def ways(self) -> list[Address]:
        """Where a packet surely reaches it and nobody else: only where it answered from."""
        ips = [ip for ip in self.ips() if ip in self.answered_from]
        return [*((ip, self.voices[ip]) for ip in ips if ip in self.voices), *((ip, self.port) for ip in ips)]


@dataclass(frozen=True, slots=True)
class Change:
    what: What
    peer: Peer


class Membership:
    """All peers of this run."""

    def __init__(self) -> None:
        self.peers: dict[str, Peer] = {}
        self._departed: OrderedDict[tuple[str, bytes], None] = OrderedDict()
        """Instances that said goodbye. They do not come back: what still arrives is late, or a recording."""
        self._scanned_s: float | None = None

    def heard(
        self, packet: Packet, ip: str, now_s: float, *, answered: bool, port: int | None = None
    ) -> list[Change]:
        """Take a verified, not replayed packet of a node.

        `answered`: it carries a nonce of ours. `port`: what it was sent from, unless it is an answer.
        """
        node_id = packet.node_id.hex()
        peer = self.peers.get(node_id)
        if packet.kind == Kind.LEAVE:
            return self._leave(node_id, packet.instance)
        if (node_id, packet.instance) in self._departed:
            return []
        if peer is None:
            if len(self.peers) >= MAX_PEERS and not self._make_room():
                return []
            peer = self.peers[node_id] = _peer(node_id, packet, now_s)
        elif peer.instance != packet.instance:
            rival = self._rival(peer, packet, now_s, answered=answered)
            if rival is not None:
                return rival
        return self._note(peer, packet, ip, now_s, answered=answered, port=port)

    def _leave(self, node_id: str, instance: bytes) -> list[Change]:
        self._departed[node_id, instance] = None
        while len(self._departed) > MAX_DEPARTED:
            self._departed.popitem(last=False)
        peer = self.peers.get(node_id)
        if peer is None or peer.instance != instance:
            return []
        del self.peers[node_id]
        return [Change("left", peer)] if peer.told or peer.status == "dead" else []

    def _make_room(self) -> bool:
        """Forget the node that is dead for the longest time, if there is one."""
        dead = [peer for peer in self.peers.values() if peer.status == "dead"]
        if not dead:
            return False
        del self.peers[min(dead, key=lambda peer: peer.heard_s).node_id]
        return True

    def _note(
        self, peer: Peer, packet: Packet, ip: str, now_s: float, *, answered: bool, port: int | None
    ) -> list[Change]:
        advanced = packet.seq > peer.seq
        if not (advanced or answered):
            # Overtaken by another interface's packet, or a recording: it may add a way, and no more.
            _add_way(peer, ip, peer.heard_s, port)
            return []
        if answered:
            peer.answered_from.add(ip)
        _know_way(peer, ip, now_s, port)
        changes: list[Change] = []
        if peer.status == "suspect":
            changes.append(Change("refuted", peer))
        elif not peer.proven or peer.status == "dead":
            changes.append(Change("joined", peer))
        peer.proven = peer.told = True
        peer.status = "alive"
        peer.heard_s = max(peer.heard_s, now_s)
        peer.fingerprint = packet.fingerprint
        if advanced:
            peer.seq = packet.seq
            fresh = (packet.name, packet.port, packet.role, packet.state.name == "DRAINING")
            if fresh != (peer.name, peer.port, peer.role, peer.draining):
                peer.name, peer.port, peer.role, peer.draining = fresh
                if not any(change.what == "joined" for change in changes):
                    changes.append(Change("changed", peer))
        return changes

    def _rival(self, peer: Peer, packet: Packet, now_s: float, *, answered: bool) -> list[Change] | None:
        """Another instance with the same id: a restart (None), or two nodes with one id."""
        if packet.boot > peer.boot or (answered and peer.status == "dead"):
            _become(peer, packet, now_s)
            return None
        if not answered:
            return []
        first_s = peer.rivals.get(packet.instance)
        if first_s is None:
            if len(peer.rivals) < MAX_ADDRESSES:
                peer.rivals[packet.instance] = now_s
            return []
        # Both spoke in turns: neither is the ghost of the other.
        if peer.heard_s > first_s and not peer.contested:
            peer.contested = True
            return [Change("duplicate-id", peer)]
        return []

    def scan(self, now_s: float) -> tuple[list[Change], list[Address]]:
        """What silence means by now, and which addresses to ask."""
        if self._scanned_s is not None and now_s - self._scanned_s > LATE_S:
            slept_s = now_s - self._scanned_s
            for peer in self.peers.values():
                # What was heard since we woke is news of now, not of later.
                peer.heard_s = min(now_s, peer.heard_s + slept_s)
        self._scanned_s = now_s
        changes: list[Change] = []
        ask: list[Address] = []
        for node_id, peer in list(self.peers.items()):
            silent_s = now_s - peer.heard_s
            # One that was there, and whose restart was heard and not proven yet.
            restarting = peer.told and not peer.proven
            if not peer.proven and silent_s > DEAD_AFTER_S:
                del self.peers[node_id]
                if restarting:
                    peer.status, peer.told = "dead", False
                    changes.append(Change("dead", peer))
                continue
            if peer.proven and peer.status == "alive" and silent_s > SUSPECT_AFTER_S:
                peer.status = "suspect"
                changes.append(Change("suspect", peer))
            if peer.status == "suspect" and silent_s > DEAD_AFTER_S:
                peer.status, peer.told = "dead", False
                changes.append(Change("dead", peer))
            asking = peer.status == "suspect" or (restarting and silent_s > SUSPECT_AFTER_S)
            if asking and now_s - peer.asked_s >= ASK_EVERY_S:
                peer.asked_s = now_s
                ask += peer.ways() or [EVERYBODY]
            newest_s = max(peer.addresses.values(), default=0.0)
            peer.addresses = {ip: at for ip, at in peer.addresses.items() if newest_s - at < ADDRESS_LIFE_S}
            peer.voices = {ip: port for ip, port in peer.voices.items() if ip in peer.addresses}
            peer.answered_from &= peer.addresses.keys()
        return changes, ask

    def alive(self) -> list[Peer]:
        return [peer for peer in self.peers.values() if peer.proven and peer.status != "dead"]


def _peer(node_id: str, packet: Packet, now_s: float) -> Peer:
    return Peer(
        node_id=node_id,
        instance=packet.instance,
        boot=packet.boot,
        # The first packet proves nothing: only one that comes after it does.
        seq=packet.seq,
        name=packet.name,
        port=packet.port,
        role=packet.role,
        fingerprint=packet.fingerprint,
        draining=packet.state.name == "DRAINING",
        heard_s=now_s,
    )


def _become(peer: Peer, packet: Packet, now_s: float) -> None:
    fresh = _peer(peer.node_id, packet, now_s)
    peer.instance, peer.boot, peer.seq = fresh.instance, fresh.boot, fresh.seq
    peer.name, peer.port, peer.role, peer.fingerprint = fresh.name, fresh.port, fresh.role, fresh.fingerprint
    peer.draining, peer.heard_s = fresh.draining, fresh.heard_s
    # The process that spoke from those ports is gone.
    peer.voices, peer.rivals, peer.contested = {}, {}, False
    # A restart is a change worth telling: the node's record is another one.
    peer.proven = False
    peer.status = "alive"


def _know_way(peer: Peer, ip: str, now_s: float, port: int | None) -> None:
    peer.addresses[ip] = now_s
    if port is not None:
        peer.voices[ip] = port
    if len(peer.addresses) > MAX_ADDRESSES:
        oldest = min(peer.addresses, key=lambda known: peer.addresses[known])
        del peer.addresses[oldest]
        peer.voices.pop(oldest, None)
        peer.answered_from.discard(oldest)


def _add_way(peer: Peer, ip: str, at_s: float, port: int | None) -> None:
    if ip not in peer.addresses and len(peer.addresses) >= MAX_ADDRESSES:
        return
    peer.addresses.setdefault(ip, at_s)
    if port is not None:
        peer.voices.setdefault(ip, port)
