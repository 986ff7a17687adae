"""What `discover --watch` shows: a live table on a terminal, lines elsewhere."""

import time
from typing import TYPE_CHECKING, Any, Self

from exo_cli.output import Output

if TYPE_CHECKING:
    from exo_cli.cluster.membership import Change
    from exo_cli.schemas.topology import Topology

_KEPT = 5


class Screen:
    """Takes changes and topologies, and shows them as they come."""

    def __init__(self, output: Output, format_: str) -> None:
        self._output = output
        self._svg = format_ == "svg"
        self._live: Any = None
        self._news: list[str] = []
        self._shown: bytes = b""
        self._last: Topology | None = None

    def __enter__(self) -> Self:
        output = self._output
        if output.terminal and not output.json and not self._svg:
            from rich.live import Live

            self._live = Live(
                console=output.console(), auto_refresh=False, screen=False, vertical_overflow="crop", transient=False
            )
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def change(self, change: "Change") -> None:
        output = self._output
        clock = time.strftime("%H:%M:%S")
        name = change.peer.name
        if output.json:
            from exo_cli.schemas.events import NodeLine, line

            output.line(line(NodeLine(change=change.what, id=change.peer.node_id, name=name)))
        elif self._live is not None:
            self._news = [*self._news[1 - _KEPT :], f"{clock}  {name}  {change.what}"]
            if self._last is not None:
                self._draw(self._last)
        elif not self._svg:
            output.rows_without_header([(clock, change.what, change.peer.node_id, name)])

    def topology(self, topology: "Topology") -> None:
        import msgspec

        output = self._output
        bytes_now = msgspec.json.encode(msgspec.structs.replace(topology, generation=0))
        if bytes_now == self._shown:
            return
        self._shown = bytes_now
        self._last = topology
        if output.json:
            from exo_cli.schemas.events import TopologyLine, line

            output.line(line(TopologyLine(topology=topology)))
        elif self._live is not None:
            self._draw(topology)
        elif self._svg:
            from exo_cli.views.topology_svg import svg

            output.write(svg(topology, now_unix_ms=time.time_ns() // 1_000_000))

    def _draw(self, topology: "Topology") -> None:
        from rich.console import Group
        from rich.text import Text

        from exo_cli.commands.discover import table
        from exo_cli.output import visible

        width = self._live.console.width
        news = [Text(visible(each)[:width], style="dim") for each in self._news]
        self._live.update(Group(table(self._output, topology, width), *news), refresh=True)
