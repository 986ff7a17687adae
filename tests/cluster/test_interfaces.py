"""What kind of link an interface is, and what is taken from the system."""

import socket
import sys
from types import SimpleNamespace

import psutil
import pytest

from exo_cli.cluster import interfaces
from exo_cli.cluster.interfaces import (
    Broadcast,
    Choice,
    Facts,
    as_addresses,
    check_choice,
    kind_of_linux,
    kind_of_mac,
    list_interfaces,
    own_ips,
    parse_hardware_ports,
)
from exo_cli.errors import UsageProblem
from exo_cli.schemas.topology import InterfaceKind

# As a Mac Studio with Thunderbolt cables and two adapters prints it.
NETWORKSETUP = """
Hardware Port: Ethernet
Device: en0
Ethernet Address: 1c:1d:d3:00:00:01

Hardware Port: Ethernet Adapter (en9)
Device: en9
Ethernet Address: 8e:2a:3c:00:00:02

Hardware Port: Wi-Fi
Device: en1
Ethernet Address: 1c:1d:d3:00:00:03

Hardware Port: Thunderbolt 1
Device: en2
Ethernet Address: 36:4d:5e:00:00:04

Hardware Port: Thunderbolt 2
Device: en3
Ethernet Address: 36:4d:5e:00:00:08

Hardware Port: Thunderbolt Bridge
Device: bridge0
Ethernet Address: 36:4d:5e:00:00:04

Hardware Port: Thunderbolt Ethernet Slot 1
Device: en7
Ethernet Address: 64:4b:f0:00:00:05

Hardware Port: USB 10/100/1000 LAN
Device: en8
Ethernet Address: 00:e0:4c:00:00:06

Hardware Port: iPhone USB
Device: en10
Ethernet Address: 12:34:56:00:00:07

Hardware Port: Tailscale
Device: utun4
Ethernet Address: N/A

VLAN Configurations
===================
"""


def test_hardware_ports_are_read() -> None:
    assert parse_hardware_ports(NETWORKSETUP) == {
        "en0": "Ethernet",
        "en9": "Ethernet Adapter (en9)",
        "en1": "Wi-Fi",
        "en2": "Thunderbolt 1",
        "en3": "Thunderbolt 2",
        "bridge0": "Thunderbolt Bridge",
        "en7": "Thunderbolt Ethernet Slot 1",
        "en8": "USB 10/100/1000 LAN",
        "en10": "iPhone USB",
        "utun4": "Tailscale",
    }


@pytest.mark.parametrize(
    "text", ["", "VLAN Configurations\n====\n", "Hardware Port: x\n\nDevice: en0\n", "\0"]
)
def test_other_text_has_no_ports(text: str) -> None:
    assert parse_hardware_ports(text) == {}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("lo0", "loopback"),
        ("en0", "ethernet"),
        ("en9", "ethernet"),
        ("en1", "wifi"),
        ("en2", "thunderbolt"),
        ("en3", "thunderbolt"),
        ("bridge0", "bridge"),
        ("bridge100", "bridge"),
        ("en7", "ethernet"),
        ("en8", "ethernet"),
        ("en10", "ethernet"),
        ("utun4", "tunnel"),
        ("utun0", "tunnel"),
        ("ipsec0", "tunnel"),
        ("awdl0", "virtual"),
        ("llw0", "virtual"),
        ("ap1", "virtual"),
        ("vmenet0", "virtual"),
        ("en77", "unknown"),
    ],
)
def test_kinds_on_a_mac(name: str, kind: InterfaceKind) -> None:
    assert kind_of_mac(name, parse_hardware_ports(NETWORKSETUP)) == kind


@pytest.mark.parametrize(
    ("name", "facts", "kind"),
    [
        ("lo", Facts(type=772), "loopback"),
        ("eth0", Facts(physical=True, driver="e1000e"), "ethernet"),
        ("enp3s0", Facts(physical=True, driver="mlx5_core"), "ethernet"),
        ("ib0", Facts(type=32, physical=True, driver="ib_ipoib"), "infiniband"),
        ("wlp2s0", Facts(physical=True, wireless=True, driver="iwlwifi"), "wifi"),
        ("thunderbolt0", Facts(physical=True, driver="thunderbolt-net"), "thunderbolt"),
        ("tbt-cable", Facts(physical=True, driver="thunderbolt-net"), "thunderbolt"),
        ("thunderbolt1", Facts(), "thunderbolt"),
        ("br0", Facts(bridge=True), "bridge"),
        ("docker0", Facts(bridge=True), "bridge"),
        ("tun0", Facts(type=65534, tunnel=True), "tunnel"),
        ("tap0", Facts(tunnel=True), "tunnel"),
        ("wg0", Facts(type=65534), "tunnel"),
        ("ppp0", Facts(type=512), "tunnel"),
        ("sit0", Facts(type=776), "tunnel"),
        ("ip6tnl0", Facts(type=769), "tunnel"),
        ("veth12ab", Facts(), "virtual"),
        ("bond0", Facts(), "virtual"),
    ],
)
def test_kinds_on_linux(name: str, facts: Facts, kind: InterfaceKind) -> None:
    assert kind_of_linux(name, facts) == kind


@pytest.mark.parametrize(
    ("only", "never", "allowed"),
    [
        ((), (), {"en0", "en5", "utun3"}),
        (("en*",), (), {"en0", "en5"}),
        (("en5", "utun*"), (), {"en5", "utun3"}),
        ((), ("utun*",), {"en0", "en5"}),
        (("en*",), ("en0",), {"en5"}),
        (("EN*",), (), set()),
    ],
)
def test_interfaces_are_chosen(only: tuple[str, ...], never: tuple[str, ...], allowed: set[str]) -> None:
    choice = Choice(only, never)
    assert {name for name in ("en0", "en5", "utun3") if choice.allows(name)} == allowed


def test_a_name_that_fits_nothing_is_refused() -> None:
    with pytest.raises(UsageProblem, match="no interface 'wlan77'") as caught:
        check_choice(Choice(("wlan77",)))
    assert caught.value.hint is not None
    assert "This machine has: " in caught.value.hint
    check_choice(Choice((), ("wlan77",)))


def _entry(family: int, address: str, netmask: str | None, broadcast: str | None) -> SimpleNamespace:
    return SimpleNamespace(family=family, address=address, netmask=netmask, broadcast=broadcast)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with all sorts of addresses."""
    inet, inet6 = socket.AF_INET, socket.AF_INET6
    addresses = {
        "lo": [_entry(inet, "127.0.0.1", "255.0.0.0", None), _entry(inet6, "::1", None, None)],
        "eth0": [
            _entry(17, "aa:bb:cc:dd:ee:ff", None, "ff:ff:ff:ff:ff:ff"),
            _entry(inet, "192.168.1.7", "255.255.255.0", "192.168.1.255"),
            _entry(inet, "10.3.0.7", "255.255.0.0", None),
            _entry(inet6, "fe80::7%eth0", "ffff:ffff:ffff:ffff::", None),
            _entry(inet6, "fd00::7", "ffff:ffff:ffff:ffff::", None),
        ],
        "one": [_entry(inet, "203.0.113.9", "255.255.255.255", None)],
        "tun0": [_entry(inet, "100.64.0.7", "255.192.0.0", None), _entry(inet6, "fe80::8%tun0", None, None)],
        "down": [_entry(inet, "10.9.0.7", "255.255.0.0", "10.9.255.255")],
        "bare": [_entry(17, "aa:bb:cc:dd:ee:fe", None, None)],
    }
    kinds = {"lo": "loopback", "tun0": "tunnel"}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: addresses)
    monkeypatch.setattr(
        psutil, "net_if_stats", lambda: {name: SimpleNamespace(isup=name != "down") for name in addresses}
    )
    monkeypatch.setattr(interfaces, "kind_of", lambda name: kinds.get(name, "ethernet"))
    monkeypatch.setattr(socket, "if_nametoindex", lambda name: 1 + list(addresses).index(name))


@pytest.mark.usefixtures("machine")
def test_what_is_up_and_has_an_address_is_listed() -> None:
    found = {each.name: each for each in list_interfaces(Choice())}
    assert list(found) == ["eth0", "one", "tun0"]
    assert found["eth0"].broadcasts == (
        Broadcast("192.168.1.7", "192.168.1.255"),
        Broadcast("10.3.0.7", "10.3.255.255"),
    )
    assert found["eth0"].ips == ("192.168.1.7", "10.3.0.7", "fe80::7%eth0", "fd00::7")
    assert found["eth0"].multicast6
    # Nobody to broadcast to on a single address or behind a tunnel.
    assert found["one"].broadcasts == found["tun0"].broadcasts == ()
    assert not found["tun0"].multicast6
    assert [each.name for each in list_interfaces(Choice(), loopback=True)] == ["lo"]
    assert [each.name for each in list_interfaces(Choice(("tun*",)))] == ["tun0"]


@pytest.mark.usefixtures("machine")
def test_others_are_told_addresses_that_mean_something_to_them() -> None:
    told = as_addresses(list_interfaces(Choice()))
    assert [each.ip for each in told] == ["192.168.1.7", "10.3.0.7", "fd00::7", "203.0.113.9", "100.64.0.7"]
    assert {each.interface for each in told} == {"eth0", "one", "tun0"}
    assert {"127.0.0.1", "::1", "fe80::7", "fe80::8"} <= own_ips()


@pytest.mark.usefixtures("machine")
def test_an_interface_that_goes_away_meanwhile_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str) -> int:
        raise OSError("no such device")

    monkeypatch.setattr(socket, "if_nametoindex", gone)
    assert list_interfaces(Choice()) == []


def test_this_machine_has_a_loopback_interface() -> None:
    (loopback,) = list_interfaces(Choice(), loopback=True)
    assert loopback.name == ("lo0" if sys.platform == "darwin" else "lo")
    assert loopback.kind == "loopback"
    assert "127.0.0.1" in loopback.ips
    assert loopback.broadcasts == ()
    assert not any(each.kind == "loopback" for each in list_interfaces(Choice()))
