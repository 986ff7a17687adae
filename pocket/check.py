"""Which verbs and options a text names, and which of them do not exist: from the Typer app itself.

Knows nothing of the model.
"""

import re
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Final

# A verb is what follows the program's name; prose that could be read so counts as naming one.
_NAMED: Final = re.compile(r"\bexo ([a-z][a-z-]*)(?: ([a-z][a-z-]*))?")
_OPTION: Final = re.compile(r"(?<![\w-])(--?[a-zA-Z][a-zA-Z-]*)")
_NO_OPTIONS: Final = frozenset({"-"})


@dataclass(frozen=True, slots=True)
class Known:
    """The verbs by path (`key new`), each with its options; groups have those of what is in them."""

    options: dict[str, frozenset[str]]

    @property
    def every_option(self) -> frozenset[str]:
        return frozenset().union(*self.options.values())


@cache
def known() -> Known:
    import typer

    from exo_cli.cli import app
    from exo_cli.commands.tree import tree

    root = tree(typer.main.get_command(app))
    options = {}
    for verb in root.all():
        own = {flag for inner in verb.all() for option in inner.options for flag in option.flags}
        own |= {flag for inner in verb.all() for option in inner.options for flag in option.off_flags}
        options[verb.name] = frozenset(own | {"-h", "--help"})
    return Known(options)


def verbs(text: str) -> list[str]:
    """The verbs that are named and exist, by their first word, in order."""
    return [name for name in _names(text) if name in known().options]


def invented(text: str) -> list[str]:
    """Verbs, and options of the verb named before them, that do not exist."""
    found = [f"exo {name}" for name in _names(text) if name not in known().options]
    for span in _commands(text):
        found += _wrong_options(span)
    return found


def _names(text: str) -> list[str]:
    return [found[1] for found in _NAMED.finditer(text)]


def _commands(text: str) -> list[str]:
    """The text cut before each `exo VERB`, so that options stand with their verb."""
    starts = [0, *(found.start() for found in _NAMED.finditer(text)), len(text)]
    return [text[a:b] for a, b in pairwise(starts) if a < b]


def _wrong_options(span: str) -> list[str]:
    named = _NAMED.match(span)
    options = known().every_option
    if named is not None and named[1] in known().options:
        path = f"{named[1]} {named[2]}" if f"{named[1]} {named[2]}" in known().options else named[1]
        options = known().options[path]
        # After the sentence or the code span, an option may be of another verb.
        closed = re.split(r"`|\. ", span, maxsplit=1)
        rest = closed[1] if len(closed) > 1 else ""
        return _missing(closed[0], options) + _missing(rest, known().every_option)
    return _missing(span, options)


def _missing(text: str, options: frozenset[str]) -> list[str]:
    return [f for f in _OPTION.findall(text) if f not in options and f not in _NO_OPTIONS and f != "-vv"]
