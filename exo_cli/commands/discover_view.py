"""What `discover` shows: a table, a picture, and both again and again under --watch."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from exo_cli.output import Output, visible

if TYPE_CHECKING:
    from typing import Self

    from rich.console import RenderableType

    from exo_cli.cluster.membership import Change
    from exo_cli.errors import ExoError
    from exo_cli.schemas.topology import Topology

_KEPT = 5


def picture(topology: "Topology") -> str:
    """The topology as SVG."""
    from exo_cli.views.topology_svg import svg

    return svg(topology, now_unix_ms=_now_ms())


def table(output: Output, topology: "Topology", width: int) -> "RenderableType":
    """The topology as a person looks at it."""
    from exo_cli.cluster.advice import advise
    from exo_cli.cluster.facts import host_id
    from exo_cli.views.topology_table import render

    return render(
        topology,
        width=width,
        unicode=output.unicode,
        now_unix_ms=_now_ms(),
        self_host=host_id(),
        advice=advise(topology),
    )


class Screen:
    """Takes changes and topologies, and shows them as they come: live on a terminal, as lines elsewhere."""

    def __init__(self, output: Output, *, on_closed: Callable[[], None] = lambda: None) -> None:
        self.closed: OSError | None = None
        """Why nothing can be shown any more: the reader went away."""
        self._on_closed = on_closed
        self._output = output
        self._problem: str | None = None
        self._live: Any = None
        self._news: list[str] = []
        self._shown = b""
        self._last: Topology | None = None

    def __enter__(self) -> "Self":
        output = self._output
        if output.terminal and not output.json:
            from rich.live import Live

            self._live = Live(console=output.console(), auto_refresh=False, vertical_overflow="crop")
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def change(self, change: "Change") -> None:
        """What happened to a node."""
        self._show(lambda: self._change(change))

    def topology(self, topology: "Topology") -> None:
        """The file as it stands; drawn when something but its generation changed."""
        self._show(lambda: self._topology(topology))

    def problem(self, problem: "ExoError | None") -> None:
        """Why what is shown could not be kept; said once."""
        text = problem.message if problem is not None else None
        if text == self._problem:
            return
        self._problem = text
        if text is not None and self._live is None:
            self._output.warning(text)
        elif self._last is not None:
            last = self._last
            self._show(lambda: self._draw(last))

    def _show(self, show: Callable[[], None]) -> None:
        # We are called from sockets and tasks: an error would end those and not the verb.
        if self.closed is not None:
            return
        try:
            show()
        except OSError as error:
            self.closed = error
            self._on_closed()

    def _change(self, change: "Change") -> None:
        output = self._output
        clock, name = time.strftime("%H:%M:%S"), visible(change.peer.name)
        if output.json:
            from exo_cli.schemas.events import NodeLine, line

            output.json_line(
                line(NodeLine(change=change.what, id=change.peer.node_id, name=change.peer.name))
            )
        elif self._live is None:
            output.line("\t".join((clock, change.what, change.peer.node_id, name)))
        else:
            self._news = [*self._news[1 - _KEPT :], f"{clock}  {name}  {change.what}"]
            if self._last is not None:
                self._draw(self._last)

    def _topology(self, topology: "Topology") -> None:
        import msgspec

        now = msgspec.json.encode(msgspec.structs.replace(topology, generation=0))
        if now == self._shown:
            return
        self._shown, self._last = now, topology
        if self._output.json:
            from exo_cli.schemas.events import TopologyLine, line

            self._output.json_line(line(TopologyLine(topology=topology)))
        elif self._live is not None:
            self._draw(topology)

    def _draw(self, topology: "Topology") -> None:
        from rich.console import Group
        from rich.text import Text

        width = self._live.console.width
        news = [Text(each[:width], style="dim") for each in self._news]
        if self._problem is not None:
            news.append(Text(visible(f"not kept: {self._problem}")[:width], style="yellow"))
        self._live.update(Group(table(self._output, topology, width), *news), refresh=True)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
