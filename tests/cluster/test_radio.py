"""The datagram sockets, on loopback and with real packets."""

import asyncio
import errno
import socket
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from exo_cli.cluster import radio as module
from exo_cli.cluster.interfaces import Broadcast, Choice, Interface
from exo_cli.cluster.radio import Radio, Source, new_instance
from exo_cli.errors import SystemFailure
from tests.support.beacons import free_udp_port, in_a_loop, until

LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


class Ears:
    """Takes datagrams; drops those that begin with `-`."""

    def __init__(self) -> None:
        self.heard: list[tuple[bytes, Source]] = []

    def take(self, data: bytes, source: Source) -> str | None:
        self.heard.append((data, source))
        return "size" if data.startswith(b"-") else None


@asynccontextmanager
async def on_air(
    ears: Ears, beacon_port: int, *, door_port: int = 0, choice: Choice | None = None, local: bool = True
) -> AsyncIterator[Radio]:
    radio = Radio(
        ears.take,
        choice=choice or Choice(only=(LOOPBACK,)),
        loopback_only=local,
        door_port=door_port,
        beacon_port=beacon_port,
    )
    radio.open()
    try:
        yield radio
    finally:
        radio.close()


@in_a_loop
async def test_a_packet_arrives_with_its_source_and_is_counted() -> None:
    port, ears = free_udp_port(), Ears()
    async with on_air(Ears(), port) as one, on_air(ears, port) as other:
        assert one.own_port != other.own_port
        assert one.send(b"hello", "127.0.0.1", other.own_port)
        assert one.send(b"-bad", "127.0.0.1", other.own_port)
        await until(lambda: len(ears.heard) == 2)
        data, source = ears.heard[0]
        assert (data, source.ip, source.port, source.interface) == (
            b"hello",
            "127.0.0.1",
            one.own_port,
            LOOPBACK,
        )
        (count,) = (each for each in other.report() if each.interface == LOOPBACK)
        assert (count.received, count.accepted, count.dropped) == (2, 1, {"size": 1})
        assert count.kind == "loopback"
        (sent,) = (each for each in one.report() if each.interface == "unicast")
        assert (sent.sent, sent.send_errors) == (2, {})


@in_a_loop
async def test_the_beacon_port_is_shared_and_the_own_port_is_not() -> None:
    port, ears = free_udp_port(), [Ears(), Ears()]
    async with on_air(ears[0], port) as one, on_air(ears[1], port) as other, on_air(Ears(), port) as third:
        assert one.deaf is None
        assert other.deaf is None
        assert third.send(b"either", "127.0.0.1", port)
        assert third.send(b"one", "127.0.0.1", one.own_port)
        await until(lambda: sum(len(each.heard) for each in ears) >= 1 and ears[0].heard)
        assert b"one" in [data for data, _ in ears[0].heard]
        assert b"one" not in [data for data, _ in ears[1].heard]


@in_a_loop
async def test_an_answer_leaves_by_the_door_that_the_question_came_to() -> None:
    port, door, ears = free_udp_port(), free_udp_port(), Ears()
    async with on_air(ears, port, door_port=door) as radio:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
            asker.settimeout(10)
            asker.bind(("127.0.0.1", 0))
            for where in (door, port, radio.own_port):
                asker.sendto(b"who", ("127.0.0.1", where))
                await until(lambda: ears.heard)
                assert radio.reply(b"me", ears.heard.pop()[1])
                assert asker.recvfrom(100) == (b"me", ("127.0.0.1", where))


@in_a_loop
async def test_a_door_that_is_taken_leaves_the_rest_open() -> None:
    port, ears = free_udp_port(), Ears()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind(("127.0.0.1", 0))
        async with on_air(ears, port, door_port=holder.getsockname()[1]) as radio:
            assert radio.deaf is None
            radio.send(b"x", "127.0.0.1", port)
            await until(lambda: ears.heard)


@in_a_loop
async def test_a_beacon_port_that_another_program_holds_makes_deaf_not_dead() -> None:
    ears = Ears()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind(("127.0.0.1", 0))
        async with on_air(ears, holder.getsockname()[1], door_port=free_udp_port()) as radio:
            assert radio.deaf is not None
            assert radio.deaf.errno == errno.EADDRINUSE
            radio.send(b"x", "127.0.0.1", radio.own_port)
            await until(lambda: ears.heard)


@in_a_loop
async def test_what_the_system_refuses_to_send_is_counted_and_survived() -> None:
    async with on_air(Ears(), free_udp_port()) as radio:
        for ip, port in (
            ("127.0.0.1", 0),
            ("127.0.0.1", 65536),
            ("::1", 9),  # no IPv6 socket here
            ("fe80::1%nowhere", 9),
            ("localhost", 9),  # nobody looks up names here
            ("127.1", 9),
        ):
            assert not radio.send(b"x", ip, port)
        radio.close()
        assert not radio.send(b"x", "127.0.0.1", 9)
        radio.close()
        (count,) = (each for each in radio.report() if each.interface == "unicast")
        assert count.sent == 0
        assert sum(count.send_errors.values()) == 2, count.send_errors


@in_a_loop
async def test_a_flood_does_not_keep_the_loop_from_other_work() -> None:
    port, ears = free_udp_port(), Ears()
    async with on_air(ears, port) as radio:
        sent = sum(radio.send(b"%d" % number, "127.0.0.1", port) for number in range(100))
        turns = 0
        async with asyncio.timeout(10):
            while len(ears.heard) < sent:
                before = len(ears.heard)
                await asyncio.sleep(0)
                turns += 1
                assert len(ears.heard) - before <= 32
        assert [data for data, _ in ears.heard] == [b"%d" % number for number in range(sent)]


@in_a_loop
async def test_an_oversize_packet_is_cut_not_kept() -> None:
    port, ears = free_udp_port(), Ears()
    async with on_air(ears, port) as radio:
        assert radio.send(b"x" * 60_000, "127.0.0.1", port)
        assert radio.send(b"", "127.0.0.1", port)
        await until(lambda: len(ears.heard) == 2)
        assert [len(data) for data, _ in ears.heard] == [2048, 0]


@in_a_loop
async def test_loopback_is_spoken_on_when_it_was_named() -> None:
    port, ears = free_udp_port(), Ears()
    for local in (True, False):
        async with on_air(Ears(), port, local=local) as radio:
            assert [each.kind for each in radio.interfaces] == ["loopback"]
    async with on_air(ears, port) as radio:
        radio.broadcast(lambda: [b"one", b"two"])
        await until(lambda: len(ears.heard) == 2)
        assert [data for data, _ in ears.heard] == [b"one", b"two"]


@in_a_loop
async def test_an_interface_that_was_not_chosen_is_not_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    port, ears = free_udp_port(), Ears()
    monkeypatch.setattr(module, "_arrived_at", lambda ancillary: "eth7")
    async with on_air(ears, port, choice=Choice(only=(LOOPBACK,))) as radio:
        radio.send(b"x", "127.0.0.1", radio.own_port)
        await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        assert ears.heard == []
        assert not any(each.interface == "eth7" for each in radio.report())


@pytest.mark.parametrize("private_only", [False, True])
def test_insecure_speaks_from_private_addresses_only(
    monkeypatch: pytest.MonkeyPatch, private_only: bool
) -> None:
    radio = Radio(
        lambda data, source: None,
        choice=Choice(),
        loopback_only=False,
        private_only=private_only,
        door_port=0,
        beacon_port=9,
    )
    broadcasts = (Broadcast("203.0.113.9", "203.0.113.255"), Broadcast("10.0.0.9", "10.0.0.255"))
    radio.interfaces = [Interface("eth0", "ethernet", 2, broadcasts, (), False)]
    sent: list[str] = []
    monkeypatch.setattr(radio, "_send", lambda family, data, to, *rest: sent.append(to[0]))
    radio.broadcast(lambda: [b"x"])
    assert sent == (["10.0.0.255"] if private_only else ["203.0.113.255", "10.0.0.255"])


def test_each_way_out_gets_a_packet_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    radio = Radio(lambda data, source: None, choice=Choice(), loopback_only=False, door_port=0, beacon_port=9)
    radio._own = {socket.AF_INET6: None}  # type: ignore[dict-item]
    radio.interfaces = [
        Interface("eth0", "ethernet", 2, (Broadcast("10.0.0.9", "10.0.0.255"),), (), True),
        Interface("wl0", "wifi", 3, (Broadcast("10.1.0.9", "10.1.0.255"),), (), False),
    ]
    sent: list[tuple[bytes, Any, str, Any]] = []

    def note(family: int, data: bytes, to: Any, name: str, info: Any = None) -> bool:
        sent.append((data, to, name, info))
        return True

    monkeypatch.setattr(radio, "_send", note)
    numbers = iter(range(9))
    radio.broadcast(lambda: [b"%d" % next(numbers)])
    assert [(data, to[0], name) for data, to, name, _ in sent] == [
        (b"0", "10.0.0.255", "eth0"),
        (b"1", module.GROUP6, "eth0"),
        (b"2", "10.1.0.255", "wl0"),
    ]
    # It leaves by that interface, from that address, whatever the routes say.
    assert sent[2][3][1] == struct.pack("@I4s4s", 3, socket.inet_aton("10.1.0.9"), bytes(4))


@in_a_loop
async def test_without_a_udp_socket_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Radio, "_bind", refuse)
    with pytest.raises(SystemFailure, match="cannot open a UDP socket: Too many open files"):
        Radio(lambda data, source: None, choice=Choice(), loopback_only=True, door_port=0).open()


def test_instances_are_different() -> None:
    assert len({new_instance() for _ in range(100)}) == 100
