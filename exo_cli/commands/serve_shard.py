"""`exo serve-shard`: this machine as a node of the cluster."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from exo_cli.commands.options import (
    INSECURE_WARNING,
    InsecureFlag,
    InterfaceOption,
    ListenOption,
    NameOption,
    NoInterfaceOption,
    PeerOption,
    peers,
    port_range,
    seconds_or_forever,
    size_bytes,
)
from exo_cli.commands.session import Session, verb

if TYPE_CHECKING:
    from exo_cli.cluster.service import Diagnose
    from exo_cli.shard.ahead import Ahead
    from exo_cli.trust.keyring import KeyringSource


def register(app: typer.Typer) -> None:
    app.command("serve-shard")(serve_shard)


KEPT_VARIABLES = (
    "XDG_CONFIG_HOME",
    "XDG_STATE_HOME",
    "XDG_CACHE_HOME",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
)
"""What says where a node's key, state and models lie: at boot nobody's shell has set them."""


@verb
def serve_shard(
    session: Session,
    context: typer.Context,
    name: NameOption = None,
    listen: ListenOption = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            "--plan",
            metavar="PATH",
            help="Load this node's stages of a plan.json at once, and keep them loaded.",
        ),
    ] = None,
    numerics: Annotated[
        Literal["exact", "fast"] | None,
        typer.Option(
            "--numerics",
            envvar="EXO_NUMERICS",
            help="How the stages of --plan compute; say the same on all of its nodes.",
            show_default="as the plan says, and exact if it does not",
        ),
    ] = None,
    peer: PeerOption = None,
    interface: InterfaceOption = None,
    no_interface: NoInterfaceOption = None,
    ready_file: Annotated[
        Path | None,
        typer.Option(
            "--ready-file",
            metavar="PATH",
            help="Written when the node accepts work and has what --plan gives it; removed when it ends.",
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            envvar="EXO_MEMORY",
            metavar="SIZE",
            help="The most that models may take, like 24GB or 24GiB; else what is free.",
        ),
    ] = None,
    data_ports: Annotated[
        str,
        typer.Option(
            "--data-ports",
            envvar="EXO_DATA_PORTS",
            metavar="A-B",
            help="TCP ports for the traffic of loaded models, two for each stage; 0 is any free one.",
        ),
    ] = "0",
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads",
            envvar="EXO_THREADS",
            min=1,
            max=1024,
            metavar="N",
            help="Threads that each stage computes with; else the cores, shared among this machine's stages.",
        ),
    ] = None,
    cores: Annotated[
        str | None,
        typer.Option(
            "--cores",
            envvar="EXO_CORES",
            metavar="LIST",
            help="The cores that stages compute on, like 0-3,8; Linux only.",
        ),
    ] = None,
    keep_alive: Annotated[
        str | None,
        typer.Option(
            "--keep-alive",
            envvar="EXO_KEEP_ALIVE",
            metavar="DURATION",
            help="Let a model go that was idle for so long: 30s, 10m, 0 (as soon as it is idle), forever.",
            show_default="10m, and forever with --plan",
        ),
    ] = None,
    no_measure: Annotated[
        bool,
        typer.Option(
            "--no-measure",
            envvar="EXO_NO_MEASURE",
            help="Do not time this node's engine while it is idle; forecasts then guess its speed.",
        ),
    ] = False,
    print_unit: Annotated[
        Literal["systemd", "launchd"] | None,
        typer.Option(
            "--print-unit",
            help="Print a unit that starts this node at boot, with the other options given here, and end.",
        ),
    ] = None,
    insecure: InsecureFlag = False,
) -> int:
    """Announce this machine to the cluster and wait for work.

    \b
    Examples:
      exo serve-shard
      exo serve-shard --name studio --listen 0.0.0.0:52416
      exo serve-shard --memory 24GiB --data-ports 52500-52520
      exo serve-shard --name studio --plan plan.json --ready-file ready.json &
      exo serve-shard --print-unit systemd > ~/.config/systemd/user/exo-serve-shard.service

    `exo run` loads models here; one that nobody asks for 10 minutes is let go. A plan names its nodes
    by id or by name; its weights come from this machine, else from a neighbour that has them. A firewall
    has to let in TCP and UDP 52416, and the data ports.

    Without a cluster key the node is for this machine only and listens on loopback; `exo key new`
    makes a key, for nodes started after it.

    SIGTERM lets requests end that run, for 30 seconds at most, and takes no new ones; Ctrl-C, or a
    second signal, does not wait.
    """
    import asyncio

    from exo_cli.cluster.pairs import is_unix
    from exo_cli.shard.cores import parse_cores

    is_private = is_unix(listen or "")
    its_cores = frozenset() if cores is None else parse_cores(cores, "--cores")

    async def node(engine: "Ahead | None") -> int:
        from dataclasses import replace

        from exo_cli import config
        from exo_cli.cluster.interfaces import Choice, check_choice
        from exo_cli.cluster.node import NodeOptions
        from exo_cli.drive.plans import of_this_machine, read_plan
        from exo_cli.fetch.stores import Stores
        from exo_cli.schemas.events import ReadyLine, StoppedLine, line
        from exo_cli.shard.server import ShardOptions, serve
        from exo_cli.trust.keyring import KeyringSource

        output = session.output
        choice = Choice(tuple(interface or ()), tuple(no_interface or ()))
        check_choice(choice)
        options = NodeOptions(
            role="shard",
            nodes_dir=config.nodes_dir(),
            topology=session.topology,
            name=name,
            listen=listen,
            choice=choice,
            peers=peers(peer),
        )
        shard = ShardOptions(
            weights_dir=config.cache_dir() / "weights",
            memory_bytes=None if memory is None else size_bytes(memory, "--memory"),
            data_ports=port_range(data_ports, "--data-ports", least=2),
            threads=threads,
            cores=its_cores,
            keep_alive_s=None if keep_alive is None else seconds_or_forever(keep_alive, "--keep-alive"),
            measures=not no_measure,
            numerics=numerics,
            # A driver's own node is told what to load; a plan in the settings is for the others.
            plan=None if plan is None or is_private else read_plan(plan),
        )
        if print_unit is not None:
            output.write(_unit(print_unit, context))
            return 0
        if shard.plan is not None:
            shard = replace(shard, plan=of_this_machine(shard.plan, Stores(shard.weights_dir)))
        source = KeyringSource(insecure)
        if insecure:
            output.warning(INSECURE_WARNING)
        shard = replace(shard, diagnose=_doctor(os.environ.get("EXO_DIAGNOSE_FROM"), source))

        def ready(event: ReadyLine) -> None:
            if output.json:
                output.line(line(event))
            ring = source.current()
            whom = "this machine only; exo key new and a restart open it to others"
            if ring.kind != "local":
                whom = f"cluster {ring.primary.fingerprint}"
            output.note(f"node {event.name} listens on {event.endpoint} ({whom})")

        stopped, code = await serve(
            options,
            shard,
            source,
            on_ready=ready,
            ready_file=ready_file,
            warn=output.warning,
            note=output.note,
            ahead=engine,
        )
        if output.json:
            output.line(line(StoppedLine(reason=stopped.name)))
        output.note(f"stopped by {stopped.name}")
        return code

    async def private() -> int:
        # Somebody has started us for a stage: its engine starts beside us, before we import the rest.
        from exo_cli.shard.ahead import ahead, alone

        async with ahead(alone(threads, its_cores)) as engine:
            return await node(engine)

    return asyncio.run(private() if is_private and print_unit is None else node(None))


def _doctor(trial: str | None, source: "KeyringSource") -> "Diagnose":
    """What answers Diagnose: this machine, or the capture in a directory where somebody tries things out."""
    from exo_cli.errors import UsageProblem
    from exo_cli.rdma.capture import Capture, read
    from exo_cli.rdma.collect import collect
    from exo_cli.rdma.remote import Answerer

    if not trial:
        return Answerer(lambda: collect("this node"))
    if source.current().kind != "local":
        raise UsageProblem(
            "EXO_DIAGNOSE_FROM is for trials on one machine, and there is a cluster key",
            hint="Unset it: a node of a cluster says what its own machine has.",
        )

    def capture() -> Capture:
        found = read(Path(trial))
        return found[0]

    return Answerer(capture)


def _unit(kind: str, context: typer.Context) -> str:
    """A unit that starts this very node, whatever its settings came from."""
    from exo_cli.commands.itself import given, program
    from exo_cli.config import PROJECT_FILE
    from exo_cli.shard.server import DRAIN_S
    from exo_cli.shard.units import Unit, launchd, systemd

    unit = Unit(
        words=[*program(), "serve-shard", *given(context, but="print_unit")],
        home=Path.home(),
        # Settings of a project are read where the node runs.
        directory=Path.cwd() if PROJECT_FILE.exists() else None,
        stop_s=int(DRAIN_S) + 15,
        environment={name: os.environ[name] for name in KEPT_VARIABLES if os.environ.get(name)},
    )
    return systemd(unit) if kind == "systemd" else launchd(unit)
