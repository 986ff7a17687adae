"""What `exo fetch --plan` shows: how far each node is, and what came to it from where."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from exo_cli.commands.fetch_view import Bars, event
from exo_cli.errors import ExoError
from exo_cli.output import Output

if TYPE_CHECKING:
    from exo_cli.fetch.spread import Target
    from exo_cli.wire import exo_pb2 as pb


@dataclass(slots=True)
class NodesView:
    """One fetch of several nodes."""

    output: Output
    model: str
    _bars: dict[str, Bars] = field(default_factory=dict)
    _came: dict[str, dict[str, int]] = field(default_factory=dict)

    def told(self, target: "Target", said: "pb.FetchEvent") -> None:
        """One event of one node."""
        from exo_cli.fetch.meter import Moved

        bars = self._bars.setdefault(target.name, Bars(self.output, target.name))
        if said.error:
            bars.note(f"{target.name}: {said.error}")
        elif said.moved:
            self._came.setdefault(target.name, {})[said.source] = said.moved
        elif not said.finished:
            moved = Moved(
                self.model, said.path, said.source, said.all_done, said.all_total, said.done, said.total
            )
            bars.moved(moved)

    def say(
        self,
        commit: str,
        digest: str,
        targets: "Sequence[Target]",
        results: "Sequence[pb.FetchEvent | ExoError]",
        elapsed_s: float,
    ) -> None:
        """The last words; raises the first failure, after all that worked was said."""
        from exo_cli.schemas.fetch import Fetched
        from exo_cli.views.figures import bytes_text

        failed: list[ExoError] = []
        for each, result in zip(targets, results, strict=True):
            name = each.name
            if isinstance(result, ExoError):
                failed.append(result)
                continue
            came = {source: size for source, size in self._came.get(name, {}).items() if size}
            if self.output.json:
                said = Fetched(
                    node=name,
                    model=self.model,
                    revision=commit,
                    digest=digest,
                    path=result.path,
                    layers=each.layers,
                    total_bytes=sum(span.size for span in each.needs),
                    by_source=came,
                    elapsed_s=round(elapsed_s, 3),
                )
                event(self.output, said)
            else:
                text = ", ".join(f"{bytes_text(size)} from {source}" for source, size in came.items())
                self.output.line(f"{name}: {text or 'everything was there'}")
        for error in failed[1:]:
            self.output.warning(error.message)
        if failed:
            raise failed[0]
