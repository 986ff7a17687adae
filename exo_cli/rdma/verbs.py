"""What `ibv_devices` and `ibv_devinfo -v` print, on macOS and on Linux. Pure.

Strict: each port has a state in the verbs library's words and a link layer, or nothing is believed.
"""

import re
from dataclasses import dataclass, field
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final

from exo_cli.rdma.text import Unreadable, lines

STATES: Final = (
    "PORT_NOP", "PORT_DOWN", "PORT_INIT", "PORT_ARMED", "PORT_ACTIVE", "PORT_ACTIVE_DEFER",
)  # fmt: skip
_NO_DEVICE: Final = re.compile(r"^(No (IB|RDMA) devices? found|Failed to get IB devices list.*)\.?$", re.M)


@dataclass(frozen=True, slots=True)
class VerbsPort:
    state: str
    link_layer: str
    rate: str | None
    gids: dict[int, IPv6Address]

    @property
    def is_active(self) -> bool:
        return self.state == "PORT_ACTIVE"

    def mapped(self, index: int) -> IPv4Address | None:
        """The IPv4 address in that GID."""
        gid = self.gids.get(index)
        return gid.ipv4_mapped if gid is not None else None


@dataclass(slots=True)
class VerbsDevice:
    name: str
    transport: str = ""
    limits: dict[str, str] = field(default_factory=dict)
    """`max_qp`, `max_mr` and others, as they are printed."""
    closed: bool = False
    """Whether an empty line ends it: then its GIDs are all there."""
    ports: list[VerbsPort] = field(default_factory=list)


def ibv_devices(data: bytes) -> tuple[str, ...]:
    """The names; none is an answer too."""
    found = lines(data)
    header = [line.split() for line in found[:2]]
    if header[0] != ["device", "node", "GUID"] or len(header) < 2 or set("".join(header[1])) != {"-"}:
        raise Unreadable("it has no header")
    names = []
    for line in found[2:]:
        match = re.fullmatch(r"\s+([A-Za-z0-9_.-]{1,64})\s+([0-9a-f]{16})", line)
        if match is None:
            raise Unreadable("it holds lines that name no device")
        names.append(match[1])
    if len(set(names)) < len(names):
        raise Unreadable("a device is there twice")
    return tuple(names)


def says_no_device(*texts: bytes) -> bool:
    """Whether `ibv_devinfo` said that there is none."""
    return any(_NO_DEVICE.search(text.decode("utf-8", "replace")) for text in texts)


def ibv_devinfo(data: bytes) -> tuple[VerbsDevice, ...]:
    found: list[VerbsDevice] = []
    open_ports: list[dict[str, str]] = []
    for line in [*lines(data), "hca_id:\t"]:
        key, there, value = line.partition(":")
        key, value = key.strip(), value.strip()
        if key == "hca_id":
            if found:
                found[-1].ports = [_port(found[-1].name, fields) for fields in open_ports]
                if not found[-1].ports or not found[-1].transport:
                    raise Unreadable(f"{found[-1].name} has no port")
            found.append(VerbsDevice(value))
            open_ports = []
        elif not found:
            if line:
                raise Unreadable("it holds lines before the first device")
        elif not line:
            found[-1].closed = True
        elif there and key == "transport":
            found[-1].transport = value
        elif there and key == "port" and value.isdecimal():
            open_ports.append({})
        elif there and not open_ports and key.startswith("max_"):
            found[-1].limits[key] = value
        elif there and open_ports:
            if key in open_ports[-1]:
                raise Unreadable(f"{key[:40]} of {found[-1].name} is there twice")
            open_ports[-1][key] = value
    found.pop()
    names = [device.name for device in found]
    if not found or not all(re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name) for name in names):
        raise Unreadable("it names no device")
    if len(set(names)) < len(names):
        raise Unreadable("a device is there twice")
    return tuple(found)


def _port(device: str, fields: dict[str, str]) -> VerbsPort:
    state = re.fullmatch(r"([A-Z_]+) \(([0-9])\)", fields.get("state", ""))
    if state is None or int(state[2]) >= len(STATES) or STATES[int(state[2])] != state[1]:
        raise Unreadable(f"the state of a port of {device} is in no known words")
    if fields.get("link_layer") not in ("Thunderbolt", "InfiniBand", "Ethernet", "Unspecified"):
        raise Unreadable(f"a port of {device} has no link layer")
    gids: dict[int, IPv6Address] = {}
    for key, value in fields.items():
        match = re.fullmatch(r"GID\[\s*([0-9]{1,4})\]", key)
        if match:
            gids[int(match[1])] = _gid(device, value)
    width, speed = (fields.get(name, "").split(" (")[0] for name in ("active_width", "active_speed"))
    rate = f"{width} {speed}".strip()
    return VerbsPort(state[1], fields["link_layer"], rate or None, gids)


def _gid(device: str, text: str) -> IPv6Address:
    try:
        return IPv6Address(text.split(",")[0].strip())
    except AddressValueError:
        raise Unreadable(f"a GID of {device} is no address") from None
