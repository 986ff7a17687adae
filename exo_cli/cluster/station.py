"""A process's voice and ears: it announces its node, answers probes, and keeps the membership.

Knows the beacon protocol and nothing beyond it: what a node can do is Describe's business, what is
written to the topology file is `survey`'s.
"""

import asyncio
import contextlib
import os
import random
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from exo_cli.cluster import beacon
from exo_cli.cluster.beacon import Dropped, Kind, Packet, Role, State
from exo_cli.cluster.identity import siblings
from exo_cli.cluster.interfaces import Choice, own_ips
from exo_cli.cluster.membership import EVERYBODY, Change, Membership
from exo_cli.cluster.radio import Radio, Source, new_instance
from exo_cli.cluster.replay import ReplayGuard
from exo_cli.errors import ExoError
from exo_cli.schemas.findings import Stranger
from exo_cli.trust.keyring import KeyringSource
from exo_cli.trust.private import is_private

BEACON_EVERY_S = 2.5
SCAN_EVERY_S = 0.25
REFRESH_EVERY_S = 5.0
PROBE_EVERY_S = 30.0
NONCE_LIFE_S = 10.0
MAX_NONCES = 1024
MAX_RELAYS = 256
MAX_ASKERS = 64
ASKER_LIFE_S = 10.0
MAX_STRANGERS = 64
MAX_SIBLINGS = 16


@dataclass(frozen=True, slots=True)
class Voice:
    """Who speaks. A watcher has no node: it probes and listens, and never answers."""

    node_id: bytes
    boot: int
    name: str
    role: Role
    port: int


def watcher() -> Voice:
    return Voice(os.urandom(16), 0, "", Role.WATCHER, 0)


@dataclass(slots=True)
class _Asked:
    at_s: float
    answered: set[tuple[bytes, bytes]]
    where: str


@dataclass(frozen=True, slots=True)
class _Relay:
    to: Source
    until_s: float
    passed: set[tuple[bytes, bytes, str]] = field(default_factory=set)
    """Whose answers, in which key, went back: each once, or a recording would be sent on as well."""


class Station:
    """One per process."""

    def __init__(
        self,
        voice: Voice,
        source: KeyringSource,
        *,
        nodes_dir: Path,
        choice: Choice | None = None,
        peers: tuple[tuple[str, int], ...] = (),
        on_change: Callable[[Change], None] = lambda change: None,
        beacon_port: int = beacon.PORT,
        clock: Callable[[], float] = time.monotonic,
        silent: bool = False,
    ) -> None:
        self.voice = voice
        self.instance = new_instance()
        self.membership = Membership()
        self.draining = False
        self.problem: ExoError | None = None
        self.asked_hosts: Counter[str] = Counter()
        self.answered_hosts: Counter[str] = Counter()
        self._source = source
        self._nodes_dir = nodes_dir
        self._peers = peers
        self._on_change = on_change
        self._beacon_port = beacon_port
        self._clock = clock
        self._seq = time.time_ns() // 1_000_000 if voice.role is Role.WATCHER else 0
        self._guard = ReplayGuard()
        self._asked: OrderedDict[bytes, _Asked] = OrderedDict()
        self._askers: OrderedDict[tuple[str, int], float] = OrderedDict()
        self._relays: OrderedDict[bytes, _Relay] = OrderedDict()
        self._strangers: OrderedDict[tuple[str, str, str], Stranger] = OrderedDict()
        self._contested = False
        self._tasks: list[asyncio.Task[None]] = []
        self._own_ips = own_ips()
        self.loopback_only = source.current().kind == "local"
        self.radio = Radio(
            self._take,
            choice=choice or Choice(),
            loopback_only=self.loopback_only,
            private_only=source.current().kind == "insecure",
            door_port=voice.port,
            beacon_port=beacon_port,
            silent=silent,
        )

    # -- life ------------------------------------------------------------------------------------

    async def start(self) -> None:
        self.radio.open()
        self._tasks = [asyncio.create_task(self._scan_loop()), asyncio.create_task(self._speak_loop())]

    async def stop(self) -> None:
        """Say goodbye, if we are a node, and fall silent."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        if self.voice.role is not Role.WATCHER:
            for _ in range(2):
                self._announce(Kind.LEAVE)
        self.radio.close()

    async def _scan_loop(self) -> None:
        refreshed_s = self._clock()
        while True:
            await asyncio.sleep(SCAN_EVERY_S)
            now_s = self._clock()
            if now_s - refreshed_s >= REFRESH_EVERY_S:
                refreshed_s = now_s
                self._own_ips = own_ips()
                self.radio.refresh()
            changes, ask = self.membership.scan(now_s)
            self._tell(changes)
            if EVERYBODY in ask:
                self.probe()
            for ip, port in ask:
                if (ip, port) != EVERYBODY:
                    self.knock(ip, port)

    async def _speak_loop(self) -> None:
        """Beacons if we are a node; probes at once, soon again, and then rarely."""
        for pause_s in (0.0, 0.15, 0.35, 0.8):
            await asyncio.sleep(pause_s)
            self.probe()
        self._announce(Kind.BEACON)
        probed_s = self._clock()
        while True:
            await asyncio.sleep(BEACON_EVERY_S * random.uniform(0.9, 1.0))  # noqa: S311 - jitter, no secret
            self._announce(Kind.BEACON)
            # Nobody sends beacons to a watcher that broadcasts do not reach: it asks instead.
            if self.voice.role is Role.WATCHER or self._clock() - probed_s > PROBE_EVERY_S:
                probed_s = self._clock()
                self.probe()
            else:
                # Nor to us from the hosts that we were told of: their answers do as well.
                for ip, port in self._peers:
                    self.knock(ip, port)

    # -- out -------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Say now, and from now on, that no new work is taken."""
        self.draining = True
        self._announce(Kind.BEACON)

    def probe(self) -> None:
        """Ask everybody: each link, the other nodes of this machine, the hosts named by --peer."""
        self.radio.broadcast(lambda: self._packets(Kind.PROBE, nonce=self._nonce("broadcast")))
        if self.loopback_only:
            self.knock("127.0.0.1", self._beacon_port)
        for port in siblings(self._nodes_dir)[:MAX_SIBLINGS]:
            if port != self.radio.own_port:
                self._send_to("127.0.0.1", port, Kind.PROBE, nonce=self._nonce("this machine"))
        for ip, port in self._peers:
            self.knock(ip, port)

    def knock(self, ip: str, port: int) -> None:
        """Ask one address, and through it the other nodes of that machine."""
        where = f"{ip}:{port}"
        self.asked_hosts[where] += 1
        self._send_to(ip, port, Kind.KNOCK, nonce=self._nonce(where))

    def _announce(self, kind: Kind) -> None:
        if self.voice.role is Role.WATCHER:
            return
        self.radio.broadcast(lambda: self._packets(kind))
        here = {("127.0.0.1", port) for port in siblings(self._nodes_dir)[:MAX_SIBLINGS]}
        here.discard(("127.0.0.1", self.radio.own_port))
        # Also to the dead, who may be there and hear nothing else; never to who proved nothing.
        proven = (peer for peer in self.membership.peers.values() if peer.proven)
        known = {way for peer in proven for way in peer.ways()[:1]}
        if self.loopback_only:
            here.add(("127.0.0.1", self._beacon_port))
        # A watcher that asked is no peer and may be beyond broadcasts: it hears of a goodbye all the same.
        askers = set(self._askers) if kind is Kind.LEAVE else set()
        for ip, port in sorted(here | known | askers | set(self._peers)):
            self._send_to(ip, port, kind)

    def _send_to(self, ip: str, port: int, kind: Kind, *, nonce: bytes = beacon.NO_NONCE) -> None:
        if self._source.current().kind == "insecure" and not is_private(ip):
            return
        for data in self._packets(kind, nonce=nonce):
            self.radio.send(data, ip, port)

    def _packets(self, kind: Kind, *, nonce: bytes = beacon.NO_NONCE) -> list[bytes]:
        """The packet, once a key: during a rotation there are nodes that know one of the two only."""
        return [self._packet(kind, key_index, nonce) for key_index in range(len(self._source.current().keys))]

    def _packet(self, kind: Kind, key_index: int, nonce: bytes) -> bytes:
        self._seq += 1
        voice = self.voice
        packet = Packet(
            kind=kind,
            node_id=voice.node_id,
            instance=self.instance,
            boot=voice.boot,
            seq=self._seq,
            port=voice.port,
            name=voice.name,
            state=State.DRAINING if self.draining else State.READY,
            role=voice.role,
            nonce=nonce,
        )
        return beacon.encode(packet, self._source.current().keys[key_index])

    def next_seq(self) -> int:
        """A number for a record of this node: it grows with everything we say."""
        self._seq += 1
        return self._seq

    def _nonce(self, where: str) -> bytes:
        nonce = os.urandom(16)
        self._asked[nonce] = _Asked(self._clock(), set(), where)
        while len(self._asked) > MAX_NONCES:
            self._asked.popitem(last=False)
        return nonce

    # -- in --------------------------------------------------------------------------------------

    def _take(self, data: bytes, source: Source) -> str | None:
        keyring = self._source.current()
        if keyring.kind == "insecure" and not is_private(source.ip):
            return "public"
        try:
            packet = beacon.decode(data, keyring)
        except Dropped as dropped:
            if dropped.fingerprint:
                self._stranger(source.ip, dropped)
            return dropped.reason
        if packet.instance == self.instance:
            return "echo"
        if packet.kind is Kind.ANSWER:
            return self._take_answer(packet, data, source)
        newest = self._guard.is_newest(packet.node_id, packet.instance, packet.seq)
        if not self._guard.accept(packet.node_id, packet.instance, packet.boot, packet.seq):
            return "replay"
        if packet.node_id == self.voice.node_id:
            return self._take_double(packet)
        if packet.role is not Role.WATCHER:
            heard = self.membership.heard(packet, source.ip, self._clock(), answered=False, port=source.port)
            self._tell(heard)
        # A question that was overtaken may be a recording of one that we never heard; the asker asks again.
        if newest and packet.kind in (Kind.PROBE, Kind.KNOCK, Kind.PASSED):
            if self.voice.role is not Role.WATCHER:
                self._answer(packet, source)
                if packet.role is Role.WATCHER:
                    self._remember_asker(source)
            if packet.kind is Kind.KNOCK:
                self._pass_on(packet, source)
        return None

    def _take_answer(self, packet: Packet, data: bytes, source: Source) -> str | None:
        now_s = self._clock()
        relay = self._relays.get(packet.nonce)
        if relay is not None and now_s <= relay.until_s:
            answer = (packet.node_id, packet.instance, packet.fingerprint)
            if answer in relay.passed:
                return "replay"
            relay.passed.add(answer)
            self.radio.reply(data, relay.to)
            return None
        asked = self._asked.get(packet.nonce)
        if asked is None or now_s - asked.at_s > NONCE_LIFE_S:
            return "unasked"
        sender = (packet.node_id, packet.instance)
        if sender in asked.answered:
            return "replay"
        asked.answered.add(sender)
        self.answered_hosts[asked.where] += 1
        if packet.node_id == self.voice.node_id:
            return self._take_double(packet)
        if packet.role is not Role.WATCHER:
            self._tell(self.membership.heard(packet, source.ip, now_s, answered=True))
        return None

    def _take_double(self, packet: Packet) -> str | None:
        """Somebody else says our id, with the cluster's key: a state directory was copied."""
        if packet.boot < self.voice.boot:
            return "replay"
        if not self._contested and packet.kind is not Kind.LEAVE:
            self._contested = True
            peer = Membership()
            peer.heard(packet, "", self._clock(), answered=True)
            self._tell([Change("duplicate-id", each) for each in peer.peers.values()])
        return None

    def _answer(self, packet: Packet, source: Source) -> None:
        keys = self._source.current().keys
        index = next((i for i, key in enumerate(keys) if key.fingerprint == packet.fingerprint), 0)
        self.radio.reply(self._packet(Kind.ANSWER, index, packet.nonce), source)

    def _remember_asker(self, source: Source) -> None:
        now_s = self._clock()
        self._askers[source.ip, source.port] = now_s
        self._askers.move_to_end((source.ip, source.port))
        while len(self._askers) > MAX_ASKERS or now_s - next(iter(self._askers.values())) > ASKER_LIFE_S:
            self._askers.popitem(last=False)

    def _pass_on(self, packet: Packet, source: Source) -> None:
        """A unicast probe reaches one process of a machine: ask the other nodes there, and relay."""
        ports = set(siblings(self._nodes_dir)[:MAX_SIBLINGS])
        for peer in self.membership.alive():
            ports.update(port for ip, port in peer.voices.items() if ip.split("%")[0] in self._own_ips)
        ports.discard(self.radio.own_port)
        if source.ip.split("%")[0] in self._own_ips:
            ports.discard(source.port)
        if not ports:
            return
        # The same knock comes once a key during a rotation.
        self._relays.setdefault(packet.nonce, _Relay(source, self._clock() + NONCE_LIFE_S))
        while len(self._relays) > MAX_RELAYS:
            self._relays.popitem(last=False)
        for port in sorted(ports)[:MAX_SIBLINGS]:
            self._send_to("127.0.0.1", port, Kind.PASSED, nonce=packet.nonce)

    def _stranger(self, ip: str, dropped: Dropped) -> None:
        place = (ip, dropped.fingerprint, dropped.reason)
        known = self._strangers.pop(place, None)
        self._strangers[place] = Stranger(
            address=ip,
            fingerprint=dropped.fingerprint,
            reason=dropped.reason,
            name=dropped.name,
            packets=(known.packets if known else 0) + 1,
        )
        while len(self._strangers) > MAX_STRANGERS:
            self._strangers.popitem(last=False)

    @property
    def strangers(self) -> tuple[Stranger, ...]:
        return tuple(self._strangers.values())

    def _tell(self, changes: list[Change]) -> None:
        for change in changes:
            self._on_change(change)
