"""A process's voice: with a fake radio where a case is rare, with real loopback sockets elsewhere."""

import contextlib
import itertools
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from exo_cli.cluster import beacon, station
from exo_cli.cluster.beacon import Kind, Packet, Role, State
from exo_cli.cluster.identity import Identity, claim
from exo_cli.cluster.membership import Change
from exo_cli.cluster.radio import Radio, Source
from exo_cli.cluster.station import Station, Voice, watcher
from exo_cli.trust.keyring import ClusterKey, Keyring, KeyringSource
from tests.support.beacons import (
    FOREIGN,
    KEY,
    OTHER,
    PLAIN,
    FixedKeys,
    free_udp_port,
    in_a_loop,
    local_source,
    packet,
    until,
)

THERE = Source("192.168.1.66", 40000, "eth0")
ME = Voice(b"m" * 16, 7, "me", Role.SHARD, 52416)
NONCE = b"?" * 16


# -- with a fake radio -------------------------------------------------------------------------------


class Desk:
    """A station that is not on the air: packets go in by hand, and what it sends is collected."""

    def __init__(
        self,
        tmp_path: Path,
        voice: Voice = ME,
        source: KeyringSource | None = None,
        peers: tuple[tuple[str, int], ...] = (),
    ) -> None:
        self.now_s = 1000.0
        self.changes: list[Change] = []
        self.station = Station(
            voice,
            source or local_source(),
            nodes_dir=tmp_path / "nodes",
            peers=peers,
            on_change=self.changes.append,
            clock=lambda: self.now_s,
        )
        self.replies: list[tuple[bytes, Source]] = []
        self.sent: list[tuple[bytes, str, int]] = []
        self.broadcasts: list[bytes] = []
        self.station.loopback_only = False
        self.station.radio = cast(Radio, self)
        self._seq = itertools.count(1)

    # what a station wants of a radio
    own_port = 1

    def reply(self, data: bytes, to: Source) -> bool:
        self.replies.append((data, to))
        return True

    def send(self, data: bytes, ip: str, port: int) -> bool:
        self.sent.append((data, ip, port))
        return True

    def broadcast(self, make: Any) -> None:
        self.broadcasts += make()

    def take(self, kind: Kind, source: Source = THERE, *, key: ClusterKey = KEY, **other: Any) -> str | None:
        """Let the station take a packet; its sequence number is the next one."""
        other.setdefault("seq", next(self._seq))
        return self.station._take(beacon.encode(packet(kind, **other), key), source)

    @property
    def quiet(self) -> bool:
        return not (self.replies or self.sent or self.broadcasts)

    def whats(self) -> list[str]:
        return [change.what for change in self.changes]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def read(data: bytes, *keys: ClusterKey) -> Packet:
    return beacon.decode(data, Keyring("cluster", keys or (KEY,)))


@pytest.mark.parametrize("kind", [Kind.PROBE, Kind.KNOCK, Kind.PASSED])
def test_a_question_is_answered_at_once_and_once(desk: Desk, kind: Kind) -> None:
    assert desk.take(kind, seq=5, nonce=NONCE) is None
    ((data, to),) = desk.replies
    answer = read(data)
    assert to == THERE
    assert len(data) == beacon.SIZE
    assert (answer.kind, answer.nonce, answer.node_id) == (Kind.ANSWER, NONCE, ME.node_id)
    assert (answer.boot, answer.port, answer.name, answer.state) == (7, 52416, "me", State.READY)
    assert desk.take(kind, seq=5, nonce=NONCE) == "replay"
    assert len(desk.replies) == 1


@pytest.mark.parametrize("kind", [Kind.PROBE, Kind.KNOCK, Kind.PASSED])
def test_a_question_from_before_what_was_heard_since_is_not_answered(desk: Desk, kind: Kind) -> None:
    desk.take(Kind.BEACON, seq=20)
    assert desk.take(kind, seq=19, nonce=NONCE) is None
    assert desk.quiet
    assert desk.take(kind, seq=21, nonce=NONCE) is None
    assert len(desk.replies) == 1


@pytest.mark.parametrize("kind", [Kind.BEACON, Kind.ANSWER, Kind.LEAVE])
def test_nothing_else_is_answered(desk: Desk, kind: Kind) -> None:
    desk.take(kind, nonce=NONCE)
    assert desk.quiet


def test_a_watcher_never_answers(tmp_path: Path) -> None:
    desk = Desk(tmp_path, watcher())
    for kind in Kind:
        for role in Role:
            desk.take(kind, role=role, nonce=NONCE)
    assert desk.quiet
    desk.station._announce(Kind.BEACON)
    assert desk.quiet


def test_a_draining_node_says_so(desk: Desk) -> None:
    desk.station.draining = True
    desk.take(Kind.PROBE, nonce=NONCE)
    assert read(desk.replies[0][0]).state is State.DRAINING


def test_the_answer_is_in_the_key_of_the_question(tmp_path: Path) -> None:
    desk = Desk(tmp_path, source=local_source(OTHER, KEY))
    desk.take(Kind.PROBE, key=KEY, nonce=NONCE)
    desk.take(Kind.PROBE, key=OTHER, nonce=NONCE)
    assert [read(data, OTHER, KEY).fingerprint for data, _ in desk.replies] == [
        KEY.fingerprint,
        OTHER.fingerprint,
    ]


def test_strangers_are_counted_listed_and_not_answered(desk: Desk) -> None:
    for _ in range(3):
        assert desk.take(Kind.PROBE, key=FOREIGN, name="spy") == "cluster"
    assert desk.station._take(b"\0" * beacon.SIZE, THERE) == "magic"
    assert desk.station._take(b"", THERE) == "size"
    assert desk.quiet
    assert desk.station.membership.peers == {}
    (stranger,) = desk.station.strangers
    assert (stranger.address, stranger.fingerprint, stranger.name, stranger.packets) == (
        THERE.ip,
        FOREIGN.fingerprint,
        "spy",
        3,
    )


def test_the_list_of_strangers_is_bounded(desk: Desk) -> None:
    for number in range(1000):
        desk.take(Kind.BEACON, Source(f"10.0.{number // 250}.{number % 250}", 9, "eth0"), key=FOREIGN)
    assert len(desk.station.strangers) == station.MAX_STRANGERS
    assert desk.station.strangers[-1].address == "10.0.3.249"


def test_our_own_packets_are_an_echo(desk: Desk) -> None:
    for data in desk.station._packets(Kind.PROBE, nonce=NONCE):
        assert desk.station._take(data, THERE) == "echo"
    assert desk.replies == []


def test_insecure_hears_private_addresses_only_and_speaks_to_no_other(tmp_path: Path) -> None:
    source = cast(KeyringSource, FixedKeys("insecure", KEY))
    desk = Desk(tmp_path, source=source, peers=(("203.0.113.9", 9), ("10.0.0.9", 9)))
    assert desk.take(Kind.PROBE, Source("203.0.113.9", 9, "eth0")) == "public"
    assert desk.replies == []
    assert desk.take(Kind.PROBE, Source("10.0.0.9", 9, "eth0")) is None
    desk.station.probe()
    desk.station._announce(Kind.BEACON)
    assert {ip for _, ip, _ in desk.sent} == {"10.0.0.9"}


def test_who_proved_nothing_gets_no_beacons(desk: Desk) -> None:
    desk.take(Kind.BEACON)
    desk.station._announce(Kind.BEACON)
    assert desk.sent == []
    assert len(desk.broadcasts) == 1
    # Two beacons in a row prove that it is there, and not that it is where they came from.
    desk.take(Kind.BEACON)
    desk.station._announce(Kind.BEACON)
    assert desk.sent == []
    desk.take(Kind.ANSWER, nonce=asked(desk))
    desk.station._announce(Kind.BEACON)
    assert [(ip, port) for _, ip, port in desk.sent] == [(THERE.ip, THERE.port)]


# -- answers -----------------------------------------------------------------------------------------


def asked(desk: Desk) -> bytes:
    desk.station.knock("192.168.1.66", 9)
    return read(desk.sent.pop()[0]).nonce


def test_an_answer_to_our_question_proves_a_node(desk: Desk) -> None:
    nonce = asked(desk)
    assert desk.take(Kind.ANSWER, nonce=nonce) is None
    assert desk.whats() == ["joined"]
    assert desk.station.answered_hosts["192.168.1.66:9"] == desk.station.asked_hosts["192.168.1.66:9"] == 1
    assert desk.take(Kind.ANSWER, nonce=nonce) == "replay"
    assert desk.take(Kind.ANSWER, nonce=nonce, node_id=b"x" * 16) is None
    assert desk.whats() == ["joined", "joined"]


def test_an_answer_that_nobody_asked_for_is_dropped(desk: Desk) -> None:
    assert desk.take(Kind.ANSWER, nonce=NONCE) == "unasked"
    nonce = asked(desk)
    desk.now_s += station.NONCE_LIFE_S + 0.1
    assert desk.take(Kind.ANSWER, nonce=nonce) == "unasked"
    first = asked(desk)
    for _ in range(station.MAX_NONCES):
        asked(desk)
    assert desk.take(Kind.ANSWER, nonce=first) == "unasked"
    assert desk.changes == []


# -- our id, from somebody else ----------------------------------------------------------------------


def test_a_copy_of_our_id_is_reported_once(desk: Desk) -> None:
    assert desk.take(Kind.BEACON, node_id=ME.node_id, boot=6) == "replay"
    assert desk.take(Kind.LEAVE, node_id=ME.node_id, boot=8) is None
    assert desk.changes == []
    for boot in (8, 8, 9):
        desk.take(Kind.PROBE, node_id=ME.node_id, boot=boot, name="copy")
    assert desk.whats() == ["duplicate-id"]
    assert desk.changes[0].peer.name == "copy"
    assert desk.station.membership.peers == {}
    assert desk.replies == []


# -- knocking at a machine with several nodes --------------------------------------------------------


@pytest.fixture
def sibling(tmp_path: Path) -> Iterator[Identity]:
    """Another node of this user, as far as its directory says."""
    made = claim(tmp_path / "nodes", "sibling")
    made.publish(port=2, voice_port=45454)
    yield made
    made.release()


@pytest.mark.usefixtures("sibling")
@pytest.mark.parametrize("voice", [ME, watcher()], ids=["node", "watcher"])
def test_a_knock_is_passed_on_and_the_answers_go_back(tmp_path: Path, voice: Voice) -> None:
    desk = Desk(tmp_path, voice)
    desk.take(Kind.KNOCK, nonce=NONCE)
    assert len(desk.replies) == (1 if voice is ME else 0)
    desk.replies.clear()
    ((data, ip, port),) = desk.sent
    passed = read(data)
    assert (ip, port, passed.kind, passed.nonce) == ("127.0.0.1", 45454, Kind.PASSED, NONCE)
    assert passed.node_id == voice.node_id
    # What comes back is handed on as it is, once, and is no answer to us.
    here = Source("127.0.0.1", 45454, "lo")
    answer = beacon.encode(packet(Kind.ANSWER, nonce=NONCE), KEY)
    assert desk.station._take(answer, here) is None
    assert desk.replies == [(answer, THERE)]
    assert desk.station._take(answer, here) == "replay"
    assert len(desk.replies) == 1
    desk.now_s += station.NONCE_LIFE_S + 0.1
    assert desk.take(Kind.ANSWER, here, nonce=NONCE, node_id=b"z" * 16) == "unasked"


@pytest.mark.usefixtures("sibling")
@pytest.mark.parametrize("kind", [Kind.PROBE, Kind.PASSED, Kind.BEACON])
def test_nothing_else_is_passed_on(desk: Desk, kind: Kind) -> None:
    desk.take(kind, nonce=NONCE)
    assert desk.sent == []


@pytest.mark.usefixtures("sibling")
def test_a_sibling_that_knocks_is_not_asked_itself(desk: Desk) -> None:
    desk.take(Kind.KNOCK, Source("127.0.0.1", 45454, "lo"), nonce=NONCE)
    assert desk.sent == []
    # Another machine may speak from the same port.
    desk.take(Kind.KNOCK, Source("192.168.1.66", 45454, "eth0"), nonce=NONCE)
    assert len(desk.sent) == 1


@pytest.mark.usefixtures("sibling")
def test_during_a_rotation_a_relay_hands_on_the_answers_in_both_keys(tmp_path: Path) -> None:
    desk = Desk(tmp_path, source=local_source(OTHER, KEY))
    for key in (OTHER, KEY):
        desk.take(Kind.KNOCK, key=key, nonce=NONCE)
    desk.replies.clear()
    for key in (OTHER, KEY):
        assert desk.take(Kind.ANSWER, key=key, node_id=b"s" * 16, nonce=NONCE) is None
    assert {read(data, OTHER, KEY).fingerprint for data, _ in desk.replies} == {
        KEY.fingerprint,
        OTHER.fingerprint,
    }


@pytest.mark.usefixtures("sibling")
def test_relays_are_bounded(desk: Desk) -> None:
    for number in range(2 * station.MAX_RELAYS):
        desk.take(Kind.KNOCK, nonce=number.to_bytes(16, "big"))
    assert len(desk.station._relays) == station.MAX_RELAYS


# -- on the air, on loopback -------------------------------------------------------------------------


class Town:
    """Stations of one user on one machine."""

    def __init__(self, tmp_path: Path) -> None:
        self.nodes_dir = tmp_path / "nodes"
        self.port = free_udp_port()
        self.changes: dict[str, list[str]] = {}

    @asynccontextmanager
    async def node(self, name: str, *keys: ClusterKey) -> AsyncIterator[Station]:
        identity = claim(self.nodes_dir, name)
        voice = Voice(bytes.fromhex(identity.node_id), identity.boot, name, Role.SHARD, free_udp_port())
        made = self._station(name, voice, *keys)
        await made.start()
        identity.publish(port=voice.port, voice_port=made.radio.own_port)
        try:
            yield made
        finally:
            await made.stop()
            identity.release()

    @asynccontextmanager
    async def watcher(self, *keys: ClusterKey) -> AsyncIterator[Station]:
        made = self._station("watcher", watcher(), *keys)
        await made.start()
        try:
            yield made
        finally:
            await made.stop()

    def _station(self, name: str, voice: Voice, *keys: ClusterKey) -> Station:
        changes = self.changes[name] = []
        return Station(
            voice,
            local_source(*keys),
            nodes_dir=self.nodes_dir,
            on_change=lambda change: changes.append(f"{change.peer.name} {change.what}"),
            beacon_port=self.port,
        )


def known(station: Station) -> set[str]:
    return {peer.name for peer in station.membership.alive()}


@pytest.fixture
def town(tmp_path: Path) -> Town:
    return Town(tmp_path)


@in_a_loop
async def test_nodes_of_one_machine_find_each_other_and_say_goodbye(town: Town) -> None:
    async with town.node("a") as a, contextlib.AsyncExitStack() as later:
        b = await later.enter_async_context(town.node("b"))
        async with town.watcher() as seen:
            await until(lambda: known(a) == {"b"} and known(b) == {"a"} and known(seen) == {"a", "b"})
            await later.aclose()
            await until(lambda: known(a) == set() and known(seen) == {"a"})
        assert town.changes["a"] == ["b joined", "b left"]
        assert sorted(town.changes["watcher"]) == ["a joined", "b joined", "b left"]
        assert a.radio.deaf is None


@in_a_loop
async def test_a_knock_at_one_port_finds_all_nodes_of_the_machine(town: Town) -> None:
    async with town.node("a") as a, town.node("b"), town.node("c"), town.watcher() as seen:
        await until(lambda: known(seen) == {"a", "b", "c"})
        asker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with asker:
            asker.setblocking(False)
            asker.bind(("127.0.0.1", 0))
            # At a node's own port, at its control port, and at a watcher, who is no node itself.
            for number, at in enumerate((a.radio.own_port, a.voice.port, seen.radio.own_port)):
                nonce = number.to_bytes(16, "big")
                question = beacon.encode(
                    packet(Kind.KNOCK, seq=10 + number, role=Role.WATCHER, nonce=nonce), KEY
                )
                asker.sendto(question, ("127.0.0.1", at))
                names: set[str] = set()

                def hear(nonce: bytes = nonce, names: set[str] = names, at: int = at) -> bool:
                    with contextlib.suppress(BlockingIOError):
                        data, sender = asker.recvfrom(2000)
                        answer = read(data)
                        assert len(data) == beacon.SIZE
                        assert (answer.kind, answer.nonce) == (Kind.ANSWER, nonce)
                        # A translating router on the way lets nothing else through.
                        assert sender == ("127.0.0.1", at)
                        names.add(answer.name)
                    return names == {"a", "b", "c"}

                await until(hear)
        assert PLAIN.name not in known(a) | known(seen)


@in_a_loop
async def test_during_a_rotation_old_and_new_hear_each_other(town: Town) -> None:
    async with town.node("both", OTHER, KEY) as both, town.node("old", KEY) as old:
        async with town.watcher(KEY) as seen_old, town.watcher(OTHER, KEY) as seen_both:
            await until(lambda: known(both) == {"old"} and known(old) == {"both"})
            await until(lambda: known(seen_old) == known(seen_both) == {"both", "old"})
        async with town.watcher(OTHER) as seen_new:
            await until(lambda: known(seen_new) == {"both"})
            assert any(each.reason == "cluster" for each in old.strangers)


@in_a_loop
async def test_another_key_makes_a_stranger(town: Town) -> None:
    async with town.node("a") as a, town.watcher(FOREIGN) as seen:
        await until(lambda: a.strangers)
        assert {each.fingerprint for each in a.strangers} == {FOREIGN.fingerprint}
        assert known(seen) == set()
        (count,) = (each for each in seen.radio.report() if each.kind == "loopback")
        assert count.accepted == 0
