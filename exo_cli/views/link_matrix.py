"""The links between live nodes: a matrix where it fits, else the slowest ones and how many there are.

Rows are where a link starts, columns where it ends. Knows nothing of nodes beyond their names.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median

from rich.text import Text

from exo_cli.cluster.advice import names
from exo_cli.schemas.topology import Link, Node, Topology
from exo_cli.views.cells import Look, Piece, widest
from exo_cli.views.figures import plural, rate_text, round_trip_text
from exo_cli.views.overview import alive, cable_links, speed

_MATRIX_NODES = 8
_SLOWEST = 6
_NOTES = 4
_LABEL = 16
# "54.0 ms", then "12.5 MB/s", then the mark.
_RTT, _RATE, _MARK = 8, 9, 1
_WIDE = _RTT + 1 + _RATE + _MARK
_STACKED = _RATE + _MARK
_GAP = 2


@dataclass(slots=True)
class _Sheet:
    """What all cells share: the links, the best of them, and the footnotes made so far."""

    look: Look
    nodes: list[Node]
    called: dict[str, str]
    links: dict[tuple[str, str], Link]
    best: float
    notes: list[str] = field(default_factory=list)
    transport: bool = False

    def note(self, reason: str) -> int:
        if reason not in self.notes:
            self.notes.append(reason)
        return self.notes.index(reason) + 1

    def style(self, link: Link) -> str:
        """Green near the best link between two machines, yellow far below it, dim within one machine."""
        if self._host(link.from_) and self._host(link.from_) == self._host(link.to):
            return "dim"
        share = (speed(link) or 0.0) / self.best if self.best > 0 else 1.0
        return "green" if share >= 0.5 else "" if share >= 0.1 else "yellow"

    def _host(self, id_: str) -> str:
        return next((node.host for node in self.nodes if node.id == id_), "")

    def mark(self, link: Link) -> str:
        if link.limited_by is None:
            return " "
        self.transport = True
        return self.look("†")


def links(topology: Topology, look: Look) -> list[Text]:
    """The block of lines about links; empty where there is no pair of nodes."""
    nodes = alive(topology)
    if len(nodes) < 2:
        return []
    linked = {id_ for link in topology.links for id_ in (link.from_, link.to)}
    # Who only announces itself was not measured, and is not missing a link.
    nodes = [node for node in nodes if node.role == "shard" or node.id in linked]
    ids = {node.id for node in nodes}
    known = {(link.from_, link.to): link for link in topology.links if {link.from_, link.to} <= ids}
    if not known:
        return [look.line(("Links", "bold"), ("  none measured yet", "dim"))]
    best = max((link.bytes_per_s or 0.0 for link in cable_links(topology)), default=0.0)
    sheet = _Sheet(look, nodes, names(topology), known, best)
    label = widest((look(sheet.called[node.id]) for node in nodes), most=_LABEL, least=4)
    room = look.width - 1 - label
    if len(nodes) <= _MATRIX_NODES and len(nodes) * (_WIDE + _GAP) <= room:
        lines = _matrix(sheet, label, _WIDE)
    elif len(nodes) <= _MATRIX_NODES and len(nodes) * (_STACKED + _GAP) <= room:
        lines = _matrix(sheet, label, _STACKED)
    else:
        lines = _slowest(sheet)
    return [*lines, *_footnotes(sheet)]


# -- the matrix ------------------------------------------------------------------------------------


def _matrix(sheet: _Sheet, label: int, width: int) -> list[Text]:
    look = sheet.look
    columns = [look.pad(sheet.called[node.id], width - _MARK, right=True) + " " for node in sheet.nodes]
    lines = [
        look.line(("Links", "bold"), (look("  round trip and bandwidth, from row to column"), "dim")),
        look.line(" " * (1 + label), *((" " * _GAP + column, "dim") for column in columns)),
    ]
    for a in sheet.nodes:
        cells = [_cell(sheet, a, b, width) for b in sheet.nodes]
        deep = any(isinstance(piece, tuple) for cell in cells for row in cell[1:] for piece in row)
        for row in range(2 if deep else 1):
            name = look.pad(sheet.called[a.id] if row == 0 else "", label)
            pieces: list[Piece] = [" ", name]
            for cell in cells:
                pieces += [" " * _GAP, *cell[row]]
            lines.append(look.line(*pieces))
    return lines


def _cell(sheet: _Sheet, a: Node, b: Node, width: int) -> list[list[Piece]]:
    """One cell as one row of pieces, or two where it is narrow, each `width` cells wide."""
    look = sheet.look
    link = sheet.links.get((a.id, b.id))
    rows = 1 if width == _WIDE else 2
    blank: list[list[Piece]] = [[" " * width]] * (rows - 1)
    if a.id == b.id:
        return [[(_alone(look, "·", width), "dim")], *blank]
    if link is None or (link.error is None and link.bytes_per_s is None and link.rtt_us_p50 is None):
        return [[(_alone(look, "–", width), "dim")], *blank]
    if link.error is not None:
        number = f"({sheet.note(link.error)})"
        words = look.fit(link.error or "error", width - _MARK - len(number) - 1)
        return [[(look.pad(f"{words} {number}", width - _MARK, right=True), "red"), " " * _MARK], *blank]
    style = "dim" if sheet.style(link) == "dim" else ""
    rtt = look(round_trip_text(link.rtt_us_p50) if link.rtt_us_p50 is not None else "–")
    rate = look(rate_text(link.bytes_per_s) if link.bytes_per_s is not None else "–")
    speed_pieces: list[Piece] = [(f"{rate:>{_RATE}}", sheet.style(link)), (sheet.mark(link), "dim")]
    if rows == 1:
        return [[(f"{rtt:>{_RTT}} ", style), *speed_pieces]]
    return [speed_pieces, [(f"{rtt:>{_RATE}} ", "dim")]]


def _alone(look: Look, sign: str, width: int) -> str:
    return look.pad(sign, width - _MARK, right=True) + " " * _MARK


# -- the list --------------------------------------------------------------------------------------


def _slowest(sheet: _Sheet) -> list[Text]:
    """The slowest links with figures, and what the rest is like."""
    look, nodes = sheet.look, sheet.nodes
    hosts = {node.id: node.host for node in nodes}
    between = [
        link
        for link in sheet.links.values()
        if speed(link) is not None and not (hosts[link.from_] and hosts[link.from_] == hosts[link.to])
    ]
    between.sort(key=lambda link: (link.bytes_per_s or 0.0, link.from_, link.to))
    shown = between[:_SLOWEST]
    lines = [look.line(("Links", "bold"), ("  the slowest between two machines", "dim"))]
    start, end = (
        widest((look(sheet.called[id_]) for id_ in ids), most=24)
        for ids in ([link.from_ for link in shown], [link.to for link in shown])
    )
    for link in shown:
        rtt = look(round_trip_text(link.rtt_us_p50) if link.rtt_us_p50 is not None else "–")
        way = (
            f" {look.pad(sheet.called[link.from_], start)} {look('→')} {look.pad(sheet.called[link.to], end)}"
        )
        lines.append(
            look.line(
                way,
                f"  {rtt:>{_RTT}}  ",
                (f"{rate_text(link.bytes_per_s):>{_RATE}}", sheet.style(link)),
                (sheet.mark(link), "dim"),
                (f" {link.kind or ''}", "dim"),
            )
        )
    if not shown:
        lines[0] = look.line(("Links", "bold"), ("  none between two machines has a figure", "dim"))
    lines += look.paragraph([" "], _counts(sheet, between), style="dim")
    blocked = [link for link in sheet.links.values() if link.error is not None]
    for link in blocked[:_NOTES]:
        way = f"{look.fit(sheet.called[link.from_], 24)} {look('→')} {look.fit(sheet.called[link.to], 24)}"
        lines += look.paragraph([" ", (way, "red"), "  "], link.error or "error", style="dim", most=2)
    if len(blocked) > _NOTES:
        lines.append(look.line((f" and {len(blocked) - _NOTES} more with an error", "red")))
    return lines


def _counts(sheet: _Sheet, between: list[Link]) -> str:
    links = sheet.links.values()
    measured = sum(speed(link) is not None for link in links)
    blocked = sum(link.error is not None for link in links)
    pairs = len(sheet.nodes) * (len(sheet.nodes) - 1)
    parts = [f"{measured} of {plural(pairs, 'link')} measured"]
    if between:
        rates = [link.bytes_per_s or 0.0 for link in between]
        parts[0] += f" (median {rate_text(median(rates))}, best {rate_text(max(rates))})"
    if blocked:
        parts.append(f"{blocked} with an error")
    if pairs > measured + blocked:
        parts.append(f"{pairs - measured - blocked} without a figure")
    return ", ".join(parts)


# -- below both ------------------------------------------------------------------------------------


def _footnotes(sheet: _Sheet) -> Iterable[Text]:
    look = sheet.look
    if sheet.transport:
        text = "as fast as exo's own transport goes here: a faster cable would change nothing"
        yield from look.paragraph([(f" {look('†')} ", "dim")], text, style="dim")
    for number, reason in enumerate(sheet.notes[:_NOTES], start=1):
        head = f" ({number}) "
        yield from look.paragraph([(head, "red")], reason or "error", style="dim", most=3)
    if len(sheet.notes) > _NOTES:
        more = len(sheet.notes) - _NOTES
        yield look.line((f" and {plural(more, 'more reason')}: exo discover --json", "dim"))
