"""What the tools of macOS print about the system, as data; whatever else they print is `Unreadable`.

Pure, and strict where a guess could become a diagnosis: unknown fields are skipped, unknown words in
known fields are not. Knows nothing of Thunderbolt's own report, nor of the verbs tools.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv4Interface, IPv4Network, NetmaskValueError
from typing import Final

from exo_cli.rdma.text import Unreadable, lines


@dataclass(frozen=True, slots=True)
class System:
    version: tuple[int, ...]
    build: str

    @property
    def text(self) -> str:
        return "macOS " + ".".join(map(str, self.version))


@dataclass(frozen=True, slots=True)
class Hardware:
    chip: str | None
    model: str | None
    ram_bytes: int | None
    arm64: bool | None
    wired_limit_mb: int | None


@dataclass(frozen=True, slots=True)
class NetworkInterface:
    name: str
    up: bool
    active: bool | None
    """What `status:` says; None where there is no such line."""
    addresses: tuple[IPv4Interface, ...]
    members: tuple[str, ...]

    @property
    def is_bridging(self) -> bool:
        """Whether it is a bridge that is on; without a `status:` line, being up decides."""
        return bool(self.members) and self.up and self.active is not False


@dataclass(frozen=True, slots=True)
class Route:
    network: IPv4Network
    interface: str


def sw_vers(data: bytes) -> System:
    fields = _fields(lines(data), ":")
    version, build = fields.get("ProductVersion", ""), fields.get("BuildVersion", "")
    if fields.get("ProductName") not in ("macOS", "Mac OS X"):
        raise Unreadable("it names no macOS")
    if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,3}){0,3}", version):
        raise Unreadable("it holds no version")
    if not re.fullmatch(r"[0-9]{1,3}[A-Z][0-9]{1,5}[a-z]?", build):
        raise Unreadable("it holds no build")
    return System(tuple(map(int, version.split("."))), build)


def sysctl(data: bytes) -> Hardware:
    fields = _fields(lines(data), ":")
    if not any(name in fields for name in ("machdep.cpu.brand_string", "hw.model", "hw.memsize")):
        raise Unreadable("it holds none of the values asked for")
    arm64 = fields.get("hw.optional.arm64")
    if arm64 not in (None, "0", "1"):
        raise Unreadable("hw.optional.arm64 is neither 0 nor 1")
    return Hardware(
        chip=fields.get("machdep.cpu.brand_string"),
        model=fields.get("hw.model"),
        ram_bytes=_number(fields.get("hw.memsize")),
        arm64=None if arm64 is None else arm64 == "1",
        wired_limit_mb=_number(fields.get("iogpu.wired_limit_mb")),
    )


def rdma_ctl(data: bytes) -> bool:
    """Whether RDMA is enabled."""
    found = [line for line in lines(data) if line]
    match = re.fullmatch(r"(?:rdma(?: is| status)?:? )?(enabled|disabled)\.?", found[0].strip().lower())
    if match is None or len(found) != 1:
        raise Unreadable("it says neither enabled nor disabled")
    return match[1] == "enabled"


def hardware_ports(data: bytes) -> dict[str, str]:
    """Hardware port -> device: `Thunderbolt 1` -> `en2`."""
    found: dict[str, str] = {}
    port: str | None = None
    for line in lines(data):
        key, _, value = line.partition(":")
        if key == "Hardware Port":
            if port is not None:
                raise Unreadable(f"{port} has no device")
            port = value.strip()
        elif key == "Device" and port is not None:
            if not re.fullmatch(r"[A-Za-z0-9._-]{1,32}", value.strip()):
                raise Unreadable(f"the device of {port} is no name")
            if port in found or value.strip() in found.values():
                raise Unreadable(f"{port} is there twice")
            found[port] = value.strip()
            port = None
    if port is not None:
        raise Unreadable(f"{port} has no device")
    if not found:
        raise Unreadable("it names no hardware port")
    return found


_HEAD: Final = re.compile(r"([A-Za-z][A-Za-z0-9._-]{0,31}): flags=[0-9a-f]+<([A-Z0-9,]*)>")


def ifconfig(data: bytes) -> dict[str, NetworkInterface]:
    """By name. A port or a bridge has a `status:` line, or its block was cut off."""
    found: dict[str, NetworkInterface] = {}
    blocks: list[tuple[str, str, list[str]]] = []
    for line in lines(data):
        head = _HEAD.match(line)
        if head:
            blocks.append((head[1], head[2], []))
        elif not line[:1].isspace() or not blocks:
            raise Unreadable("it holds lines of another kind")
        else:
            blocks[-1][2].append(line.strip())
    for name, flags, inner in blocks:
        if name in found:
            raise Unreadable(f"{name} is there twice")
        status = [line.removeprefix("status:").strip() for line in inner if line.startswith("status:")]
        members = tuple(line.split()[1] for line in inner if re.match(r"member: \S+", line))
        strict = bool(members) or re.fullmatch(r"en[0-9]+", name) is not None
        if strict and status not in (["active"], ["inactive"]):
            raise Unreadable(f"{name} has no status that is known")
        found[name] = NetworkInterface(
            name=name,
            up="UP" in flags.split(","),
            active={"active": True, "inactive": False}.get(status[0]) if status else None,
            addresses=tuple(_addresses(inner, strict=strict)),
            members=members,
        )
    if not any(interface.addresses for interface in found.values()):
        raise Unreadable("it has no address, not even of loopback")
    return found


def _addresses(block: list[str], *, strict: bool) -> Iterator[IPv4Interface]:
    for line in block:
        if not line.startswith("inet "):
            continue
        match = re.match(r"inet ([0-9.]+)(?: --> [0-9.]+)? netmask 0x([0-9a-f]{8})\b", line)
        try:
            if match is None:
                raise AddressValueError
            yield IPv4Interface((match[1], int(match[2], 16).bit_count()))
        except (AddressValueError, NetmaskValueError):
            if strict:
                raise Unreadable(f"{line[:40]!r} holds no address") from None


def netstat(data: bytes) -> tuple[Route, ...]:
    """The IPv4 routes, in the order given. Routes to a single host are routes to 32 bits."""
    found: list[Route] = []
    column: int | None = None
    for line in lines(data):
        words = line.split()
        if words[:2] == ["Destination", "Gateway"] and "Netif" in words:
            column = words.index("Netif")
        elif column is not None and len(words) > column:
            network = _destination(words[0])
            if network is not None:
                found.append(Route(network, words[column]))
    if column is None:
        raise Unreadable("it has no header")
    return tuple(found)


def _destination(text: str) -> IPv4Network | None:
    """`192.0.2` is 192.0.2.0/24, `192.168.0.0/30` itself, `default` everything."""
    if text == "default":
        return IPv4Network("0.0.0.0/0")
    base, _, bits = text.partition("/")
    octets = base.split(".")
    try:
        address = IPv4Address(".".join([*octets, *["0"] * (4 - len(octets))]))
        return IPv4Network((address, int(bits) if bits else 8 * len(octets)), strict=False)
    except ValueError:
        return None


def pmset(data: bytes) -> dict[str, int]:
    """The numbers of `pmset -g`: `sleep`, `disksleep` and others."""
    found: dict[str, int] = {}
    for line in lines(data):
        match = re.match(r"\s+([a-z]+)\s+([0-9]{1,6})(?:\s|$)", line)
        if match:
            found[match[1]] = int(match[2])
    if not found:
        raise Unreadable("it holds no settings")
    return found


def _fields(found: list[str], sign: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in found:
        key, there, value = line.partition(sign)
        if there:
            if key.strip() in fields:
                raise Unreadable(f"{key.strip()[:40]} is there twice")
            fields[key.strip()] = value.strip()
    return fields


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"[0-9]{1,18}", text) else None
