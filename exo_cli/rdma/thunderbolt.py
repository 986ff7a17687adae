"""What is on a Mac's Thunderbolt ports, from `system_profiler SPThunderboltDataType -json`.

Another Mac is an item with a domain UUID of its own; a drive, display or dock has none. Items inside
an item are behind it. Pure. Knows nothing of interfaces or of RDMA.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from exo_cli.rdma.text import Unreadable, decoded

_UUID: Final = re.compile(r"[0-9A-F]{8}(-[0-9A-F]{4}){3}-[0-9A-F]{12}")
_SPEED: Final = re.compile(r"(Up to )?([0-9]{1,4}) Gb/s")
_MAX_DEPTH: Final = 8


@dataclass(frozen=True, slots=True)
class Peer:
    """Another Mac, as this one sees it."""

    name: str
    domain: str
    behind: str | None
    """The hub or dock that it is behind."""


@dataclass(frozen=True, slots=True)
class Port:
    receptacle: str
    domain: str
    gbit_per_s: int | None
    """None where it is not said, or in words that are not known."""
    most: bool
    """Whether that is what the port can do; else it is what is on it that does no more."""
    peers: tuple[Peer, ...]
    devices: tuple[str, ...]
    """What is on it and is no Mac."""


def ports(data: bytes) -> tuple[Port, ...]:
    """All ports, in the order of their numbers."""
    try:
        document = json.loads(decoded(data))
    except (json.JSONDecodeError, RecursionError):
        raise Unreadable("it is no JSON, or is cut off") from None
    buses = document.get("SPThunderboltDataType") if isinstance(document, dict) else None
    if not isinstance(buses, list):
        raise Unreadable("it holds no Thunderbolt report")
    # A bus without a receptacle leads nowhere that a cable could go.
    found = [_port(bus) for bus in buses if isinstance(bus, dict) and "receptacle_1_tag" in bus]
    if not found:
        raise Unreadable("it names no Thunderbolt bus")
    if len({port.domain for port in found}) < len(found):
        raise Unreadable("two buses have one domain UUID")
    if len({port.receptacle for port in found}) < len(found):
        raise Unreadable("two buses have one receptacle")
    return tuple(sorted(found, key=lambda port: (len(port.receptacle), port.receptacle)))


def _port(bus: dict[str, Any]) -> Port:
    tag = bus.get("receptacle_1_tag")
    domain = _text(bus.get("domain_uuid_key")).upper()
    if not isinstance(tag, dict) or not _UUID.fullmatch(domain):
        raise Unreadable("a bus has no receptacle or no domain UUID")
    receptacle = _text(tag.get("receptacle_id_key"))
    if not re.fullmatch(r"[0-9]{1,2}", receptacle):
        raise Unreadable("a receptacle has no number")
    speed = _SPEED.fullmatch(_text(tag.get("current_speed_key")))
    items = list(_items(bus, None, 0))
    if tag.get("receptacle_status_key") == "receptacle_connected" and not items:
        raise Unreadable(f"something is connected to receptacle {receptacle}, and it is not named")
    return Port(
        receptacle=receptacle,
        domain=domain,
        gbit_per_s=int(speed[2]) if speed else None,
        most=bool(speed and speed[1]),
        peers=tuple(item for item in items if isinstance(item, Peer)),
        devices=tuple(item for item in items if isinstance(item, str)),
    )


def _items(holder: dict[str, Any], behind: str | None, depth: int) -> Iterator[Peer | str]:
    items = holder.get("_items", [])
    if not isinstance(items, list) or depth > _MAX_DEPTH:
        raise Unreadable("what is on a port is no list")
    for item in items:
        if not isinstance(item, dict):
            raise Unreadable("what is on a port has no name")
        name = _text(item.get("_name")) or "a device without a name"
        domain = _text(item.get("domain_uuid_key")).upper()
        if domain:
            if not _UUID.fullmatch(domain):
                raise Unreadable("a domain UUID is none")
            yield Peer(name, domain, behind)
        else:
            yield name
        yield from _items(item, name, depth + 1)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
