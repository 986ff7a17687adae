"""What an engine's thread waits for: calls of other threads and sockets, whichever comes first."""

import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from exo_cli.shard.inbox import Inbox

Box = Inbox[int, socket.socket]


@pytest.fixture
def inbox() -> Iterator[Box]:
    made: Box = Inbox()
    yield made
    made.close()


def test_calls_come_in_their_order_and_once(inbox: Box) -> None:
    for number in range(5):
        inbox.put(number)
    assert len(inbox) == 5
    assert inbox.wait(None) == ([0, 1, 2, 3, 4], [])
    assert inbox.wait(0) == ([], [])


def test_a_call_wakes_the_one_that_waits(inbox: Box) -> None:
    found: list[int] = []

    def wait() -> None:
        while sum(found) < 500_500:
            found.extend(inbox.wait(20)[0])

    thread = threading.Thread(target=wait)
    thread.start()
    # At every distance to its falling asleep.
    for number in range(1, 1001):
        inbox.put(number)
        if number % 50 == 0:
            time.sleep(0.001)
    thread.join(20)
    assert not thread.is_alive()
    assert found == list(range(1, 1001))


def test_a_socket_that_can_be_read_is_told_until_it_is_read_or_forgotten(inbox: Box) -> None:
    here, there = socket.socketpair()
    inbox.watch(here)
    assert inbox.wait(0) == ([], [])
    there.send(b"news")
    inbox.put(1)
    assert inbox.wait(None) == ([1], [here])
    assert inbox.wait(None) == ([], [here])
    here.recv(10)
    assert inbox.wait(0) == ([], [])
    there.close()
    assert inbox.wait(None) == ([], [here])
    inbox.forget(here)
    assert inbox.wait(0) == ([], [])
    here.close()


def test_a_wait_ends_in_time(inbox: Box) -> None:
    assert inbox.wait(0.001) == ([], [])


def test_nothing_stays_open(inbox: Box) -> None:
    before = len(os.listdir("/dev/fd"))
    other: Box = Inbox()
    other.put(1)
    other.close()
    assert len(os.listdir("/dev/fd")) == before
