"""Keys and packets for tests of the beacon protocol."""

import asyncio
import ctypes
import functools
import socket
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, ParamSpec, cast

from exo_cli.cluster.beacon import Kind, Packet
from exo_cli.trust.keyring import ClusterKey, Keyring, KeyringSource
from exo_cli.trust.keyring import Kind as RingKind

P = ParamSpec("P")
_NEW_NETWORK = 0x40000000

KEY = ClusterKey(bytes(range(32)))
OTHER = ClusterKey(bytes(range(1, 33)))
FOREIGN = ClusterKey(bytes(32))
RING = Keyring("cluster", (KEY,))

PLAIN = Packet(Kind.BEACON, b"n" * 16, b"i" * 8, boot=1, seq=1, port=52416, name="studio")


def packet(kind: Kind = Kind.BEACON, **other: Any) -> Packet:
    """A plain packet; `other` sets any field."""
    return replace(PLAIN, kind=kind, **other)


class FixedKeys:
    """A keyring that a test sets, in the place of the one that follows the files."""

    problem = None

    def __init__(self, kind: RingKind, *keys: ClusterKey) -> None:
        self.ring = Keyring(kind, keys)

    def current(self) -> Keyring:
        return self.ring


def local_source(*keys: ClusterKey) -> KeyringSource:
    """Keys that serve this machine only: nothing leaves it."""
    return cast(KeyringSource, FixedKeys("local", *(keys or (KEY,))))


def free_udp_port() -> int:
    """A port for the beacons of one test, so that tests do not hear each other."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def in_a_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """A test that needs an event loop; it may take half a minute."""

    @functools.wraps(test)
    def run(*arguments: P.args, **options: P.kwargs) -> None:
        asyncio.run(asyncio.wait_for(test(*arguments, **options), 30))

    return run


async def until(true: Callable[[], Any], seconds: float = 10) -> None:
    """Wait for something that packets bring about."""
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110 - what happens is elsewhere
            await asyncio.sleep(0.005)


def udp_socket_in(namespace: str, ip: str, port: int) -> socket.socket:
    """A UDP socket of this process in another network namespace (root, Linux)."""
    made: list[socket.socket] = []

    def make() -> None:
        with open(f"/var/run/netns/{namespace}") as there:
            if ctypes.CDLL(None, use_errno=True).setns(there.fileno(), _NEW_NETWORK) != 0:
                raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
        each = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        each.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        each.bind((ip, port))
        made.append(each)

    # A namespace is a thread's; the socket stays in it wherever it is used from.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(make).result()
    return made[0]
