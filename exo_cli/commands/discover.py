"""`exo discover`: who is there, how fast, over which links; and why somebody is not."""

import re
from contextlib import suppress
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
    seconds,
)
from exo_cli.commands.session import Session, verb
from exo_cli.errors import Exit, TryAgain, UsageProblem

if TYPE_CHECKING:
    import asyncio

    from exo_cli.cluster.interfaces import Choice
    from exo_cli.cluster.lookout import Lookout
    from exo_cli.cluster.membership import Change
    from exo_cli.schemas.topology import Topology
    from exo_cli.trust.keyring import KeyringSource


def register(app: typer.Typer) -> None:
    app.command("discover")(discover)


@verb
def discover(
    session: Session,
    context: typer.Context,
    for_: Annotated[
        str,
        typer.Option("--for", envvar="EXO_FOR", metavar="TIME", help="How long to listen before measuring."),
    ] = "3s",
    wait: Annotated[
        str | None,
        typer.Option("--wait", metavar="nodes=N", help="Wait until so many nodes are ready, then measure."),
    ] = None,
    timeout: Annotated[
        str, typer.Option("--timeout", metavar="TIME", help="How long --wait may take; then exit 75.")
    ] = "60s",
    watch: Annotated[
        bool, typer.Option("--watch", help="Stay, and show what changes; Ctrl-C ends it.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say why a node is not seen, and what to do.")
    ] = False,
    announce: Annotated[
        bool,
        typer.Option(
            "--announce", help="Do not look; announce this machine, without taking work, until Ctrl-C."
        ),
    ] = False,
    peer: PeerOption = None,
    interface: InterfaceOption = None,
    no_interface: NoInterfaceOption = None,
    format_: Annotated[
        Literal["auto", "table", "tsv", "svg"],
        typer.Option("--format", help="auto is a table on a terminal and tab-separated lines elsewhere."),
    ] = "auto",
    measure: Annotated[
        Literal["auto", "always", "never"],
        typer.Option(
            "--measure", help="Measure links: those without a figure of the last 10 minutes, all, or none."
        ),
    ] = "auto",
    name: NameOption = None,
    listen: ListenOption = None,
    insecure: InsecureFlag = False,
) -> int:
    """Find the nodes, measure their links, write the topology file.

    \b
    Examples:
      exo discover
      exo discover --wait nodes=3 --timeout 60s
      exo discover --watch
      exo discover --peer 10.8.0.5 --explain
      exo discover --json | jq '.links[] | {from, to, bytes_per_s}'

    Nodes on the same network are found without configuration; --peer asks a host that broadcasts do
    not reach. Finding nobody is no error: --wait makes it one.
    """
    import asyncio

    from exo_cli.cluster.interfaces import Choice, check_choice
    from exo_cli.trust.keyring import KeyringSource

    output = session.output
    listen_s = seconds(for_, "--for")
    nodes = _nodes_wanted(wait)
    timeout_s = seconds(timeout, "--timeout")
    if format_ == "svg" and output.json:
        raise UsageProblem("--format svg is a picture, --json is text", hint="Leave one of them out.")
    _refuse_mixtures(context)
    choice = Choice(tuple(interface or ()), tuple(no_interface or ()))
    check_choice(choice)
    source = KeyringSource(insecure)
    if insecure:
        output.warning(INSECURE_WARNING)
    if announce:
        return _announce(session, source, choice, peer, name, listen)
    lookout_run = _Run(session, source, choice, peer, measure, format_)
    if watch:
        return asyncio.run(lookout_run.watch())
    if explain:
        return asyncio.run(lookout_run.explain(listen_s))
    return asyncio.run(lookout_run.once(listen_s, nodes, timeout_s))


# What each way to look cannot use; an option that was typed is never ignored.
_WAYS = {
    "--explain": ("--watch", "--announce", "--wait", "--measure", "--format"),
    "--watch": ("--announce", "--wait", "--for", "--format"),
    "--announce": ("--wait", "--for", "--measure", "--format"),
    "--wait": ("--for",),
}
_NEEDS = {"--timeout": "--wait", "--name": "--announce", "--listen": "--announce"}


def _refuse_mixtures(context: typer.Context) -> None:
    """Options that do not go together. What comes from the environment or a file is for other calls too."""
    typed = {
        max(parameter.opts, key=len)
        for parameter in context.command.params
        if parameter.name
        and getattr(context.get_parameter_source(parameter.name), "name", "") == "COMMANDLINE"
    }
    for way, others in _WAYS.items():
        for other in others:
            if way in typed and other in typed:
                raise UsageProblem(f"{way} and {other} do not go together", hint="Leave one of them out.")
    for option, needed in _NEEDS.items():
        if option in typed and needed not in typed:
            raise UsageProblem(
                f"{option} means nothing without {needed}", hint=f"Add {needed}, or leave it out."
            )


def _nodes_wanted(wait: str | None) -> int | None:
    if wait is None:
        return None
    match = re.fullmatch(r"nodes=(\d{1,4})", wait)
    if match is None:
        raise UsageProblem(f"'{wait}' is nothing to wait for", hint="Say --wait nodes=3.")
    return int(match[1])


class _Run:
    """One call of discover that looks, as opposed to announcing."""

    def __init__(
        self,
        session: Session,
        source: "KeyringSource",
        choice: "Choice",
        asked: list[str] | None,
        measure: str,
        format_: str,
    ) -> None:
        from exo_cli import config
        from exo_cli.cluster.lookout import LookoutOptions

        self._output = session.output
        self._source = source
        self._measure = measure
        self._format = format_
        self._path = session.topology
        self._options = LookoutOptions(
            nodes_dir=config.nodes_dir(),
            topology=session.topology,
            choice=choice,
            peers=peers(asked),
        )

    async def once(self, listen_s: float, nodes: int | None, timeout_s: float) -> int:
        from exo_cli.cluster.lookout import Lookout

        lookout = Lookout(self._options, self._source, on_change=self._detail)
        missing: TryAgain | None = None
        async with lookout.running():
            if nodes is None:
                await lookout.look(listen_s)
            else:
                try:
                    await lookout.wait_for(nodes, timeout_s)
                except TryAgain as failure:
                    missing = failure
            await self._measure_links(lookout)
        self._show(lookout.survey.topology, kept=lookout.survey.problem is None)
        self._tell(lookout)
        if missing is not None:
            raise missing
        if lookout.survey.problem is not None:
            raise lookout.survey.problem
        return Exit.OK

    async def explain(self, listen_s: float) -> int:
        import asyncio

        import msgspec

        from exo_cli.cluster import explain
        from exo_cli.cluster.lookout import Lookout
        from exo_cli.rdma.collect import collect
        from exo_cli.rdma.machine import TEXTS, check_machine

        lookout = Lookout(self._options, self._source, on_change=self._detail)
        async with lookout.running():
            await lookout.look(listen_s)
            explanation = await explain.explain(lookout)
        # A chapter that rdma-check has, too: what this machine itself is like as a node.
        capture = await asyncio.to_thread(collect, "this machine", only=TEXTS)
        explanation = msgspec.structs.replace(
            explanation, findings=(*explanation.findings, *check_machine(capture))
        )
        output = self._output
        if output.json:
            from exo_cli.schemas.events import line

            output.line(line(explanation))
            return Exit.OK
        from exo_cli.views import explanation as view

        if output.terminal:
            console = output.console()
            output.draw(view.render(explanation, unicode=output.unicode, width=console.width))
        else:
            output.rows(*view.rows(explanation))
        return Exit.OK

    async def watch(self) -> int:
        """Follow what happens until Ctrl-C."""
        import asyncio
        import os
        import signal

        from exo_cli.cluster.lookout import Lookout
        from exo_cli.commands.discover_view import Screen

        stop = asyncio.Event()
        got: list[signal.Signals] = []

        def received(number: signal.Signals) -> None:
            if got:
                os._exit(Exit.INTERRUPTED if number == signal.SIGINT else Exit.TERMINATED)
            got.append(number)
            stop.set()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, received, number)
        with Screen(self._output, on_closed=stop.set) as screen:
            lookout = Lookout(
                self._options, self._source, on_change=screen.change, on_topology=screen.topology
            )
            async with lookout.running():
                screen.topology(lookout.survey.topology)
                while not stop.is_set():
                    with suppress(TimeoutError):
                        await asyncio.wait_for(stop.wait(), 2.0)
                    screen.problem(lookout.survey.problem)
                    if not stop.is_set() and self._measure != "never":
                        await self._until(stop, lookout)
        if screen.closed is not None:
            raise screen.closed
        return Exit.INTERRUPTED if got == [signal.SIGINT] else Exit.OK

    async def _until(self, stop: "asyncio.Event", lookout: "Lookout") -> None:
        """Measure what has no figure, unless we are told to stop."""
        import asyncio

        measuring = asyncio.create_task(lookout.survey.measure())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({measuring, stopping}, return_when=asyncio.FIRST_COMPLETED)
        for task in (measuring, stopping):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _measure_links(self, lookout: "Lookout") -> None:
        if self._measure == "never":
            return

        def progress(done: int, total: int) -> None:
            if total and done == 0:
                self._output.detail(f"measuring {total} links")

        await lookout.survey.measure(fresh=self._measure == "always", on_progress=progress)

    def _show(self, topology: "Topology", *, kept: bool) -> None:
        from exo_cli.commands.discover_view import picture, table

        output = self._output
        if output.json:
            from exo_cli.cluster.topology_file import TopologyFile, encode

            # Exactly the file, also where somebody else has laid it out.
            data = TopologyFile(self._path).read_bytes() if kept else encode(topology)
            output.write(data.decode())
        elif self._format == "svg":
            output.write(picture(topology))
        elif output.quiet and self._format == "auto":
            for node in topology.nodes:
                if node.state == "ready":
                    output.line(node.id)
        elif self._format == "table" or (self._format == "auto" and output.terminal):
            output.draw(table(output, topology, output.console().width))
        else:
            from exo_cli.views.topology_rows import rows

            output.rows(*rows(topology))

    def _tell(self, lookout: "Lookout") -> None:
        """What is not in the table: who was heard and not reached, and strangers."""
        output = self._output
        for each in lookout.survey.unreached.values():
            output.warning(f"{each.peer.name} is heard but not reached: {each.failure.message}")
        for change in lookout.doubles:
            output.warning(f"two nodes have the id {change.peer.node_id} ({change.peer.name})")
        if lookout.station.strangers:
            machines = len({stranger.address for stranger in lookout.station.strangers})
            who = "1 machine that is" if machines == 1 else f"{machines} machines that are"
            output.note(f"heard {who} not of this cluster; exo discover --explain says more")
        if lookout.source.current().kind == "local":
            output.hint("only this machine was looked at; exo key new makes a cluster of several")

    def _detail(self, change: "Change") -> None:
        self._output.detail(f"{change.peer.name}: {change.what}")


def _announce(
    session: Session,
    source: "KeyringSource",
    choice: "Choice",
    asked: list[str] | None,
    name: str | None,
    listen: str | None,
) -> int:
    import asyncio

    from exo_cli import config
    from exo_cli.cluster.lifecycle import double_id, run_node
    from exo_cli.cluster.node import NodeHost, NodeOptions
    from exo_cli.schemas.events import ReadyLine, StoppedLine, line

    output = session.output
    options = NodeOptions(
        role="announce",
        nodes_dir=config.nodes_dir(),
        topology=session.topology,
        name=name,
        listen=listen,
        choice=choice,
        peers=peers(asked),
    )

    def ready(event: ReadyLine) -> None:
        if output.json:
            output.line(line(event))
        output.note(f"announcing {event.name} at {event.endpoint}; Ctrl-C ends it")

    def changed(change: "Change") -> None:
        output.detail(f"{change.peer.name}: {change.what}")
        if change.what == "duplicate-id":
            output.warning(double_id(change))

    host = NodeHost(options, source, on_change=changed)
    stopped, code = asyncio.run(run_node(host, source, on_ready=ready, warn=output.warning))
    if output.json:
        output.line(line(StoppedLine(reason=stopped.name)))
    return code
