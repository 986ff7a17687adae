"""Whether MLX's collectives would use RDMA on one Linux machine: NCCL over InfiniBand or RoCE.

jaccl is not in MLX's Linux wheels, so the question here is NCCL's. Nothing is concluded from a text
that could not be read. Knows nothing of other machines.
"""

from collections.abc import Iterator
from typing import Final

from exo_cli.rdma.linux import Linux
from exo_cli.rdma.sources import SOURCES
from exo_cli.rdma.words import found
from exo_cli.schemas.findings import Finding

MIB: Final = 1 << 20
ENOUGH_LOCKED_BYTES: Final = 1024 * MIB
"""NCCL registers buffers for each channel and peer; its makers ask for no limit."""


def instead(machine: Linux) -> str:
    """What MLX would do its collectives with where RDMA is out of the question."""
    if machine.mlx is not None and machine.mlx.mlx is None:
        return "nothing: MLX is not installed"
    if machine.mlx is not None and machine.mlx.has("nccl"):
        return "NCCL over TCP sockets (Ethernet)"
    return "its ring over TCP (Ethernet)"


def check_linux(machine: Linux) -> tuple[Finding, ...]:
    needed: list[str] = []
    findings = list(_steps(machine, needed))
    for name, why in machine.troubles.items():
        matters = name in needed
        findings.append(
            found(
                "unreadable" if matters else "not-read",
                "failure" if matters else "info",
                machine.name,
                f"could not read {name}: {why}",
                "nothing is concluded from it, so whether RDMA would work is not known" if matters else None,
                f"look at what {machine.name} says: {SOURCES['linux'][name].words}" if matters else None,
                where=name,
            )
        )
    return tuple(findings)


def _steps(machine: Linux, needed: list[str]) -> Iterator[Finding]:
    needed.append("infiniband")
    if machine.devices is None:
        needed.append("mlx")
        return
    yield found(
        "jaccl",
        "info",
        machine.name,
        "jaccl is not in MLX's Linux wheels",
        "RDMA over Thunderbolt is for Macs; on Linux MLX reaches RDMA through NCCL only, on CUDA",
        evidence="L4",
        source="mx.distributed.is_available",
    )
    if not machine.devices:
        yield _no_device(machine)
        return
    needed += ["dev_infiniband", "id", "mlx"]
    active = machine.active
    if not active:
        yield _ports_down(machine)
    for device, port in active:
        seen = f"{port.kind}, {port.state}" + (f", {port.rate}" if port.rate else "")
        yield found("port-active", "ok", machine.name, seen, where=f"{device.name} port {port.number}")
    yield from _verbs(machine)
    needed.append("memlock")
    yield from _memlock(machine)
    yield from _nccl(machine, bool(active))


def _no_device(machine: Linux) -> Finding:
    no_nccl = machine.mlx is not None and not machine.mlx.has("nccl")
    return found(
        "no-rdma-device",
        "failure",
        machine.name,
        "the kernel has no InfiniBand or RoCE device (/sys/class/infiniband)",
        f"there is nothing to do RDMA with: MLX will use {instead(machine)}. exo itself splits models over "
        "TCP and needs no RDMA",
        "nothing, where no such card is built in: exo discover shows how fast the links are",
        "where one is: lspci | grep -iE 'infiniband|mellanox|ethernet', then its driver (mlx5_ib, bnxt_re, "
        "irdma)",
        *(("MLX with NCCL: pip install 'exo-cli[cuda]'",) if no_nccl else ()),
    )


def _ports_down(machine: Linux) -> Finding:
    told = [
        f"{device.name} port {port.number}: {port.state}" + (f", {port.physical}" if port.physical else "")
        for device in machine.devices or ()
        for port in device.ports
    ]
    states = {port.state for device in machine.devices or () for port in device.ports}
    physical = {port.physical for device in machine.devices or () for port in device.ports}
    means = f"no port is active, so MLX will use {instead(machine)}"
    if "Disabled" in physical:
        means += "; a disabled port was switched off on this machine"
    elif states & {"INIT", "ARMED"}:
        means += "; the cable is in, and no subnet manager has made the port ready"
    else:
        means += "; Polling is no cable, or nothing at its other end"
    return found(
        "rdma-port-down",
        "failure",
        machine.name,
        "; ".join(told),
        means,
        "plug in the cable, at both ends, and see that the other end is on",
        "InfiniBand needs a subnet manager somewhere: opensm, or the switch's own",
        "RoCE needs its network interface up: ip link",
    )


def _verbs(machine: Linux) -> Iterator[Finding]:
    if machine.verbs_sees_none:
        loaded = (
            "and ib_uverbs is loaded" if "ib_uverbs" in machine.modules else "and ib_uverbs is not loaded"
        )
        yield found(
            "no-verbs",
            "failure",
            machine.name,
            f"the kernel has a device, the verbs library finds none, {loaded}",
            "programs reach the card through /dev/infiniband, which the module ib_uverbs makes",
            "sudo modprobe ib_uverbs",
        )
        return
    if machine.files is None or machine.user is None:
        return
    for file in machine.files:
        if file.name.startswith("uverbs") and not file.opens_for(machine.user):
            path = f"/dev/infiniband/{file.name}"
            yield found(
                "verbs-permission",
                "failure",
                machine.name,
                f"{path} is {file.mode}, and the user {machine.user.name} may not open it",
                f"NCCL finds no device then, and MLX will use {instead(machine)}",
                "install rdma-core, whose udev rules open it to everybody, and restart",
                f"or for now: sudo chmod a+rw {path}",
                where=path,
            )


def _memlock(machine: Linux) -> Iterator[Finding]:
    if machine.locks_all:
        yield found("memlock", "ok", machine.name, "any amount of memory may be locked")
    elif machine.locked_bytes is not None and machine.user is not None and machine.user.uid == 0:
        yield found(
            "memlock",
            "ok",
            machine.name,
            f"{machine.locked_bytes // MIB} MiB of memory may be locked; root may lock more",
        )
    elif machine.locked_bytes is not None:
        low = machine.locked_bytes < ENOUGH_LOCKED_BYTES
        yield found(
            "memlock-low" if low else "memlock",
            "failure" if low else "ok",
            machine.name,
            f"{machine.locked_bytes // MIB} MiB of memory may be locked (ulimit -l)",
            "RDMA locks the memory it sends from: registering buffers fails with 'Cannot allocate memory'"
            if low
            else None,
            *(
                (
                    "in /etc/security/limits.conf: * soft memlock unlimited, and * hard memlock unlimited",
                    "for a systemd unit: LimitMEMLOCK=infinity; for a container: --ulimit memlock=-1",
                    "log in again, then: ulimit -l",
                )
                if low
                else ()
            ),
        )


def _nccl(machine: Linux, active: bool) -> Iterator[Finding]:
    if machine.mlx is None:
        return
    if not machine.mlx.has("nccl"):
        yield found(
            "nccl-missing",
            "failure",
            machine.name,
            "this MLX has no NCCL" if machine.mlx.mlx else "MLX is not installed",
            f"the card is there and MLX will use {instead(machine)}",
            "pip install 'exo-cli[cuda]'   (on a machine with an NVIDIA GPU)",
        )
        return
    if machine.environment.get("NCCL_IB_DISABLE", "0") not in ("", "0"):
        yield found(
            "nccl-ib-off",
            "failure",
            machine.name,
            f"NCCL_IB_DISABLE={machine.environment['NCCL_IB_DISABLE']}",
            "NCCL is told to leave InfiniBand and RoCE alone",
            "unset NCCL_IB_DISABLE",
        )
    elif active and not _chosen(machine):
        yield found(
            "nccl-ib-off",
            "failure",
            machine.name,
            f"NCCL_IB_HCA={machine.environment['NCCL_IB_HCA']}",
            "no active port is among the cards that NCCL is told to use: "
            + ", ".join(f"{device.name}:{port.number}" for device, port in machine.active),
            "unset NCCL_IB_HCA, or name one of those",
        )
    elif active and machine.nccl_network == "Socket":
        yield found(
            "nccl-uses-sockets",
            "warning",
            machine.name,
            "an earlier run of NCCL said: Using network Socket",
            "a port is active now; then NCCL found none that it could use",
            "run again with NCCL_DEBUG=INFO and look for NET/IB",
        )
    else:
        told = [f"MLX {machine.mlx.mlx} has NCCL"]
        told += [f"{name}={value}" for name, value in machine.environment.items() if name.startswith("NCCL_")]
        if machine.nccl_network is not None:
            told.append(f"an earlier run of it said: Using network {machine.nccl_network}")
        yield found("nccl", "ok", machine.name, "; ".join(told))


def _chosen(machine: Linux) -> bool:
    """Whether NCCL_IB_HCA leaves an active port: names or their beginnings, `=` for whole names, `^` for
    all but those."""
    rule = machine.environment.get("NCCL_IB_HCA", "")
    without, whole = rule.startswith("^"), rule.lstrip("^").startswith("=")
    wanted = [each.strip().split(":") for each in rule.lstrip("^=").split(",") if each.strip()]
    if not wanted:
        return True

    def named(device: str, port: int) -> bool:
        return any(
            (device == name if whole else device.startswith(name)) and (not ports or ports[0] == str(port))
            for name, *ports in wanted
        )

    return any(named(device.name, port.number) is not without for device, port in machine.active)
