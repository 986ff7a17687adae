"""Messages over one TLS connection, on real sockets: whole or not at all, in order, within bounds."""

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exo_cli.errors import BadData
from exo_cli.trust.authority import Leaf, issue_leaf
from exo_cli.trust.keyring import ClusterKey, KeyringSource
from exo_cli.wire import pipe as subject
from exo_cli.wire.channels import MAX_MESSAGE_BYTES
from exo_cli.wire.pipe import Pipe, PipeEnded, secured, tuned
from exo_cli.wire.tls import client_context, server_context

KEY = ClusterKey(bytes(range(32)))
OTHER = ClusterKey(bytes(range(1, 33)))


def leaf(key: ClusterKey = KEY) -> Leaf:
    return issue_leaf(key)


async def shake(left: socket.socket, right: socket.socket, client: Leaf, *server: Leaf) -> tuple[Pipe, Pipe]:
    """Both ends of a connection after its handshake."""
    ends = await asyncio.gather(
        secured(tuned(left), client_context(client), name=client.name),
        secured(tuned(right), server_context(server)),
        return_exceptions=True,
    )
    for end in ends:
        if isinstance(end, BaseException):
            raise end
    return ends[0], ends[1]  # type: ignore[return-value]


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Pipe, Pipe]]:
    left, right = socket.socketpair()
    one, other = await shake(left, right, leaf(), leaf())
    try:
        yield one, other
    finally:
        one.close()
        other.close()


def run(main: Callable[[Pipe, Pipe], Any]) -> None:
    async def begin() -> None:
        async with pair() as (one, other):
            await main(one, other)

    asyncio.run(asyncio.wait_for(begin(), 30))


async def received(pipe: Pipe, n: int, sender: Pipe | None = None) -> list[bytes]:
    """The next `n` messages; the sender's rest goes out meanwhile."""
    found: list[bytes] = []
    while len(found) < n:
        if sender is not None:
            sender.flush()
        found += pipe.receive()
        await asyncio.sleep(0)
    return found


@settings(max_examples=30, deadline=None)
@given(st.lists(st.binary(max_size=70_000), min_size=1, max_size=8))
def test_what_is_sent_arrives_whole_and_in_order(messages: list[bytes]) -> None:
    async def main(one: Pipe, other: Pipe) -> None:
        for message in messages:
            one.send(message)
            other.send(message[::-1])
        assert await received(other, len(messages), one) == messages
        assert await received(one, len(messages), other) == [message[::-1] for message in messages]

    run(main)


def test_what_the_other_side_does_not_take_waits_and_somebody_is_told() -> None:
    async def main(one: Pipe, other: Pipe) -> None:
        told: list[Pipe] = []
        one.on_waiting = told.append
        large = os.urandom(4_000_000)
        one.send(large)
        assert told == [one]
        one.send(b"after it")
        assert told == [one]
        assert one.waiting_bytes > 3_000_000
        assert not one.flush()
        assert await received(other, 2, one) == [large, b"after it"]
        assert one.flush()
        assert one.waiting_bytes == 0

    run(main)


def test_a_message_that_is_too_large_ends_the_stream_before_it_is_there() -> None:
    async def main(one: Pipe, other: Pipe) -> None:
        one.send(b"fine")
        one._tls.write(struct.pack("!I", MAX_MESSAGE_BYTES + 1) + b"x")
        one._give(one._outgoing.read())
        # What was said before it counts; a length of its own allocates nothing.
        assert await received(other, 1) == [b"fine"]
        with pytest.raises(PipeEnded, match=f"{MAX_MESSAGE_BYTES + 1} bytes"):
            await received(other, 1)

    run(main)


def test_the_largest_message_arrives() -> None:
    async def main(one: Pipe, other: Pipe) -> None:
        one.send(bytes(MAX_MESSAGE_BYTES))
        (found,) = await received(other, 1, one)
        assert len(found) == MAX_MESSAGE_BYTES

    run(main)


def test_the_end_of_the_other_side_is_told_after_what_it_said() -> None:
    async def main(one: Pipe, other: Pipe) -> None:
        one.send(b"last words")
        one.receive()  # a socket that is closed with something unread is reset
        one.close()
        assert await received(other, 1) == [b"last words"]
        for _ in range(2):
            with pytest.raises(PipeEnded, match="ended the stream"):
                await received(other, 1)
        # Nobody who still speaks is harmed.
        other.send(b"are you there?")
        other.flush()

    run(main)


def test_half_a_message_is_none() -> None:
    async def main(one: Pipe, other: Pipe) -> None:
        one._tls.write(struct.pack("!I", 10) + b"half")
        one._give(one._outgoing.read())
        one.close()
        with pytest.raises(PipeEnded):
            await received(other, 1)

    run(main)


def test_bytes_that_are_no_tls_end_the_stream() -> None:
    async def main(one: Pipe, other: Pipe) -> None:
        one._sock.send(b"GET / HTTP/1.1\r\n\r\n" * 3)
        with pytest.raises(PipeEnded, match="what is no message"):
            await received(other, 1)

    run(main)


def test_a_flipped_bit_ends_the_stream() -> None:
    async def main(one: Pipe, other: Pipe) -> None:
        one._tls.write(struct.pack("!I", 5) + b"hello")
        sealed = bytearray(one._outgoing.read())
        sealed[len(sealed) // 2] ^= 1
        one._give(bytes(sealed))
        with pytest.raises(PipeEnded):
            await received(other, 1)

    run(main)


def test_the_first_words_may_come_with_the_end_of_the_handshake() -> None:
    async def main(one: Pipe, other: Pipe) -> None:
        one.send(b"greeting")
        one.send(b"and more")
        assert await other.next() == b"greeting"
        # It came along, and the socket will not tell of it.
        assert other.receive() == [b"and more"]

    run(main)


def test_who_answers_somebody_that_speaks_no_tls_any_more_is_not_harmed() -> None:
    async def main(one: Pipe, other: Pipe) -> None:
        one.send(b"a question")
        one._sock.send(b"\x17\x03\x03\x00\x20" + bytes(32))
        while not other.has_more:
            assert other.receive() in ([], [b"a question"])
        other.send(b"an answer")
        with pytest.raises(PipeEnded, match="what is no message"):
            other.receive()

    run(main)


def test_what_is_soaked_up_is_received_in_its_order() -> None:
    messages = [os.urandom(1000 * number) for number in range(1, 80)]

    async def main(one: Pipe, other: Pipe) -> None:
        found: list[bytes] = []
        other.let_soak(True)
        for number, message in enumerate(messages):
            one.send(message)
            if number % 3:
                while not one.flush() or number % 2:
                    assert other.soak()
                    number += 1
            else:
                found += other.receive()
        other.let_soak(False)
        while len(found) < len(messages):
            one.flush()
            found += other.receive()
        assert found == messages
        assert not other.has_more

    run(main)


def test_what_is_soaked_up_is_bounded_and_only_while_that_is_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subject, "_TURN_BYTES", 1_000_000)

    async def main(one: Pipe, other: Pipe) -> None:
        one.send(bytes(5_000_000))
        assert not other.soak()
        assert not other.has_more
        other.let_soak(True)
        while other.soak():
            one.flush()
        assert 1_000_000 <= other._soaked_bytes < 1_000_000 + subject._CHUNK_BYTES
        assert await received(other, 1, one) == [bytes(5_000_000)]
        one.receive()  # a socket that is closed with something unread is reset
        one.close()
        # The end is found by who receives.
        while other.soak():
            pass
        with pytest.raises(PipeEnded, match="ended the stream"):
            await received(other, 1)

    run(main)


def test_so_many_messages_are_read_in_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "_CHUNK_BYTES", 1000)
    monkeypatch.setattr(subject, "_TURN_MESSAGES", 10)

    async def main(one: Pipe, other: Pipe) -> None:
        for number in range(500):
            one.send(b"%d" % number)
        found = other.receive()
        assert 10 <= len(found) < 100
        found += await received(other, 500 - len(found), one)
        assert found == [b"%d" % number for number in range(500)]

    run(main)


@pytest.mark.parametrize("whose", ["the client's", "the server's"])
def test_a_stranger_is_not_let_in(whose: str) -> None:
    async def main() -> None:
        left, right = socket.socketpair()
        mine, theirs = (OTHER, KEY) if whose == "the client's" else (KEY, OTHER)
        with pytest.raises(PipeEnded):
            await shake(left, right, leaf(mine), leaf(theirs))
        left.close()
        right.close()

    asyncio.run(asyncio.wait_for(main(), 30))


def test_a_client_without_a_certificate_is_not_let_in() -> None:
    async def main() -> None:
        left, right = socket.socketpair()
        context = client_context(leaf())
        bare = type(context)(context.protocol)
        bare.load_verify_locations(cadata=leaf().authority_pem.decode())
        ends = await asyncio.gather(
            secured(tuned(left), bare, name=leaf().name),
            secured(tuned(right), server_context([leaf()])),
            return_exceptions=True,
        )
        assert isinstance(ends[1], PipeEnded)
        assert "not of this cluster" in ends[1].message
        left.close()
        right.close()

    asyncio.run(asyncio.wait_for(main(), 30))


@pytest.mark.parametrize("key", [KEY, OTHER])
def test_in_a_rotation_both_keys_are_known(key: ClusterKey) -> None:
    async def main() -> None:
        left, right = socket.socketpair()
        one, other = await shake(left, right, leaf(key), leaf(KEY), leaf(OTHER))
        one.send(b"hello")
        assert await other.next() == b"hello"
        one.close()
        other.close()

    asyncio.run(asyncio.wait_for(main(), 30))


def test_who_does_not_greet_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "HANDSHAKE_S", 0.05)

    async def main() -> None:
        left, right = socket.socketpair()
        with pytest.raises(PipeEnded, match="did not greet"):
            await secured(tuned(left), client_context(leaf()), name=leaf().name)
        left.close()
        right.close()

    asyncio.run(asyncio.wait_for(main(), 30))


def test_a_key_leaves_nothing_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "place"
    place.mkdir()
    for name in ("TMPDIR", "HOME"):
        monkeypatch.setenv(name, str(place))
    before = len(os.listdir("/dev/fd"))
    made = leaf()
    client_context(made)
    server_context([made, leaf(OTHER)])
    assert list(place.iterdir()) == []
    assert len(os.listdir("/dev/fd")) == before


def test_what_a_length_may_be() -> None:
    assert subject._length(struct.pack("!I", MAX_MESSAGE_BYTES)) == MAX_MESSAGE_BYTES
    with pytest.raises(BadData):
        subject._length(struct.pack("!I", MAX_MESSAGE_BYTES + 1))


def test_a_keyless_machine_has_a_leaf_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))

    async def main() -> None:
        left, right = socket.socketpair()
        mine = issue_leaf(KeyringSource().current().primary)
        one, other = await shake(left, right, mine, mine)
        other.send(b"hello")
        assert await one.next() == b"hello"
        one.close()
        other.close()

    asyncio.run(asyncio.wait_for(main(), 30))
