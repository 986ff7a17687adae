"""This machine's network interfaces: addresses, where to broadcast, and what kind of link each is.

Classifying is pure (`kind_of`); reading the system is `list_interfaces`. Knows nothing of beacons.
"""

import fnmatch
import re
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Interface
from pathlib import Path

import psutil

from exo_cli.errors import UsageProblem
from exo_cli.schemas.topology import Address, InterfaceKind


@dataclass(frozen=True, slots=True)
class Broadcast:
    """An IPv4 address of ours and the address that reaches all of its subnet."""

    ip: str
    to: str


@dataclass(frozen=True, slots=True)
class Interface:
    name: str
    kind: InterfaceKind
    index: int
    broadcasts: tuple[Broadcast, ...]
    ips: tuple[str, ...]
    multicast6: bool
    """Whether it has an IPv6 link-local address to send multicast from."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What /sys says of a Linux interface."""

    type: int = 1
    wireless: bool = False
    bridge: bool = False
    tunnel: bool = False
    physical: bool = False
    driver: str = ""


ARPHRD_LOOPBACK, ARPHRD_INFINIBAND = 772, 32
# No header (tun, WireGuard), PPP, and IP in IP, in IPv6 or in GRE.
ARPHRD_TUNNELS = frozenset((65534, 512, 768, 769, 776, 778, 823))


def kind_of_linux(name: str, facts: Facts) -> InterfaceKind:
    if facts.type == ARPHRD_LOOPBACK:
        return "loopback"
    if facts.type == ARPHRD_INFINIBAND:
        return "infiniband"
    if facts.wireless:
        return "wifi"
    if facts.driver == "thunderbolt-net" or name.startswith("thunderbolt"):
        return "thunderbolt"
    if facts.bridge:
        return "bridge"
    if facts.tunnel or facts.type in ARPHRD_TUNNELS:
        return "tunnel"
    if facts.physical:
        return "ethernet"
    return "virtual"


def kind_of_mac(name: str, ports: Mapping[str, str]) -> InterfaceKind:
    """`ports`: device -> hardware port, as `networksetup -listallhardwareports` prints them."""
    port = ports.get(name, "").lower()
    if name.startswith("lo"):
        return "loopback"
    if name.startswith(("utun", "ipsec", "ppp", "gif", "stf")):
        return "tunnel"
    if "thunderbolt bridge" in port or name.startswith("bridge"):
        return "bridge"
    if "wi-fi" in port or "airport" in port:
        return "wifi"
    if "thunderbolt" in port and "ethernet" not in port:
        return "thunderbolt"
    if "ethernet" in port or "lan" in port or "usb" in port:
        return "ethernet"
    if name.startswith(("awdl", "llw", "ap", "anpi", "vmenet", "vnic", "feth")):
        return "virtual"
    return "unknown"


def parse_hardware_ports(text: str) -> dict[str, str]:
    """Device -> hardware port, from `networksetup -listallhardwareports`."""
    return {
        device: port
        for port, device in re.findall(r"^Hardware Port: (.*)\nDevice: (\S+)$", text, flags=re.MULTILINE)
    }


@cache
def _mac_ports() -> dict[str, str]:
    try:
        done = subprocess.run(
            ["networksetup", "-listallhardwareports"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return parse_hardware_ports(done.stdout)


def _linux_facts(name: str) -> Facts:
    base = Path("/sys/class/net") / name
    try:
        kind = int((base / "type").read_text())
    except (OSError, ValueError):
        return Facts()
    driver = base / "device" / "driver"
    return Facts(
        type=kind,
        wireless=(base / "wireless").exists() or (base / "phy80211").exists(),
        bridge=(base / "bridge").exists(),
        tunnel=(base / "tun_flags").exists(),
        physical=(base / "device").exists(),
        driver=driver.resolve().name if driver.exists() else "",
    )


def kind_of(name: str) -> InterfaceKind:
    """What kind of link an interface of this machine is."""
    if sys.platform == "darwin":
        return kind_of_mac(name, _mac_ports())
    return kind_of_linux(name, _linux_facts(name))


@dataclass(frozen=True, slots=True)
class Choice:
    """--interface and --no-interface: names or patterns such as `en*`."""

    only: Sequence[str] = ()
    never: Sequence[str] = ()

    def allows(self, name: str) -> bool:
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.never):
            return False
        return not self.only or any(fnmatch.fnmatchcase(name, pattern) for pattern in self.only)


EVERY_INTERFACE = Choice()


def list_interfaces(choice: Choice, *, loopback: bool = False) -> list[Interface]:
    """The interfaces that are up and have an address; loopback ones only when asked for."""
    stats = psutil.net_if_stats()
    found = []
    for name, addresses in psutil.net_if_addrs().items():
        state = stats.get(name)
        if state is None or not state.isup or not choice.allows(name):
            continue
        kind = kind_of(name)
        if (kind == "loopback") != loopback:
            continue
        interface = _interface(name, kind, addresses)
        if interface is not None:
            found.append(interface)
    return sorted(found, key=lambda interface: interface.index)


def check_choice(choice: Choice) -> None:
    """Refuse a name or pattern that fits no interface: a typing error would silence discovery."""
    names = sorted(psutil.net_if_addrs())
    for pattern in choice.only:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise UsageProblem(
                f"there is no interface '{pattern}'", hint=f"This machine has: {', '.join(names)}."
            )


def _interface(name: str, kind: InterfaceKind, addresses: Sequence[object]) -> Interface | None:
    broadcasts: list[Broadcast] = []
    ips: list[str] = []
    multicast6 = False
    for entry in addresses:
        family, ip, mask, to = (getattr(entry, key) for key in ("family", "address", "netmask", "broadcast"))
        if family == socket.AF_INET:
            ips.append(ip)
            if to is None and mask is not None and kind not in ("loopback", "tunnel"):
                to = str(IPv4Interface(f"{ip}/{mask}").network.broadcast_address)
            if to is not None and to != ip and kind != "loopback":
                broadcasts.append(Broadcast(ip, to))
        elif family == socket.AF_INET6:
            plain = ip.split("%")[0]
            if plain.startswith("fe80:"):
                multicast6 = multicast6 or kind not in ("loopback", "tunnel")
                ips.append(f"{plain}%{name}")
            else:
                ips.append(plain)
    if not ips:
        return None
    try:
        index = socket.if_nametoindex(name)
    except OSError:  # it went away while we looked
        return None
    return Interface(name, kind, index, tuple(broadcasts), tuple(ips), multicast6)


def own_ips() -> frozenset[str]:
    """Every address of this machine, without scopes."""
    return frozenset(
        entry.address.split("%")[0]
        for addresses in psutil.net_if_addrs().values()
        for entry in addresses
        if entry.family in (socket.AF_INET, socket.AF_INET6)
    )


def as_addresses(interfaces: Sequence[Interface]) -> tuple[Address, ...]:
    """What a node tells others of its interfaces. Scoped addresses mean nothing to others and stay out."""
    return tuple(
        Address(interface=interface.name, kind=interface.kind, ip=ip)
        for interface in interfaces
        for ip in interface.ips
        if "%" not in ip
    )
