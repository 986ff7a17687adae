"""A picture of the cluster: nodes as cards on an oval, links as lines with their figures.

Self-contained: no script, no font, no address but the namespace; it follows the reader's dark mode.
Pure, and the same topology gives the same picture. Names are strangers' words: made visible, cut,
escaped. Knows nothing of files.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from xml.sax.saxutils import escape

from rich.cells import cell_len

from exo_cli.cluster.advice import names
from exo_cli.schemas.topology import Link, Node, Topology
from exo_cli.views.cells import Look
from exo_cli.views.figures import age_text, rate_text, round_trip_text
from exo_cli.views.overview import (
    cable_links,
    hardware_text,
    memory_split,
    memory_text,
    models_text,
    ordered,
    speed,
    summary,
)

_CARD_W, _CARD_H = 232, 112
_GAP = 36
# Between few cards there is room for a line's figures; with many lines only some get theirs.
_ROOMY, _ROOMY_GAP = 6, 156
_CALM, _FIGURES = 15, 12
_MARGIN = 36
_TOP, _BOTTOM = 84, 44
_BAR_W = _CARD_W - 32
# An average character of the sans-serif fonts that systems have, as a share of its size.
_EM = 0.56
_PLAIN = Look(unicode=True, width=10_000)

_STYLE = """
text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: #1d2330 }
.page { fill: #fbfbfc } .card { fill: #ffffff; stroke: #d5d9e0 } .dead .card { stroke-dasharray: 4 4 }
.title { font-size: 18px; font-weight: 600 } .name { font-size: 15px; font-weight: 600 }
.small { font-size: 11px } .quiet { fill: #667085 } .model { fill: #0b6b8a } .dead text { fill: #98a1b0 }
.used { fill: #98a1b0 } .free { fill: #2f9e5b } .beyond { fill: #e6e9ee }
.ready { fill: #2f9e5b } .draining, .suspect { fill: #d18a00 } .gone { fill: #cf3f3f }
.link { fill: none; stroke-linecap: round } .fast { stroke: #2f9e5b } .fair { stroke: #8a94a6 }
.slow { stroke: #d18a00 } .none { stroke: #b6bdc9; stroke-dasharray: 2 6 }
.closed { stroke: #cf3f3f; stroke-dasharray: 6 6 } .pill { fill: #fbfbfc; fill-opacity: 0.94 }
@media (prefers-color-scheme: dark) {
text { fill: #e6e9ef } .page { fill: #14171c } .card { fill: #1d2129; stroke: #363d4a }
.quiet { fill: #98a1b0 } .model { fill: #6cc4e0 } .dead text { fill: #6b7484 }
.used { fill: #6b7484 } .free { fill: #46b877 } .beyond { fill: #313844 }
.ready { fill: #46b877 } .draining, .suspect { fill: #e0a83a } .gone { fill: #e56a6a }
.fast { stroke: #46b877 } .fair { stroke: #778195 } .slow { stroke: #e0a83a } .none { stroke: #4a5362 }
.closed { stroke: #e56a6a } .pill { fill: #14171c }
}
"""


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle by its centre."""

    x: float
    y: float
    w: float
    h: float

    def touches(self, other: "Box", across: float = 0, down: float = 0) -> bool:
        """Whether the two are nearer than a gap in both directions."""
        return (
            abs(self.x - other.x) * 2 < self.w + other.w + 2 * across
            and abs(self.y - other.y) * 2 < self.h + other.h + 2 * down
        )


@dataclass(frozen=True, slots=True)
class _Line:
    """Both directions between two nodes, drawn as one."""

    a: Box
    b: Box
    kind: str
    width: float
    label: str
    hover: str
    bytes_per_s: float


def svg(topology: Topology, *, now_unix_ms: int) -> str:
    """The picture as one XML document."""
    nodes = ordered(topology)
    boxes, width, height = place(len(nodes))
    at = {node.id: box for node, box in zip(nodes, boxes, strict=True)}
    lines = sorted(_lines(topology, nodes, at), key=lambda line: (-line.bytes_per_s, line.label))
    called = names(topology)
    title = "exo cluster" if not nodes else f"exo cluster: {summary(topology)}"
    body: list[str] = []
    if not nodes:
        body += _nobody(width, height)
    else:
        headline, _, rest = summary(topology).partition(" free for models")
        body.append(_text(_MARGIN, 40, "title", _cut(headline + " free for models", 18, width - 2 * _MARGIN)))
        body.append(_text(_MARGIN, 60, "small quiet", _cut(rest.removeprefix(", "), 11, width - 2 * _MARGIN)))
        body += [
            _stroke(line, quiet=len(lines) > _CALM and line.kind not in ("slow", "closed")) for line in lines
        ]
        body += _labels(lines, boxes)
        for node in nodes:
            body += _card(node, called[node.id], at[node.id], now_unix_ms)
        body += _legend(width, height)
    return "\n".join(
        [
            '<?xml version="1.0" encoding="UTF-8"?>',
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
            f'viewBox="0 0 {width:.0f} {height:.0f}" role="img">',
            f"<title>{_safe(title)}</title>",
            f"<style>{_STYLE}</style>",
            f'<rect class="page" width="{width:.0f}" height="{height:.0f}"/>',
            *body,
            "</svg>",
            "",
        ]
    )


# -- where things are ------------------------------------------------------------------------------


def place(count: int) -> tuple[list[Box], float, float]:
    """Cards on an oval, as small as it can be without two of them touching; and the size of the page."""
    if count <= 1:
        width, height = 640.0, _TOP + _CARD_H + 2 * _MARGIN + _BOTTOM
        return [Box(width / 2, _TOP + _MARGIN + _CARD_H / 2, _CARD_W, _CARD_H)][:count], width, float(height)
    start = {2: math.pi, 4: -3 * math.pi / 4}.get(count, -math.pi / 2)
    angles = [start + 2 * math.pi * index / count for index in range(count)]
    # Wider than high, with room in the middle for the figures on the lines.
    rx, ry = (250.0, 0.0) if count == 2 else (max(280.0, 40.0 * count), max(190.0, 27.0 * count))
    across = _ROOMY_GAP if count <= _ROOMY else _GAP
    while True:
        boxes = [Box(rx * math.cos(angle), ry * math.sin(angle), _CARD_W, _CARD_H) for angle in angles]
        if not any(a.touches(b, across, _GAP) for a, b in combinations(boxes, 2)):
            break
        rx, ry = rx * 1.06, ry * 1.06
    left, top = (min(getattr(box, axis) for box in boxes) for axis in "xy")
    right, bottom = (max(getattr(box, axis) for box in boxes) for axis in "xy")
    dx, dy = _MARGIN + _CARD_W / 2 - left, _TOP + _CARD_H / 2 - top
    placed = [Box(box.x + dx, box.y + dy, _CARD_W, _CARD_H) for box in boxes]
    width = right - left + _CARD_W + 2 * _MARGIN
    height = bottom - top + _CARD_H + _TOP + _BOTTOM + _MARGIN / 2
    return placed, round(width), round(height)


def _lines(topology: Topology, nodes: Iterable[Node], at: dict[str, Box]) -> Iterator[_Line]:
    links = {(link.from_, link.to): link for link in topology.links}
    called = names(topology)
    best = max((link.bytes_per_s or 0.0 for link in cable_links(topology)), default=0.0)
    live = [node for node in nodes if node.state != "dead"]
    for a, b in combinations(live, 2):
        there, back = links.get((a.id, b.id)), links.get((b.id, a.id))
        known = [link for link in (there, back) if link is not None]
        if not known and "announce" in (a.role, b.role):
            continue
        rates = sorted(rate for rate in map(speed, known) if rate is not None)
        hover = (
            "\n".join(_hover(link, called) for link in known)
            or f"{called[a.id]}, {called[b.id]}: not measured"
        )
        if any(link.error is not None for link in known):
            kind, thick = "closed", 2.0
        elif not rates:
            kind, thick = "none", 1.5
        else:
            share = min(rates[0] / best, 1.0) if best > 0 else 1.0
            kind = "fast" if share >= 0.5 else "fair" if share >= 0.1 else "slow"
            thick = 1.5 + 4.5 * math.sqrt(max(share, 0.0))
        yield _Line(at[a.id], at[b.id], kind, thick, _label(known, rates), hover, rates[0] if rates else 0.0)


def _label(known: list[Link], rates: list[float]) -> str:
    """`0.21 ms · 1.10 GB/s`; both figures where the directions differ much; short where one is closed."""
    if any(link.error is not None for link in known):
        return f"one way, {rate_text(rates[0])}" if rates else "closed"
    parts = []
    trips = [link.rtt_us_p50 for link in known if link.error is None and link.rtt_us_p50 is not None]
    if trips:
        parts.append(round_trip_text(min(trips)))
    if rates:
        low, high = rate_text(rates[0]), rate_text(rates[-1])
        parts.append(low if rates[-1] < 2 * rates[0] else f"{low} to {high}")
    return " · ".join(parts)


def _hover(link: Link, called: dict[str, str]) -> str:
    way = f"{called[link.from_]} → {called[link.to]}"
    if link.error is not None:
        return f"{way}: {link.error}"
    return (
        f"{way}: {round_trip_text(link.rtt_us_p50)}, {rate_text(link.bytes_per_s)}, {link.kind or 'unknown'}"
    )


# -- what is drawn ---------------------------------------------------------------------------------


def _stroke(line: _Line, *, quiet: bool) -> str:
    """A line with its figures on hovering; `quiet` where there are many and nothing is wrong with it."""
    points = f'x1="{line.a.x:.1f}" y1="{line.a.y:.1f}" x2="{line.b.x:.1f}" y2="{line.b.y:.1f}"'
    hover = "".join(f"{_safe(text)}&#10;" for text in line.hover.split("\n"))
    weight = (
        f'stroke-width="{line.width / 2:.1f}" stroke-opacity="0.4"'
        if quiet
        else f'stroke-width="{line.width:.1f}"'
    )
    return f'<line class="link {line.kind}" {points} {weight}><title>{hover}</title></line>'


def _labels(lines: Iterable[_Line], cards: list[Box]) -> Iterator[str]:
    """Figures where there is room for them, the slowest links first; the others show them on hovering."""
    taken = list(cards)
    told = sorted(
        (line for line in lines if line.label),
        key=lambda line: (line.kind != "closed", line.bytes_per_s, line.label),
    )
    for line in told if len(told) <= _CALM else told[:_FIGURES]:
        w, h = cell_len(line.label) * 11 * _EM + 12, 18.0
        for step in (50, 42, 58, 35, 65, 28, 72, 22, 78):
            share = step / 100
            x, y = (a + (b - a) * share for a, b in ((line.a.x, line.b.x), (line.a.y, line.b.y)))
            spot = Box(x, y, w, h)
            if not any(spot.touches(other, 4, 4) for other in taken):
                taken.append(spot)
                corner = f'x="{x - w / 2:.1f}" y="{y - h / 2:.1f}"'
                yield f'<rect class="pill" {corner} width="{w:.1f}" height="{h}" rx="9"/>'
                yield _text(x, y + 4, "small", line.label, middle=True)
                break


def _card(node: Node, called: str, box: Box, now_unix_ms: int) -> Iterator[str]:
    """A nested picture, so that nothing is drawn beyond the card's edge."""
    dead = node.state == "dead"
    state = "gone" if dead else node.state
    yield (
        f'<svg x="{box.x - box.w / 2:.1f}" y="{box.y - box.h / 2:.1f}" width="{_CARD_W}" height="{_CARD_H}" '
        f'class="{"dead" if dead else "node"}">'
    )
    yield f"<title>{_safe(called)} ({_safe(node.endpoint)})</title>"
    yield f'<rect class="card" x="0.5" y="0.5" width="{_CARD_W - 1}" height="{_CARD_H - 1}" rx="12"/>'
    yield f'<circle class="{state}" cx="21" cy="23" r="4.5"/>'
    yield _text(33, 28, "name", _cut(called, 16.5, _CARD_W - 33 - 70))
    yield _text(_CARD_W - 16, 27, "small quiet", node.state, end=True)
    yield _text(16, 48, "small quiet", _cut(" · ".join(hardware_text(node)), 11, _BAR_W))
    if dead:
        yield _text(16, 70, "small", f"last seen {age_text(node.seen_unix_ms, now_unix_ms)} ago")
    elif node.memory.ram_bytes <= 0:
        yield _text(16, 70, "small quiet", "announces only" if node.role == "announce" else "memory unknown")
    else:
        used, usable = memory_split(node).marks(_BAR_W)
        for kind, start, end in (("beyond", usable, _BAR_W), ("free", used, usable), ("used", 0, used)):
            if end > start:
                yield f'<rect class="{kind}" x="{16 + start}" y="57" width="{end - start}" height="7"/>'
        free, whole, rest = memory_text(node)
        yield _text(16, 80, "small", f"{free} free of {whole} GiB{rest}")
    models = ", ".join(map(models_text, node.stages))
    if models:
        yield _text(16, 99, "small model", _cut(models, 11, _BAR_W))
    elif not dead:
        yield _text(16, 99, "small quiet", _cut(node.endpoint, 11, _BAR_W))
    yield "</svg>"


def _legend(width: float, height: float) -> Iterator[str]:
    y = height - 22
    x = float(_MARGIN)
    for kind, words in (("used", "used"), ("free", "free for models"), ("beyond", "beyond the limit")):
        yield f'<rect class="{kind}" x="{x}" y="{y - 8}" width="14" height="7"/>'
        yield _text(x + 20, y, "small quiet", words)
        x += 20 + len(words) * 11 * _EM + 20
    if width > 700:
        note = "thicker is faster · dashed is closed or not measured"
        yield _text(width - _MARGIN, y, "small quiet", note, end=True)


def _nobody(width: float, height: float) -> Iterator[str]:
    middle = width / 2
    yield _text(middle, height / 2 - 24, "title", "No node answered", middle=True)
    yield _text(
        middle,
        height / 2 + 6,
        "small quiet",
        "exo serve-shard on every machine that should take part",
        middle=True,
    )
    yield _text(
        middle,
        height / 2 + 26,
        "small quiet",
        "exo discover --explain tells why one is not seen",
        middle=True,
    )


# -- words -----------------------------------------------------------------------------------------


def _cut(text: str, size: float, width: float) -> str:
    return _PLAIN.fit(text, max(int(width / (size * _EM)), 1))


def _safe(text: str) -> str:
    return escape(_PLAIN(text))


def _text(x: float, y: float, kind: str, words: str, *, middle: bool = False, end: bool = False) -> str:
    anchor = ' text-anchor="middle"' if middle else ' text-anchor="end"' if end else ""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}"{anchor}>{_safe(words)}</text>'
