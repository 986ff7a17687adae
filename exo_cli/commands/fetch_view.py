"""What `exo fetch` shows while it works: a bar a file and one for all, or a line of JSON each."""

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from exo_cli.output import Output

if TYPE_CHECKING:
    from exo_cli.errors import ExoError
    from exo_cli.fetch.meter import Moved
    from exo_cli.schemas.events import Event


def event(output: Output, said: "Event") -> None:
    from exo_cli.schemas.events import line

    output.json_line(line(said))


@dataclass(slots=True)
class Bars:
    """The progress of one fetch, on this machine or on another one."""

    output: Output
    node: str | None = None
    doing: str = "fetching"
    _began_s: float = field(default_factory=time.monotonic)
    _began_bytes: int | None = None
    _shown_s: dict[str, float] = field(default_factory=dict)
    _said: bool = False

    def moved(self, moved: "Moved") -> None:
        if self._began_bytes is None:
            self._began_bytes, self._began_s = moved.done_bytes, time.monotonic()
        rate = self._rate(moved.done_bytes)
        left_s = (moved.total_bytes - moved.done_bytes) / rate if rate else None
        if self.output.json:
            self._line(moved, rate, left_s)
            return
        from exo_cli.plain import duration_text
        from exo_cli.views.figures import bytes_text

        if not self._said and moved.done_bytes < moved.total_bytes:
            self._said = True
            where = f" on {self.node}" if self.node else ""
            todo = bytes_text(moved.total_bytes - moved.done_bytes)
            self.output.note(f"{self.doing} {moved.repository}{where}: {todo}")
        if not self._said:
            return
        prefix = f"{self.node}: " if self.node else ""
        if moved.source != "this disk" or moved.file_done_bytes < moved.file_total_bytes:
            done, total = moved.file_done_bytes, moved.file_total_bytes
            figures = f"{bytes_text(done)} of {bytes_text(total)} from {moved.source}"
            self.output.progress(f"{prefix}{moved.file}", done, total, figures)
        figures = f"{bytes_text(moved.done_bytes)} of {bytes_text(moved.total_bytes)}"
        if rate and left_s is not None:
            figures += f", {bytes_text(int(rate))}/s, {duration_text(left_s)} left"
        self.output.progress(f"{prefix}total", moved.done_bytes, moved.total_bytes, figures)

    def waits(self, error: "ExoError", wait_s: float) -> None:
        self.note(f"{error.message}; it is asked again in {wait_s:.0f} s")

    def note(self, text: str) -> None:
        if self.output.json:
            from exo_cli.schemas.fetch import FetchNote

            event(self.output, FetchNote(message=text))
            self.output.record("info", text)
        else:
            self.output.note(text)

    def _rate(self, done: int) -> float | None:
        took_s = time.monotonic() - self._began_s
        came = done - (self._began_bytes or 0)
        return came / took_s if came > 0 and took_s > 0.2 else None

    def _line(self, moved: "Moved", rate: float | None, left_s: float | None) -> None:
        from exo_cli.schemas.fetch import FetchProgress

        event(
            self.output,
            FetchProgress(
                node=self.node,
                file=moved.file,
                source=moved.source,
                file_done_bytes=moved.file_done_bytes,
                file_total_bytes=moved.file_total_bytes,
                done_bytes=moved.done_bytes,
                total_bytes=moved.total_bytes,
                bytes_per_s=round(rate) if rate else None,
                remaining_s=round(left_s, 1) if left_s is not None else None,
            ),
        )
