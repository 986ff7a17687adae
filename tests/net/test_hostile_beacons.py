"""Show 3 of the discovery work: somebody without the key on the same network, who sends everything else."""

import contextlib
import json
import socket
import time
from collections import Counter
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import Any

import pytest

from exo_cli.cluster import beacon
from exo_cli.cluster.beacon import Kind, Role
from tests.support.beacons import FOREIGN, packet, udp_socket_in
from tests.support.lab import Host, Lab, wait_until

pytestmark = [pytest.mark.net]

LAN = "10.86.1"
EVERYBODY = f"{LAN}.255"
EACH = 1800
A_BURST, BURST_S = 25, 0.01
STATE = ".local/state/exo"
# What a node says anew each time it is asked.
CHANGING = ("seq", "seen_unix_ms", "memory", "loopback_bytes_per_s")


class Attacker:
    """Hears what everybody hears, and sends what it likes from the beacon port."""

    def __init__(self, host: Host) -> None:
        self.ears = udp_socket_in(host.namespace, EVERYBODY, beacon.PORT)
        self.mouths = [udp_socket_in(host.namespace, host.address, port) for port in (beacon.PORT, 0)]
        self.captured: list[bytes] = []
        for each in (self.ears, *self.mouths):
            each.setblocking(False)

    def listen(self) -> set[int]:
        """Take what was broadcast since; the kinds heard so far."""
        self.captured += datagrams(self.ears)
        return {data[5] for data in self.captured if data[:5] == b"exo\x01\x01"}

    def send(self, data: bytes, number: int, targets: list[tuple[str, int]]) -> None:
        self.mouths[number % 2].sendto(data, targets[number // 2 % len(targets)])

    def answers(self) -> list[bytes]:
        return [data for mouth in self.mouths for data in datagrams(mouth)]

    def close(self) -> None:
        for each in (self.ears, *self.mouths):
            each.close()


def datagrams(each: socket.socket) -> Iterator[bytes]:
    with contextlib.suppress(BlockingIOError):
        while True:
            yield each.recv(65536)


def mutated(captured: list[bytes], random: Random) -> Iterator[bytes]:
    """One to eight bits flipped, all over the packet."""
    for number, data in enumerate(cycle(captured)):
        changed = bytearray(data)
        # The fields that are looked at before the signature get their share.
        places = (
            [number % 16 * 8] if number % 2 else random.sample(range(8 * len(data)), random.randint(1, 8))
        )
        for bit in places:
            changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


def truncated(captured: list[bytes], random: Random) -> Iterator[bytes]:
    for number, data in enumerate(cycle(captured)):
        yield data[: number % len(data)]


def oversize(captured: list[bytes], random: Random) -> Iterator[bytes]:
    for number, data in enumerate(cycle(captured)):
        yield data + random.randbytes(30_000 if number % 100 == 0 else 1 + number % 1200)


def foreign(captured: list[bytes], random: Random) -> Iterator[bytes]:
    """Signed with another key: with the ids that were heard, as every kind and role."""
    ids = [data[16:32] for data in captured]
    for seq, node_id in enumerate(cycle(ids)):
        kind, role = random.choice(list(Kind)), random.choice(list(Role))
        said = packet(kind, node_id=node_id, seq=seq, role=role, boot=9, nonce=random.randbytes(16))
        yield beacon.encode(said, FOREIGN)


def forged(captured: list[bytes], random: Random) -> Iterator[bytes]:
    """Says our cluster's name and is signed with another key, or with nothing."""
    for number, data in enumerate(foreign(captured, random)):
        claimed = data[:8] + captured[0][8:16] + data[16:]
        yield claimed if number % 2 else claimed[:-16] + bytes(16)


def noise(captured: list[bytes], random: Random) -> Iterator[bytes]:
    for number in range(1 << 62):
        head = captured[0][: number % 24]
        yield head + random.randbytes(beacon.SIZE - len(head) if number % 2 else random.randrange(1400))


def replayed(captured: list[bytes], random: Random) -> Iterator[bytes]:
    """Exact copies of beacons, probes and goodbyes."""
    return cycle(captured)


def still(path: Path) -> dict[str, Any]:
    """What a topology says, without what changes from one look to the next."""
    topology: dict[str, Any] = json.loads(path.read_text())
    topology.pop("generation")
    for node in topology["nodes"]:
        for key in CHANGING:
            node.pop(key)
    return topology


def events(text: str) -> list[dict[str, Any]]:
    """What was said of nodes."""
    return [event for event in map(json.loads, text.splitlines()) if event["type"] == "node"]


def test_ten_thousand_hostile_packets_change_nothing_and_get_no_answer(lab: Lab) -> None:
    lan = lab.bridge("lan")
    a, b, c, w = (lab.host(name, lan, f"{LAN}.{10 + i}/24") for i, name in enumerate("abcw"))
    lab.key(a, b, c, w)
    attacker = Attacker(lab.host("x", lan, f"{LAN}.66/24"))

    # A cluster at work: two nodes, one that leaves, a watcher, and links that were measured.
    nodes = {host.name: host.start("serve-shard", "--json", "--name", host.name) for host in (a, b, c)}
    watching = w.start("discover", "--watch", "--json", "--measure", "never")
    wait_until(lambda: all('"ready"' in each.out() for each in nodes.values()), 30, nodes["a"].err)
    wait_until(lambda: len(events(watching.out())) == 3, 15, watching.err)
    assert nodes["b"].terminate() == 0
    wait_until(lambda: events(watching.out())[-1]["change"] == "left", 10)
    before = w.topology("--for", "1s")
    assert {node["name"]: node["state"] for node in before["nodes"]} == {"a": "ready", "c": "ready"}
    assert len(before["links"]) == 2
    wait_until(lambda: attacker.listen() >= {Kind.BEACON, Kind.PROBE, Kind.LEAVE}, 10)
    files = [a.home / STATE / "topology.json", w.home / STATE / "topology.json"]
    wait_until(lambda: [len(still(path)["nodes"]) for path in files] == [2, 2], 10)
    topologies = [still(path) for path in files]
    processes = [nodes["a"], nodes["c"], watching]
    quiet = [process.err() for process in processes]
    said = events(watching.out())
    assert attacker.answers() == []

    # The attack, at everybody and at each port that listens.
    voices = [
        json.loads((host.home / STATE / f"nodes/{host.name}/node.json").read_text())["voice_port"]
        for host in (a, c)
    ]
    targets = [
        *((EVERYBODY, beacon.PORT),) * 3,
        (a.address, beacon.PORT),
        (a.address, voices[0]),
        (c.address, voices[1]),
        (w.address, beacon.PORT),
    ]
    captured, random = list(attacker.captured), Random(3)
    explaining = w.start(
        "discover", "--explain", "--json", "--for", "4s", "--topology", str(w.home / "explained.json")
    )
    sent = Counter[str]()
    makers = (mutated, truncated, oversize, foreign, forged, noise, replayed)
    attack = zip(*(make(captured, random) for make in makers), strict=False)
    for number, packets in enumerate(islice(attack, EACH)):
        for make, data in zip(makers, packets, strict=True):
            attacker.send(data, number, targets)
            sent[make.__name__] += 1
        if number % A_BURST == 0:
            time.sleep(BURST_S * len(packets))
    assert sent.total() >= 10_000
    assert set(sent.values()) == {EACH}, sent

    # What it sees: reasons, and no more.
    assert explaining.popen.wait(30) == 0, explaining.err()
    explained = json.loads(explaining.out())
    dropped = {each["interface"]: each["dropped"] for each in explained["interfaces"]}["eth0"]
    assert {"size", "magic", "version", "cluster", "signature", "replay"} <= dropped.keys(), dropped
    assert sum(dropped.values()) > 1000
    assert not {"malformed", "public"} & dropped.keys()
    assert FOREIGN.fingerprint in {each["fingerprint"] for each in explained["strangers"]}
    assert {"stranger", "stranger-forged", "dropped-signature"} <= {
        finding["id"] for finding in explained["findings"]
    }

    # Who just started cannot know what is old. It believes nobody who does not hold the key.
    fresh = json.loads((w.home / "explained.json").read_text())
    assert {node["id"] for node in fresh["nodes"]} == {node["id"] for node in before["nodes"]}

    # Nothing crashed, nobody complained, nothing changed, nothing was answered.
    assert attacker.answers() == []
    assert [process.popen.poll() for process in processes] == [None] * 3
    assert [process.err() for process in processes] == quiet
    assert [still(path) for path in files] == topologies
    assert events(watching.out()) == said
    after = w.topology("--for", "1s", "--measure", "never")
    assert {node["name"]: node["state"] for node in after["nodes"]} == {"a": "ready", "c": "ready"}
    assert attacker.answers() == []
    assert watching.terminate() == 0
    attacker.close()
