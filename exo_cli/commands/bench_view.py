"""What `exo bench` says while it works."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from exo_cli.commands.run_view import Work
from exo_cli.output import Output

if TYPE_CHECKING:
    from exo_cli.bench.links import Found
    from exo_cli.bench.load import Round
    from exo_cli.drive.choose import Choice

_BAR = "measuring"


@dataclass(slots=True)
class Measuring:
    """A bar for the rounds, and words about what comes before and after them."""

    output: Output
    alone: bool = False
    """Somebody asked for this machine's own node."""

    def chosen(self, choice: "Choice") -> None:
        if self.alone:
            self.output.note("it runs on this machine's own node")
        else:
            Work(self.output).chosen(choice)

    def round(self, round_: "Round", done: int, total: int) -> None:
        spot = round_.spot
        what = "warm-up" if round_.warmup else "repeat"
        depth = f", depth {spot.depth}" if spot.depth else ""
        self.output.progress(_BAR, done, total, f"{what}, {spot.concurrency} at a time{depth}")
        took_s = round_.ended_s - round_.began_s
        self.output.detail(f"{done} of {total}: {what}, {spot.concurrency} at a time{depth}, {took_s:.2f} s")

    def found(self, found: "Found") -> None:
        if len(found.nodes) > 1:
            names = ", ".join(sorted(node.name for node in found.nodes))
            self.output.note(f"between {names}")
        for each in found.unreached:
            self.output.note(f"{each.peer.name} does not answer: {each.failure.message}")

    def progress(self, done: int, total: int) -> None:
        self.output.progress(_BAR, done, total, f"{done} of {total}")

    def gate(self) -> None:
        self.output.detail("checking the tokens")
