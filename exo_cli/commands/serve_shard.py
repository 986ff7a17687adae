"""`exo serve-shard`: this machine as a node of the cluster."""

from pathlib import Path
from typing import Annotated

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
    size_bytes,
)
from exo_cli.commands.session import Session, verb


def register(app: typer.Typer) -> None:
    app.command("serve-shard")(serve_shard)


@verb
def serve_shard(
    session: Session,
    name: NameOption = None,
    listen: ListenOption = None,
    peer: PeerOption = None,
    interface: InterfaceOption = None,
    no_interface: NoInterfaceOption = None,
    ready_file: Annotated[
        Path | None,
        typer.Option(
            "--ready-file", metavar="PATH", help="Written when the node accepts work, removed when it ends."
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
            help="TCP ports for the traffic of loaded models, one each; 0 is any free one.",
        ),
    ] = "0",
    insecure: InsecureFlag = False,
) -> int:
    """Announce this machine to the cluster and wait for work.

    \b
    Examples:
      exo serve-shard
      exo serve-shard --name studio --listen 0.0.0.0:52416
      exo serve-shard --memory 24GiB --data-ports 52500-52520
      exo serve-shard --ready-file ready.json &

    `exo run` loads models here; one that nobody asks for 10 minutes is let go. A firewall has to let in
    TCP and UDP 52416, and the data ports.

    Without a cluster key the node is for this machine only and listens on loopback; `exo key new`
    makes a key, for nodes started after it. Ctrl-C and SIGTERM say goodbye to the others and end it.
    """
    import asyncio

    from exo_cli import config
    from exo_cli.cluster.interfaces import Choice, check_choice
    from exo_cli.cluster.node import NodeOptions
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
        data_ports=port_range(data_ports, "--data-ports"),
    )
    source = KeyringSource(insecure)
    if insecure:
        output.warning(INSECURE_WARNING)

    def ready(event: ReadyLine) -> None:
        if output.json:
            output.line(line(event))
        ring = source.current()
        whom = "this machine only; exo key new and a restart open it to others"
        if ring.kind != "local":
            whom = f"cluster {ring.primary.fingerprint}"
        output.note(f"node {event.name} listens on {event.endpoint} ({whom})")

    stopped, code = asyncio.run(
        serve(options, shard, source, on_ready=ready, ready_file=ready_file, warn=output.warning)
    )
    if output.json:
        output.line(line(StoppedLine(reason=stopped.name)))
    output.note(f"stopped by {stopped.name}")
    return code
