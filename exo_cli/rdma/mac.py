"""What is known of one Mac, put together from its texts. Where two texts contradict each other,
neither is believed. Knows nothing of what is wrong with it, nor of other Macs.
"""

import re
from dataclasses import dataclass
from functools import partial
from typing import Final

from exo_cli.rdma import mac_texts, probes, thunderbolt, verbs
from exo_cli.rdma.capture import Capture
from exo_cli.rdma.mac_texts import Hardware, NetworkInterface, Route, System
from exo_cli.rdma.probes import Attempt, Mlx
from exo_cli.rdma.reader import Reader
from exo_cli.rdma.thunderbolt import Port
from exo_cli.rdma.verbs import VerbsDevice, VerbsPort
from exo_cli.schemas.doctor import Generation, RdmaNode, RdmaPort

FIRST_WITH_RDMA: Final = (26, 2)
_TB4_GBIT_PER_S: Final = 40
# Apple's specifications: these have Thunderbolt 4 at most, whatever is plugged in.
_TB4_CHIPS: Final = re.compile(r"Apple M(?:[1-5]|[12] (?:Pro|Max|Ultra)|3 (?:Pro|Max))")


@dataclass(slots=True)
class Mac:
    """One Mac; None is what could not be read, and `troubles` says why."""

    name: str
    troubles: dict[str, str]
    missing: frozenset[str]
    """Programs that are not there."""
    system: System | None
    hardware: Hardware | None
    ports: tuple[Port, ...] | None
    enabled: bool | None
    devices: tuple[VerbsDevice, ...] | None
    interface_of: dict[str, str] | None
    """Receptacle -> interface."""
    named: frozenset[str]
    """The interfaces of all hardware ports; empty where they could not be read."""
    interfaces: dict[str, NetworkInterface] | None
    routes: tuple[Route, ...] | None
    environment: dict[str, str] | None
    mlx: Mlx | None
    attempt: Attempt | None

    @property
    def is_old(self) -> bool:
        return self.system is not None and self.system.version < FIRST_WITH_RDMA

    @property
    def all_interfaces(self) -> dict[str, NetworkInterface] | None:
        """The interfaces, where it is certain that none is left out."""
        interfaces = self.interfaces
        return interfaces if interfaces is not None and self.named and self.named <= set(interfaces) else None

    @property
    def generation(self) -> Generation | None:
        """Idle ports say what they can do; a busy one only what is on it."""
        speeds = [port for port in self.ports or () if port.gbit_per_s is not None]
        if any((port.gbit_per_s or 0) > _TB4_GBIT_PER_S for port in speeds):
            return "thunderbolt-5"
        if any(port.most for port in speeds):
            return "thunderbolt-4"
        chip = (self.hardware.chip if self.hardware else None) or ""
        if speeds and len(speeds) == len(self.ports or ()) and _TB4_CHIPS.fullmatch(chip):
            return "thunderbolt-4"
        return None

    def interface(self, port: Port) -> str | None:
        return (self.interface_of or {}).get(port.receptacle)

    def shown_interface(self, port: Port) -> str:
        return self.interface(port) or f"Thunderbolt {port.receptacle}"

    def verbs_port(self, interface: str | None) -> VerbsPort | None:
        for device in self.devices or ():
            if interface is not None and device.name == f"rdma_{interface}":
                return device.ports[0]
        return None

    def record(self) -> RdmaNode:
        return RdmaNode(
            name=self.name,
            platform="darwin",
            os=self.system.text if self.system else None,
            build=self.system.build if self.system else None,
            chip=self.hardware.chip if self.hardware else None,
            thunderbolt=self.generation,
            mlx=self.mlx.mlx if self.mlx else None,
            ports=tuple(self._port(port) for port in self.ports or ()),
        )

    def _port(self, port: Port) -> RdmaPort:
        interface = self.interface(port)
        verbs_port = self.verbs_port(interface)
        rate = None
        if port.gbit_per_s is not None:
            rate = f"up to {port.gbit_per_s} Gb/s" if port.most else f"{port.gbit_per_s} Gb/s"
        on_it = [*(peer.name for peer in port.peers), *port.devices]
        return RdmaPort(
            device=f"rdma_{interface}" if verbs_port is not None else None,
            interface=interface,
            receptacle=port.receptacle,
            state=verbs_port.state if verbs_port else None,
            rate=rate,
            peer=", ".join(on_it) or None,
        )


def read_mac(capture: Capture) -> Mac:
    reader = Reader(capture)
    names = ("rdma_ctl", "ibv_devices", "ibv_devinfo")
    hardware_ports = reader.read("hardware_ports", mac_texts.hardware_ports)
    mac = Mac(
        name=capture.node,
        troubles=reader.troubles,
        missing=frozenset(name for name in names if reader.is_missing(name)),
        system=reader.read("sw_vers", mac_texts.sw_vers),
        hardware=reader.read("sysctl", mac_texts.sysctl, exit_code=None),
        ports=reader.read("thunderbolt", thunderbolt.ports),
        enabled=reader.read("rdma_ctl", mac_texts.rdma_ctl, exit_code=None),
        devices=_devices(reader),
        interface_of=None if hardware_ports is None else _receptacles(hardware_ports),
        named=frozenset(name for name in (hardware_ports or {}).values() if name.startswith("en")),
        interfaces=reader.read("ifconfig", mac_texts.ifconfig),
        routes=reader.read("routes", mac_texts.netstat),
        environment=reader.read("environment", probes.environment),
        mlx=reader.read("mlx", probes.mlx),
        attempt=reader.optional("jaccl_error", probes.jaccl_error, exit_code=1),
    )
    _check_agreement(mac)
    return mac


def _receptacles(hardware_ports: dict[str, str]) -> dict[str, str]:
    return {
        port.removeprefix("Thunderbolt "): device
        for port, device in hardware_ports.items()
        if re.fullmatch(r"Thunderbolt [0-9]{1,2}", port)
    }


def _devices(reader: Reader) -> tuple[VerbsDevice, ...] | None:
    """The verbs devices; `ibv_devices` and `ibv_devinfo` have to say the same."""
    names = reader.read("ibv_devices", verbs.ibv_devices)
    said = reader.said("ibv_devinfo")
    if said is not None and said.exit not in (0, 127) and verbs.says_no_device(said.output, said.error):
        devices: tuple[VerbsDevice, ...] | None = ()
    else:
        devices = reader.read("ibv_devinfo", verbs.ibv_devinfo)
    foreign = partial(re.fullmatch, r"rdma_en[0-9]{1,3}")
    if names is not None and not all(map(foreign, names)):
        reader.troubles["ibv_devices"] = "it lists devices that no Mac has"
    if devices is not None and not all(
        foreign(device.name) and all(port.link_layer == "Thunderbolt" for port in device.ports)
        for device in devices
    ):
        reader.troubles["ibv_devinfo"] = "it lists devices that no Mac has"
    if names is None or devices is None or reader.troubles.keys() & {"ibv_devices", "ibv_devinfo"}:
        return None
    if set(names) != {device.name for device in devices}:
        reader.troubles["ibv_devinfo"] = "it lists other devices than ibv_devices"
        return None
    return devices


def _check_agreement(mac: Mac) -> None:
    """Texts that leave out what another one names were cut off, or are of another machine."""
    connected = [port for port in mac.ports or () if port.peers]
    for port in connected:
        if mac.interface_of is not None and port.receptacle not in mac.interface_of:
            mac.troubles["hardware_ports"] = f"it has no Thunderbolt {port.receptacle}"
            mac.interface_of = None
    for interface in filter(None, map(mac.interface, connected)):
        if mac.interfaces is not None and interface not in mac.interfaces:
            mac.troubles["ifconfig"] = f"it has no {interface}"
            mac.interfaces = None
        if mac.devices and mac.verbs_port(interface) is None:
            mac.troubles["ibv_devinfo"] = f"it has no rdma_{interface}, where a Mac is connected"
            mac.devices = None
    if mac.ports and all(port.gbit_per_s is None for port in mac.ports):
        mac.troubles["thunderbolt"] = "its speeds are in no known words"
