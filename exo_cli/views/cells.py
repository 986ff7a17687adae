"""Text in terminal cells: made harmless, cut, padded, wrapped, joined to lines of a given width.

Everything is a Rich `Text`, never markup. Knows nothing of what is shown.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, chop_cells, set_cell_size
from rich.console import Group
from rich.text import Text

from exo_cli.plain import visible

Piece = str | tuple[str, str]

# What stays on one line: a quoted command, a number and its unit.
_WORDS = re.compile(r"`[^`]*`[^ ]*|\(?[\d.]+ (?:[kMGT]?B/s|[KMGT]iB|ms)[^ ]*|[^ ]+")
_ASCII = str.maketrans(
    {
        "→": "->", "↔": "<->", "–": "-", "…": "...", "·": ".", "×": "x", "µ": "u", "†": "*", "─": "-",
        "●": "*", "◐": "~", "○": "x", "█": "#", "░": "=", "╌": "-", "✓": "+", "✗": "x",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Look:
    """What the reader's terminal can show, and how wide it is."""

    unicode: bool
    width: int

    def __call__(self, text: str) -> str:
        """`text`, ours or a stranger's, in what the terminal can show and without any power over it."""
        safe = visible(text)
        if self.unicode:
            return safe
        return safe.translate(_ASCII).encode("ascii", "backslashreplace").decode("ascii")

    def fit(self, text: str, width: int) -> str:
        """At most `width` cells of `text`, with a sign where it was cut."""
        safe = self(text)
        if cell_len(safe) <= width:
            return safe
        sign = self("…")
        if width <= len(sign):
            return set_cell_size(safe, max(width, 0))
        return set_cell_size(safe, width - len(sign)).rstrip() + sign

    def pad(self, text: str, width: int, *, right: bool = False) -> str:
        """Exactly `width` cells."""
        cut = self.fit(text, width)
        space = " " * (width - cell_len(cut))
        return space + cut if right else cut + space

    def wrap(self, text: str, width: int, *, most: int = 5) -> list[str]:
        """`text` in lines of `width` cells, broken between words; a word that is too long is cut up."""
        width = max(width, 8)
        lines, line = [], ""
        for word in _WORDS.findall(self(text)):
            for part in chop_cells(word, width) if cell_len(word) > width else [word]:
                if line and cell_len(line) + 1 + cell_len(part) > width:
                    lines.append(line)
                    line = part
                else:
                    line = f"{line} {part}" if line else part
        lines.append(line)
        if len(lines) > most:
            lines = [*lines[: most - 1], self.fit(f"{lines[most - 1]} {lines[most]}", width)]
        return lines

    def line(self, *pieces: Piece) -> Text:
        """One line of pieces, plain or with a style; cut at the width of the terminal."""
        text = Text.assemble(*pieces, no_wrap=True, overflow="crop", end="\n")
        text.rstrip()
        text.truncate(max(self.width, 1), overflow="crop")
        return text

    def paragraph(self, head: Sequence[Piece], text: str, *, style: str = "", most: int = 5) -> list[Text]:
        """`text` after `head`, wrapped under its own beginning."""
        indent = sum(cell_len(piece if isinstance(piece, str) else piece[0]) for piece in head)
        first, *rest = self.wrap(text, self.width - indent, most=most)
        return [self.line(*head, (first, style)), *(self.line(" " * indent, (part, style)) for part in rest)]

    def flow(self, indent: int, pieces: Iterable[tuple[str, str]]) -> list[Text]:
        """Pieces one after the other, on as many lines as they need."""
        lines: list[list[Piece]] = []
        used = self.width
        for words, style in pieces:
            cut = self.fit(words, max(self.width - indent, 1))
            if used + 2 + cell_len(cut) > self.width:
                lines.append([" " * indent, (cut, style)])
                used = indent + cell_len(cut)
            else:
                lines[-1] += ["  ", (cut, style)]
                used += 2 + cell_len(cut)
        return [self.line(*line) for line in lines]


def widest(texts: Iterable[str], *, most: int, least: int = 0) -> int:
    """The width of a column that holds `texts`, within bounds."""
    return max(least, min(most, max((cell_len(text) for text in texts), default=0)))


def stack(blocks: Iterable[Sequence[Text]]) -> Group:
    """Blocks of lines with one empty line between them."""
    lines: list[Text] = []
    for block in blocks:
        if block and lines:
            lines.append(Text(""))
        lines.extend(block)
    return Group(*lines)
