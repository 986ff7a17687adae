"""Reads the texts of one capture and keeps in mind which of them could not be read, and why.

Knows nothing of what the texts mean: a parser is given with each name.
"""

from collections.abc import Callable
from typing import Final, TypeVar

from exo_cli.rdma.capture import NOT_THERE, TIMED_OUT, Capture, Said
from exo_cli.rdma.sources import SOURCES
from exo_cli.rdma.text import Unreadable

T = TypeVar("T")
ENOENT: Final = 2
_REFUSED: Final = {ENOENT: "there is no such file", 13: "it may not be read"}


class Reader:
    def __init__(self, capture: Capture) -> None:
        self.capture = capture
        self.troubles: dict[str, str] = {}
        """Name of a text -> why it says nothing."""

    def said(self, name: str) -> Said | None:
        return self.capture.texts.get(name)

    def is_missing(self, name: str) -> bool:
        """Whether the program is not there."""
        said = self.said(name)
        return said is not None and said.exit == NOT_THERE and not said.output

    def read(self, name: str, parse: Callable[[bytes], T], *, exit_code: int | None = 0) -> T | None:
        """What it says, or None, and then `troubles` says why. With None any exit code will do: some
        programs say no with one."""
        why = self._silence(name, exit_code)
        if why is None:
            try:
                return parse(self.capture.texts[name].output)
            except Unreadable as error:
                why = str(error)
        self.troubles[name] = why
        return None

    def _silence(self, name: str, exit_code: int | None) -> str | None:
        """Why there is nothing to parse."""
        said = self.said(name)
        if said is None:
            return "it was not captured"
        if said.exit == TIMED_OUT:
            return "it did not end in time"
        if self.is_missing(name):
            return "there is no such program"
        if exit_code is not None and said.exit != exit_code:
            if SOURCES[self.capture.platform][name].path:
                return _REFUSED.get(said.exit, f"error {said.exit}")
            words = said.error.decode("utf-8", "replace").strip().splitlines()
            return f"it ended with {said.exit}" + (f" ({words[0][:100]})" if words else "")
        return None if said.there else "its output was not captured"

    def optional(self, name: str, parse: Callable[[bytes], T], *, exit_code: int | None = 0) -> T | None:
        """The same for a text that need not be there."""
        return None if self.said(name) is None else self.read(name, parse, exit_code=exit_code)
