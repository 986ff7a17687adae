"""The lab's switch that delays: later, in order, all of it, and gone with its owner."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.beacons import udp_socket_in
from tests.support.delay import Delay, Switch
from tests.support.lab import Host, Lab, wait_until

ROOT = Path(__file__).parents[2]
DELAY_S = 0.02
PORT = 9000
A, B, C = (bytes([2, 0, 0, 0, 0, number]) for number in (1, 2, 3))
ALL = b"\xff" * 6


def sink() -> tuple[list[tuple[int, bytes]], Callable[[int, bytes], None]]:
    sent: list[tuple[int, bytes]] = []
    return sent, lambda port, frame: sent.append((port, frame))


def test_a_frame_goes_to_everybody_until_its_address_was_seen() -> None:
    switch = Switch(3, 0.0)
    sent, send = sink()
    for port, to, source in ((0, ALL, A), (1, A, B), (0, B, A), (2, C, A), (0, A, C)):
        switch.take(port, to + source, 1.0)
        switch.due(1.0, send)
    ports = [port for port, _ in sent]
    # To all others; to A; to B; C is not known; A was seen behind port 2 meanwhile.
    assert ports == [1, 2, 0, 1, 0, 1, 2]


def test_a_frame_waits_and_the_queue_has_an_end() -> None:
    switch = Switch(2, 0.5, limit=2)
    sent, send = sink()
    assert switch.due(0.0, send) is None
    frames = [ALL + A + bytes([number]) for number in range(3)]
    for number, frame in enumerate(frames):
        switch.take(0, frame, number / 8)
    assert (switch.due(0.25, send), sent) == (0.25, [])
    assert switch.due(0.5, send) == 0.125
    assert sent == [(1, frames[0])]
    assert switch.due(9.0, send) is None
    # The third found it full.
    assert sent == [(1, frame) for frame in frames[:2]]


@pytest.fixture
def three(lab: Lab) -> tuple[str, list[Host]]:
    """A switch, and hosts on it."""
    switch = lab.bridge("sw")
    return switch, [lab.host(name, switch, f"10.93.1.{at}/24") for at, name in enumerate("abc", 1)]


def sockets(hosts: list[Host]) -> list[socket.socket]:
    made = [udp_socket_in(host.namespace, "0.0.0.0", PORT) for host in hosts]
    for each in made:
        each.settimeout(20)
        each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    return made


@pytest.mark.net
def test_all_comes_in_order_and_later(three: tuple[str, list[Host]]) -> None:
    switch, hosts = three
    a, b, c = sockets(hosts)
    with a, b, c, Delay(switch, DELAY_S):
        for number in range(5):
            began_s = time.monotonic()
            a.sendto(bytes([number]), (hosts[1].address, PORT))
            asked, sender = b.recvfrom(100)
            b.sendto(asked, sender)
            assert a.recv(100) == bytes([number])
            assert time.monotonic() - began_s >= 2 * DELAY_S

        # Larger than a frame: 300 datagrams are 900 fragments.
        many = [number.to_bytes(2, "big") * 2000 for number in range(300)]
        for number, each in enumerate(many):
            a.sendto(each, (hosts[1].address, PORT))
            if number % 10 == 9:
                time.sleep(0.01)
        assert [b.recv(5000) for _ in many] == many

        a.sendto(b"all", ("10.93.1.255", PORT))
        assert (b.recv(100), c.recv(100)) == (b"all", b"all")

    # As it was before.
    with Delay(switch, 0.0):
        pass
    a, b, c = sockets(hosts)
    with a, b, c:
        a.sendto(b"again", (hosts[2].address, PORT))
        assert c.recv(100) == b"again"


@pytest.mark.net
def test_it_ends_with_its_owner(three: tuple[str, list[Host]]) -> None:
    program = "import sys; from tests.support.delay import Delay; made = Delay(sys.argv[1], 0.0).__enter__()"
    program += "; print(made.pid, flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", program, three[0]]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert not ended(pid)
        owner.kill()
        wait_until(lambda: ended(pid), 20)


def ended(pid: int) -> bool:
    """Also where nobody has asked yet how."""
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
