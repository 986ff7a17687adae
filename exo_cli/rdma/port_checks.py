"""Whether one Thunderbolt port of a Mac, with another Mac on it, could carry RDMA.

Knows nothing of the Mac as a whole, nor of the other end.
"""

from collections.abc import Iterator
from typing import Final

from exo_cli.rdma.mac import Mac
from exo_cli.rdma.mac_texts import NetworkInterface
from exo_cli.rdma.thunderbolt import Port
from exo_cli.rdma.verbs import VerbsPort
from exo_cli.rdma.words import found
from exo_cli.schemas.findings import Finding

GID: Final = 1
"""The index that MLX sends from."""
_TB4_GBIT_PER_S: Final = 40


def port_down(mac: Mac, port: Port) -> Finding | None:
    """The finding of a port that is not active."""
    interface = mac.interface(port)
    verbs_port = mac.verbs_port(interface)
    if interface is None or verbs_port is None or verbs_port.is_active:
        return None
    slow = port.gbit_per_s is not None and port.gbit_per_s <= _TB4_GBIT_PER_S
    why = (
        "the link runs at 40 Gb/s, so the other end or the cable is no Thunderbolt 5"
        if slow
        else "the other Mac does not, or the cable is bad"
    )
    return found(
        "port-down",
        "failure",
        mac.name,
        f"a Mac is on it ({port.peers[0].name}), and the RDMA port is {verbs_port.state}",
        f"a port becomes active when both ends offer RDMA: {why}",
        "on the other Mac: rdma_ctl status, and exo rdma-check",
        "if both ends are well: another Thunderbolt 5 cable, then another port",
        where=interface,
    )


def check_active(mac: Mac, interface: str | None) -> Iterator[Finding]:
    """Bridge and address of a port that is active."""
    verbs_port = mac.verbs_port(interface)
    if interface is None or verbs_port is None:
        return
    seen = verbs_port.state + (f", {verbs_port.rate}" if verbs_port.rate else "")
    yield found("port-active", "ok", mac.name, seen, where=interface)
    if mac.interfaces is None:
        return
    own = mac.interfaces[interface]
    bridges = [each for each in mac.interfaces.values() if each.is_bridging and interface in each.members]
    if bridges:
        yield _bridge(mac, own, bridges[0].name, works=bool(own.addresses) and _mapped(verbs_port))
    if _mapped(verbs_port):
        yield found("ipv4-gid", "ok", mac.name, f"GID {GID} holds {verbs_port.mapped(GID)}", where=interface)
    else:
        yield from _no_gid(mac, own, verbs_port, bridged=bool(bridges))


def _mapped(verbs_port: VerbsPort) -> bool:
    return verbs_port.mapped(GID) is not None


def _bridge(mac: Mac, own: NetworkInterface, bridge: str, *, works: bool) -> Finding:
    means = "the Thunderbolt Bridge takes the ports' traffic; "
    if works:
        means += "this port has its own address and works, yet the bridge may take it over"
    else:
        means += "the port then has no GID that MLX can send from (errno 22)"
    seen = f"{own.name} is a member of {bridge}, which is active"
    return found(
        "bridge-active",
        "warning" if works else "failure",
        mac.name,
        seen if own.addresses else f"{seen}, and has no address of its own",
        means,
        "System Settings > Network > Thunderbolt Bridge: make it inactive",
        f"or until the next restart: sudo ifconfig {bridge} down",
        *(() if works else (f"then see that {own.name} has an IPv4 address: ifconfig {own.name}",)),
        where=own.name,
    )


def _no_gid(mac: Mac, own: NetworkInterface, verbs_port: VerbsPort, *, bridged: bool) -> Iterator[Finding]:
    if not verbs_port.gids:
        mac.troubles["ibv_devinfo"] = f"it has no GID of rdma_{own.name}"
        return
    others = [index for index in sorted(verbs_port.gids) if verbs_port.mapped(index) is not None]
    device = next(each for each in mac.devices or () if each.name == f"rdma_{own.name}")
    if own.addresses and not device.closed and not (others and GID in verbs_port.gids):
        # It has an address, and its GIDs are the last lines of a text that does not end as it should.
        mac.troubles["ibv_devinfo"] = f"it ends among the GIDs of {device.name}"
        return
    seen = f"{own.name} has no IPv4 address"
    do = f"give {own.name} an IPv4 address: System Settings > Network > Thunderbolt, Configure IPv4"
    if own.addresses:
        seen = f"{own.name} has {own.addresses[0].ip}, and GID {GID} does not hold it"
        do = f"take {own.name} down and up, so that its IPv4 address is given again"
    if others:
        seen += f" (GID {others[0]} does)"
    yield found(
        "no-ipv4-gid",
        "failure",
        mac.name,
        seen,
        f"MLX sends from GID {GID}, which has to hold the IPv4 address of {own.name}",
        *(("mend the bridge first: it takes the address",) if bridged else ()),
        do,
        where=own.name,
        source="ml-explore/mlx, jaccl: sgid_index 1" if others else None,
        evidence="L0" if others else None,
    )
