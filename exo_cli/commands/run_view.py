"""What `exo run` shows: the text as it comes, events, and a line of figures."""

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from exo_cli.output import Output

if TYPE_CHECKING:
    from exo_cli.commands.fetch_view import Bars
    from exo_cli.drive.answer import Answer, Piece
    from exo_cli.drive.choose import Choice
    from exo_cli.drive.load import LoadedStage, Progress
    from exo_cli.drive.requests import Reason
    from exo_cli.fetch.meter import Moved


def harmless(text: str) -> str:
    """A model's text for a terminal: it may break lines, and do nothing else to the screen."""
    return "".join(char if char in "\n\t" or not _controls(char) else f"\\x{ord(char):02x}" for char in text)


def _controls(char: str) -> bool:
    return char < " " or "\x7f" <= char <= "\x9f"


_DOING = {
    "fetch": "fetching weights",
    "read": "reading weights",
    "make": "making weights",
    "compile kernels": "compiling kernels for this processor, some seconds, once",
    "pack": "packing weights",
    "warm-up": "warming up",
}


_ONCE = "compile kernels"
"""Takes long and has no measure: said at once instead of drawn."""


@dataclass(slots=True)
class Work:
    """What goes on before the first token, told briefly."""

    output: Output
    _numerics: str | None = None
    _said: set[str] = field(default_factory=set)
    _bars: "Bars | None" = None

    def chosen(self, choice: "Choice") -> None:
        if choice.silent:
            self.output.note(f"no answer from {', '.join(choice.silent)}")
        if choice.alone:
            self.output.note("no node of the cluster answers; it runs on this machine alone")
        elif choice.planned:
            self.output.note(f"as the plan says: layers {choice.where()}")
        else:
            self.output.note(choice.plan.reason)

    def recovered(self, said: str) -> None:
        # Between two words of the answer: on a terminal the line that stands there ends first.
        if self.output.stdout_is_a_terminal:
            self.output.aside("\n")
        self.output.note(said)

    def loaded(self, stages: "tuple[LoadedStage, ...]") -> None:
        from exo_cli.drive.numerics import fell_back, ran

        short, before = fell_back(stages), self._numerics
        self._numerics = ran(stages)
        if short is not None and short not in self._said:
            self._said.add(short)
            self.output.note(short)
        elif before not in (None, self._numerics):
            self.output.note(f"from here on it computes {self._numerics}, not {before}")

    def downloaded(self, moved: "Moved") -> None:
        from exo_cli.commands.fetch_view import Bars

        if not self.output.json:
            # Lines of JSON would stand among those of the answer.
            self._bars = self._bars or Bars(self.output)
            self._bars.moved(moved)

    def progress(self, progress: "Progress") -> None:
        from exo_cli.views.figures import bytes_text

        doing, done, total = progress.doing, progress.done, progress.total
        what = f"{progress.node}: {_DOING.get(doing, doing)}"
        if what not in self._said:
            self._said.add(what)
            (self.output.note if doing == _ONCE else self.output.detail)(what)
        if doing == _ONCE:
            return
        figures = {
            "fetch": f"{bytes_text(done)} of {bytes_text(total)}",
            "read": f"{done} of {total} layers",
            "make": f"{done} of {total} layers",
            "pack": f"{done} of {total} layers",
        }
        self.output.progress(what, done, total, figures.get(doing, ""))


@dataclass(slots=True)
class Show:
    """One answer on its way to the reader."""

    output: Output
    began_s: float = field(default_factory=time.monotonic)
    _first_s: float | None = None
    _last_s: float = 0.0
    _tokens: int = 0
    _at_line_start: bool = True
    _thinking: bool = False

    def piece(self, piece: "Piece") -> None:
        self._last_s = time.monotonic()
        if self._first_s is None:
            self._first_s = self._last_s
        self._tokens += 1
        if self.output.json:
            from exo_cli.schemas.events import TokenLine, line

            self.output.json_line(line(TokenLine(id=piece.token.id, text=piece.text)))
            return
        if piece.thinking:
            self._thinking = True
            self.output.aside(harmless(piece.thinking))
        if piece.text:
            if self._thinking:
                self._thinking = False
                self.output.aside("\n\n")
            self._at_line_start = piece.text.endswith("\n")
            self.output.write(harmless(piece.text) if self.output.stdout_is_a_terminal else piece.text)

    def end_line(self) -> None:
        """A terminal's next line is somebody else's; a pipe gets the text alone."""
        if not self._at_line_start and self.output.stdout_is_a_terminal and not self.output.json:
            self.output.line()
            self._at_line_start = True

    def summary(self, answer: "Answer", reason: "Reason", stages: "tuple[LoadedStage, ...]") -> None:
        if self.output.json:
            from exo_cli.drive.numerics import ran
            from exo_cli.schemas.events import RunSummary, line

            reasons = dict.fromkeys(stage.numerics_reason for stage in stages if stage.numerics_reason)

            said = RunSummary(
                finish_reason=reason,
                prompt_tokens=answer.prompt_tokens,
                cached_tokens=answer.cached_tokens,
                generated_tokens=answer.generated_tokens,
                ttft_ms=self._ttft_ms(),
                decode_tokens_per_s=self._rate(),
                numerics=ran(stages),
                numerics_reason="; ".join(reasons) or None,
            )
            self.output.json_line(line(said))

    def stats(self, answer: "Answer", stages: "tuple[LoadedStage, ...]") -> str:
        """One line for a person."""
        from exo_cli.drive.numerics import ran

        ttft, rate = self._ttft_ms(), self._rate()
        where = ", ".join(f"{stage.node.name} {stage.layers[0]}-{stage.layers[1] - 1}" for stage in stages)
        return "; ".join(
            (
                f"{answer.prompt_tokens} prompt tokens ({answer.cached_tokens} cached)",
                f"{answer.generated_tokens} generated",
                "no token came" if ttft is None else f"the first after {ttft:.0f} ms",
                *([] if rate is None else [f"then {rate:.1f} tokens/s"]),
                f"layers {where}",
                f"numerics {ran(stages)}",
            )
        )

    def _ttft_ms(self) -> float | None:
        return None if self._first_s is None else round((self._first_s - self.began_s) * 1000, 1)

    def _rate(self) -> float | None:
        if self._first_s is None or self._last_s <= self._first_s:
            return None
        return round((self._tokens - 1) / (self._last_s - self._first_s), 2)
