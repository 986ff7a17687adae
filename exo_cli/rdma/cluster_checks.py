"""What only several machines together can tell: equal versions, cables, addresses of both ends.

Knows nothing of how the machines were asked.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from exo_cli.rdma.cables import Pair, Wiring
from exo_cli.rdma.linux import Linux
from exo_cli.rdma.mac import Mac
from exo_cli.rdma.mac_checks import Verdict
from exo_cli.rdma.words import found
from exo_cli.schemas.doctor import Cable
from exo_cli.schemas.findings import Finding

# What is wrong with one Mac explains that the port at the other end of its cable is down; of one that
# could not be read nobody knows.
_EXPLAINS: Final = frozenset(("os-too-old", "thunderbolt-4", "rdma-disabled", "no-device", "unreadable"))


def explained(macs: Sequence[Mac], verdicts: Mapping[str, Verdict], wiring: Wiring) -> set[int]:
    """Findings `port-down`, by id(), that the Mac at the other end or a hub explains."""
    told: set[int] = set()
    if any(mac.ports is None for mac in macs):
        joined = {end for cable in wiring.cables for end in _ends(cable)}
        for name, verdict in verdicts.items():
            told |= {id(down) for port, down in verdict.down.items() if (name, port) not in joined}
    for cable in wiring.cables:
        ends = ((cable.a, cable.a_interface, cable.b), (cable.b, cable.b_interface, cable.a))
        for name, interface, other in ends:
            down = verdicts[name].down.get(interface)
            causes = {finding.id for finding in verdicts[other].findings if finding.level == "failure"}
            if down is not None and (cable.hub or causes & _EXPLAINS):
                told.add(id(down))
    return told


def _ends(cable: Cable) -> tuple[tuple[str, str], tuple[str, str]]:
    return (cable.a, cable.a_interface), (cable.b, cable.b_interface)


def check_cluster(macs: Sequence[Mac], machines: Sequence[Linux], wiring: Wiring) -> Iterator[Finding]:
    yield from _versions(macs, machines)
    if macs and machines:
        yield found(
            "mixed-systems",
            "warning",
            (*(mac.name for mac in macs), *(machine.name for machine in machines)),
            f"{len(macs)} of the machines are Macs and {len(machines)} run Linux",
            "jaccl joins Macs and NCCL joins Linux machines: no collective of MLX does RDMA between the two",
            "let them share a model as stages over TCP, which is what exo plans",
        )
    if len(wiring.nodes) > 1:
        if len(wiring.nodes) == len(macs):
            yield from _doubled(wiring)
            yield from _missing(wiring)
        yield from _addresses(macs, wiring)
        yield from _coordinator(macs)


def _versions(macs: Sequence[Mac], machines: Sequence[Linux]) -> Iterator[Finding]:
    builds = {mac.name: mac.system.build for mac in macs if mac.system is not None}
    if len(set(builds.values())) > 1:
        yield _differ("os-builds-differ", builds, "macOS build", "update macOS, to the same build on all")
    elif len(builds) > 1:
        yield found("same-build", "ok", tuple(builds), f"macOS build {next(iter(builds.values()))}")
    installed = [*((mac.name, mac.mlx) for mac in macs), *((each.name, each.mlx) for each in machines)]
    versions = {name: mlx.mlx for name, mlx in installed if mlx is not None and mlx.mlx}
    if len(set(versions.values())) > 1:
        yield _differ(
            "mlx-versions-differ", versions, "MLX", "install the same MLX on all: pip install mlx=="
        )
    elif len(versions) > 1:
        yield found("same-mlx", "ok", tuple(versions), f"MLX {next(iter(versions.values()))}")


def _differ(id_: str, said: Mapping[str, str], what: str, do: str) -> Finding:
    newest = max(said.values(), key=lambda text: (len(text), text))
    return found(
        id_,
        "failure",
        tuple(said),
        f"{what}: " + ", ".join(f"{text} on {name}" for name, text in said.items()),
        "the ends of a link have to speak the same version; makers of such clusters ask for the same one "
        f"everywhere, and here are {' and '.join(sorted(set(said.values())))}",
        do + newest if do.endswith("=") else do,
    )


def _doubled(wiring: Wiring) -> Iterator[Finding]:
    for a, b in wiring.doubled():
        ends = [
            f"{cable.a} {cable.a_interface} - {cable.b} {cable.b_interface}"
            for cable in wiring.cables
            if (cable.a, cable.b) in ((a, b), (b, a))
        ]
        spare = wiring.for_a_ring or wiring.missing
        target = next((two for two in spare if {*two} & {a, b}), None)
        if target is not None:
            stays, goes = (end for end in (target if target[0] in (a, b) else target[::-1]))
            other = b if stays == a else a
            yield found(
                "two-cables",
                "failure" if wiring.ring is None else "warning",
                (a, b, goes),
                f"{len(ends)} cables join {a} and {b} ({'; '.join(ends)}), and none joins {stays} and {goes}",
                "jaccl uses one cable between two Macs, and needs one between each two (or a ring)",
                f"move the end of one of them from {other} to {goes}: it then joins {stays} and {goes}",
                "exo rdma-check --cluster",
            )
        else:
            yield found(
                "two-cables",
                "warning",
                (a, b),
                f"{len(ends)} cables join {a} and {b} ({'; '.join(ends)})",
                "the second cable helps only with large messages, on a recent MLX",
                "leave it, or take the second cable for another Mac",
            )


def _missing(wiring: Wiring) -> Iterator[Finding]:
    if not wiring.missing:
        yield found(
            "cables",
            "ok",
            wiring.nodes,
            "each pair has a cable: a mesh" if len(wiring.nodes) > 2 else "a cable joins the two",
        )
        return
    named = tuple(dict.fromkeys(name for two in wiring.missing for name in two))
    if wiring.ring is not None:
        circle = " - ".join((*wiring.ring, wiring.ring[0]))
        yield found(
            "cable-missing",
            "warning",
            named,
            f"no cable joins {_pairs(wiring.missing)}",
            f"there is no full mesh; a ring is there and works ({circle})",
            f"for the mesh, which has lower latency: connect {_pairs(wiring.missing)}",
            "for the ring: MLX_JACCL_RING=1, or mlx.launch --backend jaccl-ring",
        )
        return
    needed = wiring.for_a_ring
    named = tuple(dict.fromkeys(name for two in needed for name in two))
    yield found(
        "cable-missing",
        "failure",
        named,
        f"no cable joins {_pairs(wiring.missing)}",
        "neither a mesh (each pair has a cable) nor a ring can be made of the cables there are",
        f"connect {_pairs(needed)}, with a Thunderbolt 5 cable from Mac to Mac",
        "exo rdma-check --cluster",
    )


def _pairs(pairs: Sequence[Pair]) -> str:
    words = [f"{a} and {b}" for a, b in pairs[:6]]
    if len(pairs) > 6:
        words.append(f"{len(pairs) - 6} other pairs")
    return ", ".join(words)


def _addresses(macs: Sequence[Mac], wiring: Wiring) -> Iterator[Finding]:
    """The IPv4 addresses of a cable's two ends, and the way that packets between them take."""
    named = {mac.name: mac for mac in macs}
    for cable in wiring.cables:
        ends = ((named[cable.a], cable.a_interface), (named[cable.b], cable.b_interface))
        own, theirs = (
            next(iter(mac.interfaces[interface].addresses), None)
            if mac.interfaces is not None and interface in mac.interfaces
            else None
            for mac, interface in ends
        )
        if own is None or theirs is None or cable.hub:
            continue
        if own.network != theirs.network:
            yield found(
                "subnets-differ",
                "warning",
                (cable.a, cable.b),
                f"{cable.a} {cable.a_interface} has {own}, {cable.b} {cable.b_interface} has {theirs}",
                "the two ends of one cable are in different networks, so neither finds the other over it "
                "(errno 60 or 65 when a queue pair is made ready)",
                "let both configure themselves (169.254), or give both addresses of one /30 network",
            )
            continue
        for (mac, interface), address in zip(ends, (theirs, own), strict=True):
            if address.ip.is_link_local or mac.routes is None:
                continue
            matching = [route for route in mac.routes if address.ip in route.network]
            if not any(route.network == address.network for route in matching):
                continue
            best = max(matching, key=lambda route: route.network.prefixlen, default=None)
            if best is not None and best.interface != interface:
                yield found(
                    "wrong-interface",
                    "warning",
                    mac.name,
                    f"packets to {address.ip} leave by {best.interface}, and the cable is at {interface}",
                    "the wrong interface is chosen: what should use the cable goes over another network",
                    f"sudo route change {address.ip} -interface {interface}",
                    where=interface,
                )


def _coordinator(macs: Sequence[Mac]) -> Iterator[Finding]:
    """Rank 0 is found over TCP: the others need a network in common with it, other than a cable."""
    readable = [(mac, mac.all_interfaces) for mac in macs if mac.all_interfaces is not None]
    if len(readable) < 2:
        return
    (first, own), *others = readable
    reached: list[str] = []
    for mac, theirs in others:
        shared = [
            address
            for mine in (own or {}).values()
            for address in mine.addresses
            if not address.ip.is_loopback
            for yours in (theirs or {}).values()
            if any(address.network == each.network for each in yours.addresses)
        ]
        if shared:
            reached.append(str(next((a for a in shared if not a.ip.is_link_local), shared[0]).ip))
        else:
            yield found(
                "coordinator",
                "warning",
                (first.name, mac.name),
                f"{mac.name} has no network in common with {first.name}",
                f"MLX's ranks meet at an address of the first one ({first.name}) before RDMA begins",
                "put both on one network, Ethernet or Wi-Fi, or make sure that a router joins them",
            )
    if len(reached) == len(others):
        yield found(
            "coordinator",
            "ok",
            first.name,
            f"the others share a network with it, at {' and '.join(dict.fromkeys(reached))}",
        )
