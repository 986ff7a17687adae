"""`exo rdma-check`: why the fast link is or is not usable, and what to do about it."""

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exo_cli.commands.options import INSECURE_WARNING, InsecureFlag, seconds
from exo_cli.commands.session import Session, verb
from exo_cli.errors import Exit, NotFound, UsageProblem

if TYPE_CHECKING:
    from exo_cli.output import Output
    from exo_cli.rdma.capture import Capture
    from exo_cli.schemas.doctor import Collective, RdmaCheck
    from exo_cli.schemas.findings import Finding

PROBE = "30s"
MOST_PROBE_S = 600.0


def register(app: typer.Typer) -> None:
    app.command("rdma-check")(rdma_check)


@verb
def rdma_check(
    session: Session,
    context: typer.Context,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Ask every node of the topology, and show which cable is where.")
    ] = False,
    capture: Annotated[
        Path | None,
        typer.Option("--capture", metavar="DIR", help="Save what was read in a new directory, too."),
    ] = None,
    from_: Annotated[
        Path | None,
        typer.Option("--from", metavar="DIR", help="Diagnose what --capture saved, here or elsewhere."),
    ] = None,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe", help="Measure MLX's own collective, once: two processes here, or an mlx.launch group."
        ),
    ] = False,
    timeout: Annotated[
        str | None,
        typer.Option(
            "--timeout", metavar="TIME", help="How long --probe may take in all.", show_default=PROBE
        ),
    ] = None,
    insecure: InsecureFlag = False,
) -> int:
    """Say whether RDMA would work between machines, what stands in the way, and what to do.

    \b
    Examples:
      exo rdma-check
      exo rdma-check --cluster
      exo rdma-check --probe
      exo rdma-check --capture my-mac; scp -r my-mac linux-box:
      exo rdma-check --from my-mac --json | jq '.findings[] | {level, id, seen, do}'
      mlx.launch --backend jaccl --hostfile hosts.json -- exo rdma-check --probe

    It reads and changes nothing: no network or system setting. exo splits models over TCP and does not
    need RDMA; tensor parallel on Macs gets its speed from it. On Macs that is Thunderbolt 5 with macOS 26.2
    or later, on Linux NCCL over InfiniBand or RoCE.

    Exit code 0 says that RDMA would work as far as can be seen, 80 that it would not or that something
    could not be read. Each finding says how far its meaning was tried out: L0 designed, L1 on constructed
    texts, L2 on texts of real machines, L3 on another backend, L4 on the real hardware. A capture holds
    addresses and domain UUIDs, and no serial numbers.
    """
    output = session.output
    probe_s = _probe_seconds(timeout, probe=probe)
    _refuse_mixtures(context, cluster=cluster, capture=capture, from_=from_, probe=probe)
    if insecure and cluster:
        output.warning(INSECURE_WARNING)
    beside: list[Finding] = []
    collective: Collective | None = None
    if from_ is not None:
        from exo_cli.rdma.capture import read

        captures: tuple[Capture, ...] = read(from_)
    elif cluster:
        captures, beside = _ask_all(session, insecure=insecure)
    else:
        if probe_s is not None:
            collective = _measure(output, probe_s, beside)
        captures = (_this_machine(output, collective),)
    if capture is not None:
        from exo_cli.rdma.capture import write

        write(captures, capture, several=cluster)
        output.note(f"saved in {capture}: it holds link addresses, domain UUIDs and IP addresses")
    if from_ is None:
        beside += _general(session)
    from exo_cli.rdma.diagnose import diagnose

    check = diagnose(captures, beside=beside, collective=collective)
    _show(output, check)
    return Exit.OK if check.would_work else Exit.CHECK_FAILED


def _probe_seconds(timeout: str | None, *, probe: bool) -> float | None:
    if not probe:
        if timeout is not None:
            raise UsageProblem(
                "--timeout means nothing without --probe", hint="Add --probe, or leave it out."
            )
        return None
    found = seconds(timeout or PROBE, "--timeout")
    if not 0 < found <= MOST_PROBE_S:
        raise UsageProblem(f"--timeout {timeout} is not between 0 and {MOST_PROBE_S:g} s", hint="Say 30s.")
    return found


def _refuse_mixtures(
    context: typer.Context, *, cluster: bool, capture: Path | None, from_: Path | None, probe: bool
) -> None:
    for one, other, both in (
        ("--from", "--cluster", from_ is not None and cluster),
        ("--from", "--capture", from_ is not None and capture is not None),
        ("--from", "--probe", from_ is not None and probe),
        ("--cluster", "--probe", cluster and probe),
    ):
        if both:
            raise UsageProblem(f"{one} and {other} do not go together", hint="Leave one of them out.")
    # From the environment it is for other calls too.
    typed = getattr(context.get_parameter_source("insecure"), "name", "") == "COMMANDLINE"
    if typed and not cluster:
        raise UsageProblem("--insecure means nothing without --cluster", hint="Leave it out.")


def _measure(output: "Output", probe_s: float, beside: "list[Finding]") -> "Collective":
    """One attempt; why there is no figure is a finding."""
    from exo_cli.rdma.attempt import measure
    from exo_cli.rdma.words import found

    output.detail(f"measuring a collective, for {probe_s:g} s at most")
    collective = measure(probe_s)
    if collective.error is not None and collective.backend != "jaccl":
        beside.append(
            found(
                "collective-failed",
                "failure",
                _host(),
                f"{collective.backend}, {collective.where}: {collective.error}",
                "MLX's own collective did not work in one attempt",
                "see that every rank was started, and that they reach each other's addresses",
                source="--probe",
                evidence="L3",
            )
        )
    return collective


def _this_machine(output: "Output", collective: "Collective | None") -> "Capture":
    from exo_cli.rdma.collect import collect

    output.detail("asking the system")
    attempt = None
    if collective is not None and collective.backend == "jaccl" and collective.error is not None:
        attempt = f"[jaccl] {collective.error.removeprefix('[jaccl]').strip()}"
    return collect(_host(), attempt=attempt)


def _host() -> str:
    return socket.gethostname().split(".")[0] or "this-machine"


def _ask_all(session: Session, *, insecure: bool) -> "tuple[tuple[Capture, ...], list[Finding]]":
    """What every node says; one that is silent is a finding, with the reason that macOS may have."""
    import asyncio

    from exo_cli.cluster.advice import names
    from exo_cli.cluster.general import denied
    from exo_cli.cluster.pairs import split_endpoint
    from exo_cli.cluster.remote import shards
    from exo_cli.cluster.topology_file import TopologyFile
    from exo_cli.rdma.remote import Target, ask
    from exo_cli.trust.keyring import KeyringSource

    topology = TopologyFile(session.topology).read()
    called = names(topology)
    targets = [Target(called[node.id], *split_endpoint(node.endpoint)) for node in shards(topology)]
    if not targets:
        raise NotFound(
            "no node is known that could be asked",
            hint="exo serve-shard on every machine, then exo discover, then this again.",
        )

    async def run() -> "tuple[tuple[Capture, ...], list[Finding]]":
        captures, silent = await ask(targets, KeyringSource(insecure).current())
        reasons = [await denied(each.name, each.host, each.port) for each in silent]
        return tuple(captures), [*silent.values(), *(reason for reason in reasons if reason is not None)]

    session.output.detail(f"asking {len(targets)} nodes")
    return asyncio.run(run())


def _general(session: Session) -> "list[Finding]":
    """What users of any cluster hit: the chapter that discover --explain has, too."""
    from exo_cli.cluster.general import cluster_findings, port_findings
    from exo_cli.cluster.topology_file import TopologyFile

    return [*cluster_findings(TopologyFile(session.topology).read()), *port_findings()]


def _show(output: "Output", check: "RdmaCheck") -> None:
    if output.json:
        from exo_cli.schemas.events import line

        output.json_line(line(check))
    elif output.quiet:
        for finding in check.findings:
            if finding.level in ("failure", "warning"):
                output.line(finding.id)
    else:
        from exo_cli.views import doctor as view

        if output.terminal:
            console = output.console()
            output.draw(view.render(check, unicode=output.unicode, width=console.width))
        else:
            output.rows(*view.rows(check))
