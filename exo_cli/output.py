"""The one place that writes to a terminal.

Data goes to standard output, everything else to standard error. Model text, names and paths are
written as they are and never pass through markup; control characters in them are made visible.
Rich is imported only when something is drawn on a terminal. Knows nothing of what it is showing.
"""

import json as json_module
import os
import sys
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, TextIO

from exo_cli.plain import columns, duration_text, fitting, visible

if TYPE_CHECKING:
    import msgspec
    from rich.console import Console, RenderableType
    from rich.progress import Progress, TaskID

    from exo_cli.errors import ExoError

__all__ = ["STDOUT", "ColorChoice", "Output", "duration_text", "visible"]

STDOUT = "standard output"
"""The file name in an OSError that came from writing there."""

ColorChoice = Literal["auto", "always", "never"]


class Output:
    """Where a verb's words go, and in what shape."""

    def __init__(
        self,
        *,
        json: bool = False,
        quiet: bool = False,
        verbose: int = 0,
        color: ColorChoice = "auto",
        log_file: str | None = None,
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
    ) -> None:
        self.json = json
        self.quiet = quiet
        self.verbose = verbose
        self._color = color
        self._log_path = log_file
        self._log: TextIO | None = None
        self._stdout = stdout or sys.stdout
        self._stderr = stderr or sys.stderr
        self._bars: Progress | None = None
        self._bar_of: dict[str, TaskID] = {}

    # -- what kind of reader there is ------------------------------------------------------------

    @property
    def terminal(self) -> bool:
        """Whether a person looks at standard output in a terminal that can be drawn on."""
        return self._stdout.isatty() and os.environ.get("TERM") != "dumb"

    @property
    def stdout_is_a_terminal(self) -> bool:
        return self._stdout.isatty()

    @property
    def colored(self) -> bool:
        if self._color != "auto":
            return self._color == "always"
        if os.environ.get("NO_COLOR"):
            return False
        return os.environ.get("FORCE_COLOR", "0") not in ("", "0", "false") or self.terminal

    @property
    def unicode(self) -> bool:
        """Whether standard output can show more than ASCII."""
        try:
            "█▏→·".encode(self._stdout.encoding or "ascii")
        except UnicodeEncodeError:
            return False
        return True

    # -- data ------------------------------------------------------------------------------------

    def write(self, text: str) -> None:
        """Exactly `text`, to standard output; what its encoding lacks is written as escapes."""
        self._end_bars()
        try:
            self._stdout.write(fitting(text, self._stdout.encoding))
            self._stdout.flush()
        except OSError as error:
            error.filename = STDOUT
            raise

    def line(self, text: str = "") -> None:
        self.write(text + "\n")

    def struct(self, value: "msgspec.Struct") -> None:
        """One JSON document on one line."""
        import msgspec

        self.json_line(msgspec.json.encode(value).decode())

    def json_line(self, text: str) -> None:
        """One line that is JSON already; where standard output lacks a character, in JSON's own escapes."""
        fits = fitting(text, self._stdout.encoding) == text
        self.line(text if fits else json_module.dumps(json_module.loads(text)))

    def mapping(self, value: dict[str, object]) -> None:
        self.json_line(json_module.dumps(value, ensure_ascii=False))

    def rows(self, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """A table: aligned on a terminal, tab-separated with a header line elsewhere."""
        table = [tuple(header), *(tuple(visible(cell) for cell in row) for row in rows)]
        table = [tuple(fitting(cell, self._stdout.encoding) for cell in row) for row in table]
        if not self.terminal:
            self.write("".join("\t".join(row) + "\n" for row in table))
            return
        widths = [max(columns(row[column]) for row in table) for column in range(len(header))]
        lines = []
        for row in table:
            cells = (cell + " " * (width - columns(cell)) for cell, width in zip(row, widths, strict=True))
            lines.append("  ".join(cells).rstrip() + "\n")
        self.write("".join(lines))

    def draw(self, renderable: "RenderableType") -> None:
        """A Rich renderable on standard output."""
        console = self.console()
        # Rich ends the process where the reader has gone; `write` says so instead.
        with console.capture() as capture:
            console.print(renderable)
        self.write(capture.get())

    def console(self) -> "Console":
        from rich.console import Console

        columns = os.environ.get("COLUMNS", "")
        width = None if self.terminal else int(columns) if columns.isdecimal() and int(columns) > 0 else 120
        return Console(
            file=self._stdout,
            width=width,
            force_terminal=self.colored or None,
            no_color=not self.colored,
            color_system=self._color_system() if self.colored else None,
            highlight=False,
            markup=False,
            emoji=False,
            soft_wrap=False,
        )

    def _color_system(self) -> Literal["auto", "standard"]:
        # Where colour was asked for and the terminal does not say what it can do, the 16 of old.
        return "auto" if self.terminal and os.environ.get("TERM") else "standard"

    # -- words about the work --------------------------------------------------------------------

    def note(self, text: str) -> None:
        """Something a person wants to know while it works."""
        self.record("info", text)
        if not self.quiet:
            self._say(text)

    def aside(self, text: str) -> None:
        """Text beside the data, piece by piece, for a person at a terminal; control characters are the
        caller's business."""
        if not self.quiet and not self.json and self._stderr.isatty():
            self._end_bars()
            self._stderr.write(fitting(text, self._stderr.encoding))
            self._stderr.flush()

    def progress(self, what: str, done: int, total: int, figures: str) -> None:
        """How far something is: a bar for a person at a terminal, nothing elsewhere. `figures` stands
        behind it. Bars go when all of them are full, and before anything else is written."""
        if self.quiet or self.json or not self._stderr.isatty() or os.environ.get("TERM") == "dumb":
            return
        if self._bars is None:
            self._bars = self._new_bars()
            self._bars.start()
        if what not in self._bar_of:
            self._bar_of[what] = self._bars.add_task(visible(what), total=total or None, figures=figures)
        self._bars.update(self._bar_of[what], completed=done, total=total or None, figures=figures)
        if self._bars.finished:
            self._end_bars()

    def _new_bars(self) -> "Progress":
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        console = Console(file=self._stderr, no_color=not self.colored, highlight=False, markup=False)
        words, figures = (
            TextColumn(f"{{task.{name}}}", markup=False) for name in ("description", "fields[figures]")
        )
        return Progress(
            *(words, BarColumn(), figures),
            console=console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def _end_bars(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars, self._bar_of = None, {}

    def detail(self, text: str, level: int = 1) -> None:
        """Something to see with -v (or -vv)."""
        self.record("debug", text)
        if self.verbose >= level:
            self._say(text)

    def hint(self, text: str) -> None:
        if not self.quiet and not self.json:
            self._say(f"hint: {text}")

    def warning(self, text: str) -> None:
        self.record("warning", text)
        self._say(f"warning: {text}")

    def error(self, error: "ExoError") -> None:
        """Why it failed: two lines for a person, one line of JSON for a program."""
        if self.json:
            # schemas.events.ErrorLine, written by hand: a wrong command line should not wait for msgspec.
            event = {
                "schema": "exo.error/1",
                "type": "error",
                "code": error.code,
                "message": error.message,
                "hint": error.hint,
                "exit": int(error.exit),
            }
            self._stderr.write(json_module.dumps(event) + "\n")
            self._stderr.flush()
            return
        # One sentence is one line, also where the system's own words in it are several.
        self._say(f"error: {' '.join(error.message.split())}")
        if error.hint and not self.quiet:
            self._say(f"hint: {error.hint}")

    def _say(self, text: str) -> None:
        self._end_bars()
        safe = "\n".join(visible(part) for part in text.split("\n"))
        self._stderr.write(fitting(safe, self._stderr.encoding) + "\n")
        self._stderr.flush()

    # -- the log file ----------------------------------------------------------------------------

    def open_log(self) -> None:
        """Open the log file, if one was asked for; JSON Lines, appended, readable by its owner."""
        if self._log_path is None:
            return
        from exo_cli.errors import CannotCreate

        try:
            descriptor = os.open(self._log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise CannotCreate(
                f"cannot write the log file {self._log_path}: {error.strerror}",
                hint="Give another --log-file.",
            ) from error
        self._log = os.fdopen(descriptor, "a", encoding="utf-8", buffering=1)

    def record(self, level: str, text: str) -> None:
        """A line in the log file, if there is one, and nowhere else."""
        if self._log is not None:
            entry = {
                "schema": "exo.log/1",
                "type": level,
                "unix_ms": time.time_ns() // 1_000_000,
                "text": text,
            }
            self._log.write(json_module.dumps(entry, ensure_ascii=False) + "\n")

    def close(self) -> None:
        self._end_bars()
        if self._log is not None:
            self._log.close()
            self._log = None
