"""Who is there: every rule alone, then a cluster of a few nodes in virtual time."""

import heapq
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exo_cli.cluster import membership
from exo_cli.cluster.beacon import Kind, Packet, Role, State
from exo_cli.cluster.membership import (
    ADDRESS_LIFE_S,
    ASK_EVERY_S,
    EVERYBODY,
    MAX_ADDRESSES,
    MAX_PEERS,
    Address,
    Change,
    Membership,
)
from exo_cli.cluster.replay import ReplayGuard
from tests.support.beacons import PLAIN, packet

IP = "192.168.1.7"
ID = PLAIN.node_id.hex()


def whats(changes: Iterable[Change]) -> list[str]:
    return [change.what for change in changes]


class Seen:
    """A membership and the time; what it reports is collected."""

    def __init__(self) -> None:
        self.members = Membership()
        self.now_s = 100.0
        self.asked: list[Address] = []

    def hear(self, packet: Packet, ip: str = IP, *, answered: bool = False, port: int = 5) -> list[str]:
        voice = None if answered else port
        return whats(self.members.heard(packet, ip, self.now_s, answered=answered, port=voice))

    def wait(self, seconds: float) -> list[str]:
        """Scan four times a second."""
        changes: list[str] = []
        for _ in range(round(seconds * 4)):
            self.now_s += 0.25
            more, ask = self.members.scan(self.now_s)
            changes += whats(more)
            self.asked += ask
        return changes

    def sleep(self, seconds: float) -> list[str]:
        """This process does not run; the next scan comes late."""
        self.now_s += seconds - 0.25
        return self.wait(0.25)

    @property
    def alive(self) -> list[str]:
        return [peer.node_id for peer in self.members.alive()]


@pytest.fixture
def seen() -> Seen:
    """A node that joined."""
    made = Seen()
    made.wait(1)
    assert made.hear(packet(seq=1)) == []
    assert made.hear(packet(seq=2)) == ["joined"]
    return made


# -- joining -----------------------------------------------------------------------------------------


def test_one_packet_proves_nothing() -> None:
    seen = Seen()
    assert seen.hear(packet(seq=7)) == []
    assert seen.hear(packet(seq=6)) == []
    assert seen.alive == []
    # It is forgotten without a word: nobody was told of it.
    assert seen.wait(12) == []
    assert seen.members.peers == {}


def test_an_answer_proves_it() -> None:
    seen = Seen()
    assert seen.hear(packet(Kind.ANSWER, seq=7), answered=True) == ["joined"]
    assert seen.alive == [ID]
    assert seen.hear(packet(seq=8)) == []


def test_a_sequence_that_advances_proves_it(seen: Seen) -> None:
    assert seen.alive == [ID]
    assert seen.hear(packet(seq=3)) == []


# -- silence -----------------------------------------------------------------------------------------


def test_silence_is_suspected_then_asked_then_death(seen: Seen) -> None:
    seen.hear(packet(seq=3), answered=True)
    assert seen.wait(5.5) == []
    assert seen.asked == []
    assert seen.wait(0.25) == ["suspect"]
    assert seen.alive == [ID]
    assert seen.wait(4.0) == ["dead"]
    assert seen.alive == []
    # Asked where it speaks from and where it listens, several times; the dead are left alone.
    asked = len(seen.asked)
    assert set(seen.asked) == {(IP, 5), (IP, 52416)}
    assert 3 * 2 <= asked <= (4 / ASK_EVERY_S + 1) * 2
    assert seen.wait(60) == []
    assert len(seen.asked) == asked


@pytest.mark.parametrize("answered", [False, True])
def test_a_suspect_that_speaks_refutes_it(seen: Seen, answered: bool) -> None:
    assert seen.wait(8) == ["suspect"]
    assert seen.hear(packet(seq=3), answered=answered) == ["refuted"]
    assert seen.wait(5) == []


def test_the_dead_may_come_back(seen: Seen) -> None:
    assert seen.wait(12) == ["suspect", "dead"]
    assert seen.hear(packet(seq=3)) == ["joined"]
    assert seen.alive == [ID]


def test_an_old_packet_keeps_nobody_alive(seen: Seen) -> None:
    seen.hear(packet(seq=50))
    reported: list[str] = []
    for seq in range(10, 50):
        assert seen.hear(packet(seq=seq), f"10.0.0.{seq}") == []
        reported += seen.wait(0.25)
    assert reported == ["suspect", "dead"]
    assert seen.hear(packet(seq=9)) == []
    assert seen.alive == []


def test_old_packets_take_no_address_away(seen: Seen) -> None:
    seen.hear(packet(seq=50), port=77)
    for seq in range(10, 49):
        seen.hear(packet(seq=seq), f"10.0.0.{seq}")
    seen.hear(packet(seq=49), IP, port=666)
    peer = seen.members.peers[ID]
    assert IP in peer.ips()
    assert peer.voices[IP] == 77


def test_a_late_scan_kills_nobody(seen: Seen) -> None:
    seen.wait(2)
    assert seen.sleep(3600) == []
    assert seen.wait(3) == []
    assert seen.hear(packet(seq=3)) == []
    # Nor does it make what speaks on immortal.
    assert seen.wait(10) == ["suspect", "dead"]


def test_who_speaks_as_we_wake_and_then_dies_is_dead_in_time(seen: Seen) -> None:
    seen.now_s += 3600
    assert seen.hear(packet(seq=3)) == []
    assert seen.wait(10) == ["suspect", "dead"]


# -- leaving and restarting --------------------------------------------------------------------------


def test_who_leaves_is_gone_at_once_and_stays_gone(seen: Seen) -> None:
    assert seen.hear(packet(Kind.LEAVE, seq=20)) == ["left"]
    assert seen.members.peers == {}
    assert seen.hear(packet(Kind.LEAVE, seq=21)) == []
    # What was overtaken by the goodbye, or recorded before it, brings nobody back.
    assert seen.hear(packet(seq=18)) == []
    assert seen.hear(packet(seq=19)) == []
    assert seen.hear(packet(Kind.ANSWER, seq=17), answered=True) == []
    assert seen.members.peers == {}


def test_a_recorded_goodbye_does_not_end_the_next_run(seen: Seen) -> None:
    seen.hear(packet(Kind.LEAVE, seq=20))
    again = packet(boot=2, instance=b"j" * 8)
    seen.hear(again)
    assert seen.hear(packet(boot=2, instance=b"j" * 8, seq=2)) == ["joined"]
    assert seen.hear(packet(Kind.LEAVE, seq=22)) == []
    assert seen.alive == [ID]


def test_a_goodbye_of_somebody_never_heard_is_no_news() -> None:
    seen = Seen()
    assert seen.hear(packet(Kind.LEAVE, seq=3)) == []
    assert seen.hear(packet(seq=1)) == []
    assert seen.hear(packet(seq=2)) == []
    assert seen.members.peers == {}


def test_a_restart_joins_again_and_is_no_duplicate(seen: Seen) -> None:
    fresh: dict[str, Any] = {"boot": 2, "instance": b"j" * 8}
    assert seen.hear(packet(seq=1, **fresh), port=9) == []
    assert seen.hear(packet(seq=2, name="new", **fresh), port=9) == ["joined"]
    peer = seen.members.peers[ID]
    assert (peer.boot, peer.name, peer.voices) == (2, "new", {IP: 9})
    # The old run is history, whatever it still says.
    assert seen.hear(packet(seq=99)) == []
    assert seen.wait(10) == ["suspect", "dead"]


def test_who_never_answered_is_asked_on_every_link_and_nowhere_else(seen: Seen) -> None:
    """What we missed may be played to us from another address: nothing is sent there."""
    seen.hear(packet(seq=3), "203.0.113.66")
    assert seen.wait(10) == ["suspect", "dead"]
    assert set(seen.asked) == {EVERYBODY}
    assert seen.members.peers[ID].ways() == []


def test_a_restart_that_ends_at_once_is_reported_dead(seen: Seen) -> None:
    seen.hear(packet(seq=3), answered=True)
    assert seen.hear(packet(seq=1, boot=2, instance=b"j" * 8)) == []
    assert seen.wait(10) == ["dead"]
    assert set(seen.asked) == {(IP, 5), (IP, 52416)}
    assert seen.members.peers == {}


def test_a_dead_node_of_another_run_is_replaced_by_the_one_that_answers(seen: Seen) -> None:
    seen.wait(10)
    restored = packet(seq=1, boot=0, instance=b"j" * 8)
    assert seen.hear(restored) == []
    assert seen.hear(restored, answered=True) == ["joined"]


# -- two nodes with one id ---------------------------------------------------------------------------


@pytest.mark.parametrize("boot", [0, 1, 2])
def test_two_that_answer_in_turns_are_reported_once(seen: Seen, boot: int) -> None:
    changes: list[str] = []
    for seq in range(10, 20):
        changes += seen.hear(packet(seq=seq), answered=True)
        seen.now_s += 0.1
        changes += seen.hear(packet(seq=seq, boot=boot, instance=b"j" * 8), answered=True)
        seen.now_s += 0.1
    assert changes.count("duplicate-id") == 1
    assert set(changes) <= {"duplicate-id", "joined"}


def test_the_last_answer_of_the_run_before_is_no_duplicate(seen: Seen) -> None:
    seen.hear(packet(seq=10), answered=True)
    seen.now_s += 1
    seen.hear(packet(seq=1, boot=2, instance=b"j" * 8))
    assert seen.hear(packet(seq=11), answered=True) == []
    assert seen.hear(packet(seq=2, boot=2, instance=b"j" * 8)) == ["joined"]


def test_two_answers_of_one_while_the_other_is_silent_are_no_duplicate(seen: Seen) -> None:
    for seq in range(10, 13):
        seen.now_s += 0.1
        assert seen.hear(packet(seq=seq, instance=b"j" * 8), answered=True) == []
    assert seen.hear(packet(seq=3)) == []
    assert seen.hear(packet(seq=14, instance=b"j" * 8), answered=True) == ["duplicate-id"]


def test_packets_that_answer_nothing_make_no_duplicate(seen: Seen) -> None:
    for seq in range(3, 20):
        seen.now_s += 0.5
        assert seen.hear(packet(seq=seq)) == []
        assert seen.hear(packet(seq=seq, instance=b"j" * 8)) == []


# -- what it says ------------------------------------------------------------------------------------


def test_changes_are_reported_and_old_news_is_not(seen: Seen) -> None:
    assert seen.hear(packet(seq=5, state=State.DRAINING)) == ["changed"]
    assert seen.hear(packet(seq=4)) == []
    assert seen.hear(packet(Kind.ANSWER, seq=3), answered=True) == []
    assert seen.members.peers[ID].draining
    assert seen.hear(packet(seq=6, port=1, name="x", role=Role.ANNOUNCE)) == ["changed"]
    peer = seen.members.peers[ID]
    assert (peer.port, peer.name, peer.role, peer.draining) == (1, "x", Role.ANNOUNCE, False)


def test_addresses_that_answered_come_first_then_the_newest_and_those_of_this_link_last(seen: Seen) -> None:
    for seq, ip in enumerate(["10.0.0.1", "10.0.0.2", "fe80::1%eth0"], 3):
        seen.now_s += 0.1
        seen.hear(packet(seq=seq), ip)
    peer = seen.members.peers[ID]
    assert peer.ips() == ["10.0.0.2", "10.0.0.1", IP, "fe80::1%eth0"]
    assert peer.ways() == []
    seen.hear(packet(seq=9), "10.0.0.1", answered=True)
    assert peer.ips() == ["10.0.0.1", "10.0.0.2", IP, "fe80::1%eth0"]
    assert peer.ways() == [("10.0.0.1", 5), ("10.0.0.1", 52416)]


def test_addresses_that_fell_silent_are_forgotten(seen: Seen) -> None:
    for seq in range(3, 3 + round(ADDRESS_LIFE_S)):
        seen.hear(packet(seq=seq), "10.0.0.2")
        seen.wait(1.25)
    peer = seen.members.peers[ID]
    assert peer.ips() == ["10.0.0.2"]
    assert set(peer.voices) == {"10.0.0.2"}


# -- bounds ------------------------------------------------------------------------------------------


def test_addresses_are_bounded(seen: Seen) -> None:
    for seq in range(3, 300):
        seen.now_s += 0.001
        seen.hear(packet(seq=seq), f"10.0.{seq // 100}.{seq % 100}")
    peer = seen.members.peers[ID]
    assert len(peer.addresses) == MAX_ADDRESSES
    assert peer.voices.keys() <= peer.addresses.keys()
    assert peer.ips()[0] == "10.0.2.99"


def test_runs_of_one_id_are_bounded(seen: Seen) -> None:
    for boot in range(2, 200):
        for seq in (1, 2):
            seen.hear(packet(boot=boot, instance=boot.to_bytes(8, "big"), seq=seq), answered=True)
            seen.hear(packet(boot=1, instance=boot.to_bytes(8, "little"), seq=seq), answered=True)
    peer = seen.members.peers[ID]
    assert peer.boot == 199
    assert len(peer.rivals) <= MAX_ADDRESSES


def test_peers_are_bounded_and_the_dead_make_room() -> None:
    seen = Seen()
    seen.wait(1)
    for number in range(MAX_PEERS + 5):
        seen.hear(packet(node_id=number.to_bytes(16, "big")), answered=True)
    assert len(seen.members.peers) == len(seen.alive) == MAX_PEERS
    assert seen.wait(10).count("dead") == MAX_PEERS
    assert seen.hear(packet(), answered=True) == ["joined"]
    assert len(seen.members.peers) == MAX_PEERS
    assert seen.alive == [ID]


def test_goodbyes_are_bounded() -> None:
    seen = Seen()
    for number in range(3 * membership.MAX_DEPARTED):
        seen.hear(packet(Kind.LEAVE, node_id=number.to_bytes(16, "big")))
    sizes = [len(each) for each in vars(seen.members).values() if hasattr(each, "__len__")]
    assert max(sizes) == membership.MAX_DEPARTED


# -- a cluster in virtual time -----------------------------------------------------------------------


@dataclass
class Sim:
    """Nodes that beacon every 2.5 s over a network that loses and reorders, and one that watches."""

    random: Random
    loss: float
    now_s: float = 0.0
    queue: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    order: "itertools.count[int]" = field(default_factory=itertools.count)
    members: Membership = field(default_factory=Membership)
    guard: ReplayGuard = field(default_factory=ReplayGuard)
    nodes: "dict[bytes, SimNode]" = field(default_factory=dict)
    asleep_until_s: float = 0.0
    history: list[tuple[float, str, str]] = field(default_factory=list)

    def at(self, delay_s: float, do: Callable[[], None]) -> None:
        heapq.heappush(self.queue, (self.now_s + delay_s, next(self.order), do))

    def run(self, seconds: float) -> None:
        end_s = self.now_s + seconds
        while self.queue and self.queue[0][0] <= end_s:
            self.now_s, _, do = heapq.heappop(self.queue)
            do()
        self.now_s = end_s

    def scan(self) -> None:
        if self.now_s >= self.asleep_until_s:
            changes, ask = self.members.scan(self.now_s)
            self.note(changes)
            for ip, port in dict.fromkeys(ask):
                self.at(self.random.uniform(0, 0.2), lambda ip=ip, port=port: self.ask(ip, port))  # type: ignore[misc]
            self.check_the_dead()
        self.at(0.25, self.scan)

    def ask(self, ip: str, port: int) -> None:
        for node in self.nodes.values():
            if node.up and (ip, port) == (node.ip, node.voice):
                self.deliver(node, node.packet(Kind.ANSWER), lossy=False)

    def deliver(self, node: "SimNode", packet: Packet, *, lossy: bool = True) -> None:
        if lossy and self.random.random() < self.loss:
            return
        asked_s = self.now_s

        def arrive() -> None:
            if self.now_s < self.asleep_until_s:
                # It waits in the socket's buffer.
                self.at(self.asleep_until_s - self.now_s, arrive)
                return
            answered = packet.kind is Kind.ANSWER
            if answered and self.now_s - asked_s > 10:
                return
            if not answered and not self.guard.accept(
                packet.node_id, packet.instance, packet.boot, packet.seq
            ):
                return
            node.last_word_s = max(node.last_word_s, self.now_s)
            node.unheard = node.unheard and packet.instance != node.instance
            port = None if answered else node.voice
            self.note(self.members.heard(packet, node.ip, self.now_s, answered=answered, port=port))

        self.at(self.random.uniform(0, 0.4), arrive)

    def note(self, changes: list[Change]) -> None:
        for change in changes:
            node = self.nodes[bytes.fromhex(change.peer.node_id)]
            self.history.append((self.now_s, node.ip, change.what))
            assert change.what != "duplicate-id"
            if change.what == "joined":
                assert not node.shown or node.restarted
                node.shown, node.restarted = True, False
            elif change.what in ("left", "dead"):
                assert node.shown
                node.shown = False
            if change.what == "dead":
                assert not node.up or node.unheard, (self.history, "a live node was declared dead")

    def check_the_dead(self) -> None:
        for node in self.nodes.values():
            if node.shown and not node.up:
                silent_s = self.now_s - max(node.last_word_s, self.asleep_until_s)
                assert silent_s <= 10, (self.history, node.ip)


@dataclass
class SimNode:
    sim: Sim
    node_id: bytes
    ip: str
    boot: int = 0
    seq: int = 0
    instance: bytes = b""
    up: bool = False
    unheard: bool = False
    """Nothing of this run arrived yet: whoever watches knows the one before."""
    shown: bool = False
    restarted: bool = False
    last_word_s: float = 0.0
    voice: int = 0

    def start(self) -> None:
        if self.up:
            return
        self.up, self.restarted, self.unheard = True, True, True
        self.boot += 1
        self.seq = 0
        self.instance = self.boot.to_bytes(4, "big") + self.node_id[:4]
        self.voice = 1000 + self.boot
        self.beacon(self.instance)

    def packet(self, kind: Kind) -> Packet:
        self.seq += 1
        return packet(kind, node_id=self.node_id, instance=self.instance, boot=self.boot, seq=self.seq)

    def beacon(self, instance: bytes) -> None:
        if not self.up or instance != self.instance:
            return
        for _ in range(2):  # two interfaces, or broadcast and unicast
            self.sim.deliver(self, self.packet(Kind.BEACON))
        self.sim.at(2.5 * self.sim.random.uniform(0.9, 1.0), lambda: self.beacon(instance))

    def kill(self) -> None:
        self.up = False

    def leave(self) -> None:
        if self.up:
            for _ in range(2):
                self.sim.deliver(self, self.packet(Kind.LEAVE))
            self.up = False


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["start", "kill", "leave", "sleep", "nothing"]),
        st.integers(0, 3),
        st.sampled_from([1.0, 2.0, 3.7, 9.0, 15.0]),
    ),
    max_size=12,
)


@settings(deadline=None)
@given(st.integers(0, 2**32), st.floats(0, 0.3), _STEPS)
def test_the_living_are_not_declared_dead_and_the_dead_are(
    seed: int, loss: float, steps: list[tuple[str, int, float]]
) -> None:
    sim = Sim(Random(seed), loss)
    for number in range(4):
        node_id = bytes([number]) * 16
        sim.nodes[node_id] = SimNode(sim, node_id, f"10.0.0.{number}")
    nodes = list(sim.nodes.values())
    sim.scan()
    for node in nodes[:2]:
        node.start()
    for what, which, pause_s in steps:
        if what == "start":
            nodes[which].start()
        elif what == "kill":
            nodes[which].kill()
        elif what == "leave":
            nodes[which].leave()
        elif what == "sleep":
            sim.asleep_until_s = sim.now_s + 10 * pause_s
            sim.run(10 * pause_s)
        sim.run(pause_s)
    # Peace and a good network: everybody agrees with what is.
    sim.loss = 0.0
    sim.run(15)
    assert {peer.node_id for peer in sim.members.alive()} == {
        node.node_id.hex() for node in nodes if node.up
    }, sim.history
    assert {node.ip for node in nodes if node.shown} == {node.ip for node in nodes if node.up}
