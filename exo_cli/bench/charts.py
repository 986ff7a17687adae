"""Charts as inline SVG: lines with error bars, cumulative distributions, a token's way as a waterfall.

Pure, self-contained, and told in words too (title and description). Colours are classes that the page's
style sheet fills in. Knows nothing of benchmarks.
"""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from exo_cli.bench.markup import Html, short, text
from exo_cli.plain import columns, visible

COLOURS: Final = 8
_W, _H = 470.0, 300.0
_LEFT, _RIGHT, _BOTTOM = 58.0, 24.0, 46.0
_ROW_H = 18.0
_EM: Final = 6.6
"""An average character of the labels, in pixels."""
_LOG_FROM: Final = 25.0
"""How many times the smallest value the largest has to be for an axis by powers."""
_POINTS: Final = 300
_TINY: Final = 1e-12
"""What is not told apart any more, relative and as it is."""


@dataclass(frozen=True, slots=True)
class Point:
    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """One line. `colour` below COLOURS; `marks`: each point is a measurement of its own."""

    label: str
    points: tuple[Point, ...]
    colour: int
    dashed: bool = False
    marks: bool = True


@dataclass(frozen=True, slots=True)
class Axis:
    label: str
    ticks: tuple[float, ...] = ()
    """Where to put them; empty: wherever it is round."""
    words: Callable[[float], str] = short
    zero: bool = False
    """Whether it begins at nought, and then never goes by powers."""


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a waterfall's row."""

    kind: str
    start: float
    length: float
    words: str


@dataclass(frozen=True, slots=True)
class Row:
    label: str
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class _Scale:
    """Values to pixels."""

    low: float
    high: float
    start: float
    end: float
    powers: bool

    def __call__(self, value: float) -> float:
        low, high, at = self.low, self.high, min(max(value, self.low), self.high)
        if self.powers:
            low, high, at = math.log10(low), math.log10(high), math.log10(at)
        # Halves: the difference of two huge values need not be a number.
        return self.start + (self.end - self.start) * ((at / 2 - low / 2) / (high / 2 - low / 2))


def ecdf(values: Iterable[float]) -> tuple[Point, ...]:
    """Which share of the values, in per cent, is at most so much; thinned out where they are many."""
    ordered = sorted(value for value in values if math.isfinite(value))
    if not ordered:
        return ()
    count = len(ordered)
    kept = sorted({round(at * (count - 1) / (_POINTS - 1)) for at in range(_POINTS)})
    points, share = [], 0.0
    for at in kept:
        points.append(Point(ordered[at], share))
        share = 100 * (at + 1) / count
        points.append(Point(ordered[at], share))
    return tuple(points)


def plot(name: str, title: str, told: str, series: Sequence[Series], x: Axis, y: Axis) -> Html:
    """Lines over one another. `name` is unique on the page; `told` says the same in a sentence."""
    labels = list(_legend(series))
    top = 12.0 + _ROW_H * (max((row for _, row, _ in labels), default=0) + 1)
    height = _H + top
    points = [point for each in series for point in each.points]
    highs = [point.high for point in points if point.high is not None]
    across = _scale([point.x for point in points], x, _LEFT, _W - _RIGHT)
    up = _scale([point.y for point in points] + highs, y, height - _BOTTOM, top)
    body = [*_grid(across, up, x, y, height, top)]
    for each in series:
        body += _line(each, across, up, x, y)
    for each, (left, row, _) in zip(series, labels, strict=True):
        body += _key(each, left, 14 + row * _ROW_H)
    return _picture(name, title, told, height, body)


def waterfall(name: str, title: str, told: str, rows: Sequence[Row], axis: Axis) -> Html:
    """Rows one below the other, each beginning where the one before ended."""
    row_h, top, left = 34.0, 8.0, 8.0
    height = top + row_h * 1.25 * len(rows) + _BOTTOM
    spans = [span for row in rows for span in row.spans]
    across = _scale([span.start + span.length for span in spans], axis, left, 2 * _W - 40)
    body = []
    for tick in _spaced(_ticks(across, axis), across, axis):
        at = across(tick)
        body.append(_stroke("grid", at, top, at, height - _BOTTOM))
        body.append(_words(at, height - _BOTTOM + 16, axis.words(tick), "middle"))
    body.append(_words(_W - 8, height - 8, axis.label, "middle"))
    for index, row in enumerate(rows):
        y = top + index * row_h * 1.25
        body.append(_words(left, y + 12, cut(row.label, int((2 * _W - 32) / _EM)), "start"))
        for span in row.spans:
            from_x, to_x = across(span.start), across(span.start + span.length)
            body.append(
                f'<rect class="{span.kind}" x="{from_x:.1f}" y="{y + 17:.1f}" '
                f'width="{max(to_x - from_x, 1):.1f}" height="{row_h - 18:.1f}" rx="2">'
                f"<title>{text(span.words)}</title></rect>"
            )
    return _picture(name, title, told, height, body, 2 * _W - 16)


# -- axes ------------------------------------------------------------------------------------------


def _scale(values: Sequence[float], axis: Axis, start: float, end: float) -> _Scale:
    known = [*values, *axis.ticks] or [1.0]
    low, high = min(known), max(known)
    if not axis.zero and low > 0 and high >= _LOG_FROM * low:
        return _Scale(low, high, start, end, powers=True)
    if axis.zero or low < high / 2:
        low = min(low, 0.0)
    elif not axis.ticks:
        low *= 0.9
    if high / 2 - low / 2 < _TINY * abs(high):
        low, high = min(low, 0.0), max(high, 0.0)
    if high / 2 - low / 2 < _TINY:
        high = low + 1.0
    if not axis.ticks:
        high = min(high * 1.04, sys.float_info.max)
    return _Scale(low, high, start, end, powers=False)


def _ticks(scale: _Scale, axis: Axis) -> list[float]:
    if axis.ticks:
        return list(axis.ticks)
    if scale.powers:
        first, last = math.floor(math.log10(scale.low)), math.floor(math.log10(scale.high))
        factors = (1, 2, 5) if last - first <= 3 else (1,)
        ticks = [
            factor * 10.0**power
            for power in range(first, last + 1, max((last - first) // 6, 1))
            for factor in factors
        ]
        return [tick for tick in ticks if scale.low <= tick <= scale.high]
    rough = scale.high / 5 - scale.low / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * 0.999)
    first = math.ceil(scale.low / step)
    return [index * step for index in range(first, first + 7) if index * step <= scale.high]


def _spaced(ticks: Iterable[float], scale: _Scale, axis: Axis) -> Iterator[float]:
    """Those whose words do not run into the one before."""
    end = -math.inf
    for tick in sorted(set(ticks)):
        half = columns(axis.words(tick)) * _EM / 2
        if scale(tick) - half > end + 6:
            end = scale(tick) + half
            yield tick


def _grid(across: _Scale, up: _Scale, x: Axis, y: Axis, height: float, top: float) -> Iterator[str]:
    floor = height - _BOTTOM
    for tick in _ticks(up, y):
        yield _stroke("grid", _LEFT, up(tick), _W - _RIGHT, up(tick))
        yield _words(_LEFT - 6, up(tick) + 4, y.words(tick), "end")
    for tick in _spaced(_ticks(across, x), across, x):
        yield _stroke("tick", across(tick), floor, across(tick), floor + 4)
        yield _words(across(tick), floor + 17, x.words(tick), "middle")
    yield _stroke("axis", _LEFT, floor, _W - _RIGHT, floor)
    yield _words((_LEFT + _W - _RIGHT) / 2, height - 8, x.label, "middle")
    middle = (floor + top) / 2
    yield (
        f'<text class="quiet" text-anchor="middle" transform="translate(12 {middle:.1f}) rotate(-90)">'
        f"{text(y.label)}</text>"
    )


# -- what is drawn ---------------------------------------------------------------------------------


def _line(series: Series, across: _Scale, up: _Scale, x: Axis, y: Axis) -> Iterator[str]:
    dash = " dashed" if series.dashed else ""
    path = " ".join(f"{across(point.x):.1f},{up(point.y):.1f}" for point in series.points)
    if path:
        yield f'<polyline class="line c{series.colour}{dash}" points="{path}"/>'
    for point in series.points if series.marks else ():
        at = across(point.x)
        reach = ""
        if point.low is not None and point.high is not None:
            low, high = up(point.low), up(point.high)
            reach = f" ({y.words(point.low)} to {y.words(point.high)})"
            for ends in ((at, low, at, high), (at - 4, low, at + 4, low), (at - 4, high, at + 4, high)):
                yield _stroke(f"reach c{series.colour}", *ends)
        words = f"{series.label}, {x.label} {x.words(point.x)}: {y.words(point.y)}{reach}"
        yield (
            f'<circle class="mark c{series.colour}" cx="{at:.1f}" cy="{up(point.y):.1f}" r="4">'
            f"<title>{text(words)}</title></circle>"
        )


def _legend(series: Iterable[Series]) -> Iterator[tuple[float, int, float]]:
    """Where each key begins, in which row, and how wide it is."""
    left, row = _LEFT, 0
    for each in series:
        width = 26 + columns(each.label) * _EM + 14
        if left > _LEFT and left + width > _W:
            left, row = _LEFT, row + 1
        yield left, row, width
        left += width


def _key(series: Series, left: float, y: float) -> Iterator[str]:
    dash = " dashed" if series.dashed else ""
    yield _stroke(f"line c{series.colour}{dash}", left, y - 4, left + 20, y - 4)
    yield _words(left + 26, y, series.label, "start")


def _stroke(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _words(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text class="quiet" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text(words)}</text>'


def cut(words: str, most: int) -> str:
    """At most so many columns of `words`, with a sign where they were cut."""
    words = visible(words)
    if columns(words) <= most:
        return words
    while columns(words) > most - 1:
        words = words[:-1]
    return words + "…"


def _picture(name: str, title: str, told: str, height: float, body: Iterable[str], width: float = _W) -> Html:
    return Html(
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-labelledby="{name}-t {name}-d">'
        f'<title id="{name}-t">{text(title)}</title><desc id="{name}-d">{text(told)}</desc>'
        + "".join(body)
        + "</svg>"
    )
