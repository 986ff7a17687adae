"""From captures to the whole answer. Pure: the same captures give the same answer, on any machine."""

from collections.abc import Sequence

from exo_cli.rdma.cables import Wiring, join
from exo_cli.rdma.capture import Capture
from exo_cli.rdma.cluster_checks import check_cluster, explained
from exo_cli.rdma.linux import Linux, read_linux
from exo_cli.rdma.linux_checks import check_linux, instead
from exo_cli.rdma.mac import Mac, read_mac
from exo_cli.rdma.mac_checks import check_mac
from exo_cli.rdma.machine import check_machine
from exo_cli.rdma.words import ordered
from exo_cli.schemas.doctor import Collective, RdmaCheck
from exo_cli.schemas.findings import Finding


def diagnose(
    captures: Sequence[Capture], *, beside: Sequence[Finding] = (), collective: Collective | None = None
) -> RdmaCheck:
    """Whether RDMA would work, and what stands in the way. `beside` are findings from elsewhere; a
    failure among them (a node that did not answer) counts, their warnings do not."""
    macs = _each_once([read_mac(capture) for capture in captures if capture.platform == "darwin"])
    machines = [read_linux(capture) for capture in captures if capture.platform == "linux"]
    wiring = join(macs)
    verdicts = {mac.name: check_mac(mac) for mac in macs}
    told = explained(macs, verdicts, wiring)
    findings = [
        finding for verdict in verdicts.values() for finding in verdict.findings if id(finding) not in told
    ]
    findings += [finding for machine in machines for finding in check_linux(machine)]
    if len(macs) + len(machines) > 1:
        findings += check_cluster(macs, machines, wiring)
    works = bool(captures) and all(finding.level != "failure" for finding in (*findings, *beside))
    for capture in captures:
        findings += check_machine(capture)
    return RdmaCheck(
        would_work=works,
        uses=_uses(macs, machines, wiring, works=works),
        nodes=(*(mac.record() for mac in macs), *(machine.record() for machine in machines)),
        cables=wiring.cables,
        missing_cables=wiring.missing,
        mesh=wiring.mesh,
        ring=wiring.has_ring,
        findings=ordered([*findings, *beside]),
        collective=collective,
    )


def _each_once(macs: list[Mac]) -> list[Mac]:
    """Two nodes on one Mac have the same ports: the first stands for it."""
    kept: list[Mac] = []
    seen: set[str] = set()
    for mac in macs:
        domains = {port.domain for port in mac.ports or ()}
        if not domains & seen:
            kept.append(mac)
        seen |= domains
    return kept


def _uses(macs: Sequence[Mac], machines: Sequence[Linux], wiring: Wiring, *, works: bool) -> str:
    """What MLX would do its collectives with as things are."""
    if macs and machines:
        return "its ring over TCP"
    if macs and works:
        ring_only = wiring.mesh is False and wiring.has_ring
        return "jaccl over RDMA, as a ring" if ring_only else "jaccl over RDMA"
    if machines and works:
        kinds = sorted({port.kind for machine in machines for _, port in machine.active})
        return f"NCCL over {' and '.join(kinds)}"
    if machines:
        return instead(machines[0])
    return "its ring over TCP, over whatever network the Macs share" if macs else "nothing that is known"
