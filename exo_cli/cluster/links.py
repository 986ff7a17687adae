"""The ways from this node to another: which addresses lead there, and which of them is best.

Runs inside a node. Knows nothing of who asked or where the figure is written.
"""

import asyncio
import ipaddress
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

import grpc.aio

from exo_cli.cluster.interfaces import Interface
from exo_cli.cluster.measure import Busy, Sample, Turnstile, measure
from exo_cli.errors import ExoError, Unavailable
from exo_cli.schemas.topology import InterfaceKind
from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire.channels import dial

DIAL_TIMEOUT_S = 1.5
MAX_ADDRESSES = 6
MEASURED_ADDRESSES = 3
# A way that is a tenth slower but answers sooner is the better one.
NEARLY = 0.9


@dataclass(frozen=True, slots=True)
class Way:
    """A measured way to a node."""

    address: str
    interface: str | None
    kind: InterfaceKind | None
    sample: Sample


@dataclass(frozen=True, slots=True)
class Kept:
    """A figure and when it was made, by this process's clock."""

    way: Way
    at_s: float


def best(ways: Sequence[Way]) -> Way:
    """The fastest; among nearly equal ones the one with the shortest round trip."""
    fastest = max(way.sample.bytes_per_s for way in ways)
    near = [way for way in ways if way.sample.bytes_per_s >= fastest * NEARLY]
    return min(near, key=lambda way: (way.sample.rtt_us_p50, -way.sample.bytes_per_s, way.address))


def way_out(ip: str, interfaces: Sequence[Interface]) -> Interface | None:
    """The interface that packets to `ip` leave by, as the routing table says; nothing is sent."""
    plain, _, scope = ip.partition("%")
    if scope:
        return next((interface for interface in interfaces if interface.name == scope), None)
    family = socket.AF_INET6 if ":" in plain else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((plain, 9))
            local = str(probe.getsockname()[0])
        except OSError:
            return None
    return next((interface for interface in interfaces if local in interface.ips), None)


class LinkMeter:
    """Measures the ways from this node, one at a time, and remembers the figures."""

    def __init__(self, source: KeyringSource, turnstile: Turnstile, node_id: str) -> None:
        self._source = source
        self._turnstile = turnstile
        self._node_id = node_id
        self._kept: dict[str, Kept] = {}

    async def way_to(
        self,
        node_id: str,
        addresses: Sequence[tuple[str, int]],
        interfaces: Sequence[Interface],
        *,
        max_age_s: float,
    ) -> Kept:
        """The best way to a node. Raises Busy while either side is."""
        kept = self._kept.get(node_id)
        if kept is not None and time.monotonic() - kept.at_s <= max_age_s:
            return kept
        with self._turnstile() as free:
            if not free:
                raise Busy("this node is busy", hint="Try again when its requests are done.")
            way = await self._measure(node_id, addresses[:MAX_ADDRESSES], interfaces)
        kept = self._kept[node_id] = Kept(way, time.monotonic())
        if len(self._kept) > 1024:
            del self._kept[next(iter(self._kept))]
        return kept

    async def _measure(
        self, node_id: str, addresses: Sequence[tuple[str, int]], interfaces: Sequence[Interface]
    ) -> Way:
        if not addresses:
            raise Unavailable("no address of the node is known")
        dialled = await asyncio.gather(*(self._dial(*address) for address in addresses))
        failures = [each for each in dialled if isinstance(each, ExoError)]
        channels = [
            (ip, each)
            for (ip, _), each in zip(addresses, dialled, strict=True)
            if not isinstance(each, ExoError)
        ]
        ways: list[Way] = []
        try:
            for ip, channel in channels:
                if len(ways) == MEASURED_ADDRESSES:
                    break
                try:
                    sample = await measure(channel, expected_node_id=node_id, claim=node_id != self._node_id)
                except Busy:
                    if not ways:
                        raise
                except ExoError as failure:
                    failures.append(failure)
                else:
                    out = way_out(ip, interfaces)
                    ways.append(Way(ip, out.name if out else None, _kind(ip, out), sample))
        finally:
            for _, channel in channels:
                await channel.close()
        if ways:
            return best(ways)
        # Somebody who answers with the wrong thing tells more than an address where nobody does.
        raise min(failures, key=lambda failure: isinstance(failure, Unavailable))

    async def _dial(self, ip: str, port: int) -> grpc.aio.Channel | ExoError:
        try:
            return await dial(ip, port, self._source.current(), timeout_s=DIAL_TIMEOUT_S)
        except ExoError as failure:
            return failure


def _kind(ip: str, out: Interface | None) -> InterfaceKind | None:
    if ipaddress.ip_address(ip.partition("%")[0]).is_loopback:
        return "loopback"
    return out.kind if out else None
