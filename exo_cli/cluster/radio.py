"""Datagrams out of every interface and in from all of them, counted by interface.

Three sockets a family. `shared` is on the beacon port: other nodes of this machine share it, a
broadcast reaches all of them, a unicast packet any one. `own` is on a port of its own: everything
is sent from there, so that answers come to us alone. `door` is on the node's control port, where
--peer HOST:PORT knocks. An answer leaves by the socket that the question came to, or a translating
router would drop it. Knows nothing of what the datagrams say.
"""

import asyncio
import contextlib
import errno
import os
import socket
import struct
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from exo_cli.cluster import beacon
from exo_cli.cluster.interfaces import Choice, Interface, list_interfaces
from exo_cli.errors import SystemFailure
from exo_cli.schemas.findings import InterfaceCount
from exo_cli.trust.private import is_private

GROUP6: Final = "ff12::6578:6f31"
# The kernel's numbers: Python names these constants only on some platforms and versions.
_PKTINFO4: Final = 26 if sys.platform == "darwin" else 8
_RECV_PKTINFO6: Final = 61 if sys.platform == "darwin" else 49
_PKTINFO6: Final = 46 if sys.platform == "darwin" else 50
_UNICAST: Final = "unicast"


@dataclass(slots=True)
class Count:
    """What happened on one interface."""

    sent: int = 0
    received: int = 0
    accepted: int = 0
    send_errors: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Source:
    """Where a datagram came from."""

    ip: str
    port: int
    interface: str
    arrived: socket.socket | None = None


Taker = Callable[[bytes, Source], str | None]
"""Takes a datagram; returns why it dropped it, or None."""


class Radio:
    """The datagram sockets of one process."""

    def __init__(
        self,
        take: Taker,
        *,
        choice: Choice,
        loopback_only: bool,
        door_port: int,
        private_only: bool = False,
        beacon_port: int = beacon.PORT,
        silent: bool = False,
    ) -> None:
        self._silent = silent
        self._take = take
        self._choice = choice
        self._loopback_only = loopback_only
        self._private_only = private_only
        self._door_port = door_port
        self._beacon_port = beacon_port
        self._own: dict[int, socket.socket] = {}
        self._shared: dict[int, socket.socket] = {}
        self._doors: list[socket.socket] = []
        self._joined: set[int] = set()
        self._closed = False
        self.interfaces: list[Interface] = []
        self.counts: dict[str, Count] = {}
        self.deaf: OSError | None = None
        """Why broadcasts cannot be heard, if the beacon port could not be shared."""

    # -- life ------------------------------------------------------------------------------------

    def open(self) -> None:
        """Bind the sockets and start reading; the event loop must run. A silent one has none."""
        if self._silent:
            return
        families = [socket.AF_INET] if self._loopback_only else [socket.AF_INET, socket.AF_INET6]
        for family in families:
            try:
                self._own[family] = self._bind(family, 0, shared=False)
            except OSError as error:
                if family == socket.AF_INET:
                    raise SystemFailure(
                        f"cannot open a UDP socket: {error.strerror}",
                        hint="exo needs IPv4 to find other nodes.",
                    ) from error
                continue  # a machine without IPv6
            try:
                self._shared[family] = self._bind(family, self._beacon_port, shared=True)
            except OSError as error:
                self.deaf = error
            if self._door_port not in (0, self._beacon_port):
                # Another program may hold the port for UDP; then --peer HOST reaches us, with PORT not.
                with contextlib.suppress(OSError):
                    self._doors.append(self._bind(family, self._door_port, shared=False))
        loop = asyncio.get_running_loop()
        for each in self._all():
            loop.add_reader(each.fileno(), self._read, each)
        self.refresh()

    def _bind(self, family: int, port: int, *, shared: bool) -> socket.socket:
        each = socket.socket(family, socket.SOCK_DGRAM)
        try:
            each.setblocking(False)
            if shared:
                each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if hasattr(socket, "SO_REUSEPORT"):
                    each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET:
                each.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                each.setsockopt(socket.IPPROTO_IP, _PKTINFO4, 1)
                each.bind(("127.0.0.1" if self._loopback_only else "0.0.0.0", port))
            else:
                each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                each.setsockopt(socket.IPPROTO_IPV6, _RECV_PKTINFO6, 1)
                each.bind(("::", port))
        except OSError:
            each.close()
            raise
        return each

    def _all(self) -> list[socket.socket]:
        return [*self._own.values(), *self._shared.values(), *self._doors]

    @property
    def own_port(self) -> int:
        return int(self._own[socket.AF_INET].getsockname()[1]) if self._own else 0

    def refresh(self) -> None:
        """Look which interfaces there are now, and join the group on new ones."""
        if self._silent:
            return
        named_loopback = any(self._choice.allows(name) for name in ("lo", "lo0")) and bool(self._choice.only)
        self.interfaces = [] if self._loopback_only else list_interfaces(self._choice)
        if self._loopback_only or named_loopback:
            self.interfaces += list_interfaces(Choice(), loopback=True)
        shared = self._shared.get(socket.AF_INET6)
        for interface in self.interfaces:
            self.counts.setdefault(interface.name, Count())
            if shared is None or not interface.multicast6 or interface.index in self._joined:
                continue
            request = socket.inet_pton(socket.AF_INET6, GROUP6) + struct.pack("@I", interface.index)
            with contextlib.suppress(OSError):
                shared.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)
                self._joined.add(interface.index)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        loop = asyncio.get_running_loop()
        for each in self._all():
            loop.remove_reader(each.fileno())
            each.close()

    # -- out -------------------------------------------------------------------------------------

    def broadcast(self, make: Callable[[], list[bytes]]) -> None:
        """Send what `make` returns out of every interface; it is called anew for each way out."""
        for interface in self.interfaces:
            for broadcast in interface.broadcasts:
                if self._private_only and not is_private(broadcast.ip):
                    continue
                info = struct.pack("@I4s4s", interface.index, socket.inet_aton(broadcast.ip), bytes(4))
                for data in make():
                    self._send(
                        socket.AF_INET,
                        data,
                        (broadcast.to, self._beacon_port),
                        interface.name,
                        (_PKTINFO4, info),
                    )
            if interface.multicast6 and socket.AF_INET6 in self._own:
                for data in make():
                    to = (GROUP6, self._beacon_port, 0, interface.index)
                    self._send(socket.AF_INET6, data, to, interface.name)
            if interface.kind == "loopback":
                for data in make():
                    self._send(socket.AF_INET, data, ("127.0.0.1", self._beacon_port), interface.name)

    def send(self, data: bytes, ip: str, port: int) -> bool:
        """Send to one address; False where the system refused."""
        plain, _, scope = ip.partition("%")
        try:
            socket.inet_pton(socket.AF_INET6 if ":" in plain else socket.AF_INET, plain)
        except OSError:  # a name: looking it up would block, and ask others
            return False
        if ":" not in plain:
            return self._send(socket.AF_INET, data, (plain, port), _UNICAST)
        try:
            index = socket.if_nametoindex(scope) if scope else 0
        except OSError:
            return False
        return self._send(socket.AF_INET6, data, (plain, port, 0, index), _UNICAST)

    def reply(self, data: bytes, source: Source) -> bool:
        """Answer by the way the question came."""
        if source.arrived is None or source.arrived.family not in self._own:
            return self.send(data, source.ip, source.port)
        plain, _, scope = source.ip.partition("%")
        to: tuple[str, int] | tuple[str, int, int, int] = (plain, source.port)
        if source.arrived.family == socket.AF_INET6:
            try:
                to = (plain, source.port, 0, socket.if_nametoindex(scope) if scope else 0)
            except OSError:
                return False
        return self._send(source.arrived.family, data, to, source.interface, by=source.arrived)

    def _send(
        self,
        family: int,
        data: bytes,
        to: tuple[str, int] | tuple[str, int, int, int],
        name: str,
        info: tuple[int, bytes] | None = None,
        by: socket.socket | None = None,
    ) -> bool:
        count = self.counts.setdefault(name, Count())
        own = by or self._own.get(family)
        if own is None or self._closed:
            return False
        ancillary = [(socket.IPPROTO_IP, info[0], info[1])] if info and sys.platform == "linux" else []
        try:
            own.sendmsg([data], ancillary, 0, to)
        except (OSError, OverflowError) as error:  # a port above 65535 overflows
            number = error.errno if isinstance(error, OSError) else errno.EINVAL
            count.send_errors[errno.errorcode.get(number or 0, str(error))] += 1
            return False
        count.sent += 1
        return True

    # -- in --------------------------------------------------------------------------------------

    def _read(self, each: socket.socket) -> None:
        # A flood must not keep the loop from everything else: a few at a time.
        for _ in range(32):
            try:
                data, ancillary, _, sender = each.recvmsg(2048, 128)
            except BlockingIOError:
                return
            except OSError as error:
                # An ICMP answer to something we sent; the next datagram is not concerned.
                self.counts.setdefault(_UNICAST, Count()).send_errors[
                    errno.errorcode.get(error.errno or 0, str(error))
                ] += 1
                continue
            if self._closed:
                return
            name = _arrived_at(ancillary)
            if not self._wanted(name):
                continue
            ip = sender[0].split("%")[0]
            if ip.startswith("fe80:"):
                ip = f"{ip}%{name}"
            count = self.counts.setdefault(name, Count())
            count.received += 1
            reason = self._take(data, Source(ip, sender[1], name, each))
            if reason is None:
                count.accepted += 1
            else:
                count.dropped[reason] += 1

    def _wanted(self, name: str) -> bool:
        return name in ("lo", "lo0") or self._choice.allows(name)

    def report(self) -> tuple[InterfaceCount, ...]:
        """The counters of this run."""
        known = {interface.name: interface for interface in self.interfaces}
        rows = []
        for name, count in sorted(self.counts.items(), key=lambda item: (item[0] == _UNICAST, item[0])):
            interface = known.get(name)
            rows.append(
                InterfaceCount(
                    interface=name,
                    kind=interface.kind if interface else "unknown",
                    addresses=interface.ips if interface else (),
                    sent=count.sent,
                    send_errors=dict(count.send_errors),
                    received=count.received,
                    accepted=count.accepted,
                    dropped=dict(count.dropped),
                )
            )
        return tuple(rows)


def _arrived_at(ancillary: list[tuple[int, int, bytes]]) -> str:
    for level, kind, data in ancillary:
        index = 0
        if level == socket.IPPROTO_IP and kind == _PKTINFO4 and len(data) >= 4:
            (index,) = struct.unpack_from("@I", data)
        elif level == socket.IPPROTO_IPV6 and kind == _PKTINFO6 and len(data) >= 20:
            (index,) = struct.unpack_from("@I", data, 16)
        if index:
            with contextlib.suppress(OSError):
                return socket.if_indextoname(index)
    return "unknown"


def new_instance() -> bytes:
    """Names one run of one process in its packets."""
    return os.urandom(8)
