"""Charts: everything on the picture, marks where the values are, words that do not run into each other."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exo_cli.bench.charts import Axis, Point, Row, Series, Span, cut, ecdf, plot, waterfall
from exo_cli.bench.markup import number, short, size, span_text
from exo_cli.plain import columns
from tests.support.html_page import Page, Tag

VALUES = st.floats(0, 1e308) | st.sampled_from([0.0, 1.0, 5e-324, 1e-300, 1.0000001])


def of(tag: Tag, *names: str) -> list[float]:
    return [float(tag.attributes[name]) for name in names]


def drawn(series: list[Series], x: Axis | None = None, y: Axis | None = None) -> Page:
    return Page.of(plot("name", "Title", "Told.", series, x or Axis("x"), y or Axis("y", zero=True)))


def inside(page: Page) -> None:
    (picture,) = page.named("svg")
    width, height = map(float, picture.attributes["viewbox"].split()[2:])
    for tag in page.named("circle", "text", "rect"):
        if "transform" in tag.attributes:
            continue
        x, y = of(tag, "cx", "cy") if tag.name == "circle" else of(tag, "x", "y")
        assert 0 <= x <= width
        assert 0 <= y <= height
    for tag in page.named("line"):
        assert all(0 <= at <= width for at in of(tag, "x1", "x2"))
        assert all(0 <= at <= height for at in of(tag, "y1", "y2"))
    for tag in page.named("polyline"):
        for place in tag.attributes["points"].split():
            left, down = map(float, place.split(","))
            assert 0 <= left <= width
            assert 0 <= down <= height


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(st.tuples(VALUES, VALUES), max_size=4), max_size=9), st.booleans(), st.booleans())
def test_any_values_stay_on_the_picture(
    lines: list[list[tuple[float, float]]], zero: bool, own: bool
) -> None:
    ticks = tuple(x for line in lines for x, _ in line) if own else ()
    series = [
        Series(f"line {at}", tuple(Point(x, y, y / 2, y) for x, y in line), at % 8)
        for at, line in enumerate(lines)
    ]
    page = drawn(series, Axis("x", ticks, zero=zero), Axis("y", zero=not zero))
    inside(page)
    assert len(page.named("circle")) == sum(map(len, lines))


def test_marks_lie_where_the_values_are() -> None:
    line = Series("speed", (Point(1, 10, 8, 12), Point(2, 20), Point(4, 40)), 0)
    page = drawn([line], Axis("requests", (1, 2, 4)))
    (a, b, c) = (of(tag, "cx", "cy") for tag in page.named("circle"))
    assert c[0] - b[0] == pytest.approx(2 * (b[0] - a[0]), abs=0.3)
    assert b[1] - c[1] == pytest.approx(2 * (a[1] - b[1]), abs=0.3)
    (reach, *_) = (tag for tag in page.named("line") if tag.attributes["class"] == "reach c0")
    assert of(reach, "x1")[0] == a[0]
    low, high = of(reach, "y1", "y2")
    assert low - a[1] == pytest.approx(a[1] - high, abs=0.3)
    assert "speed, requests 1: 10 (8 to 12)" in page.words


def test_words_on_the_axis_keep_their_distance() -> None:
    ticks = (0.0, 256.0, 512.0, 1024.0, 65536.0, 131072.0)
    page = drawn([Series("s", tuple(Point(each, 1) for each in ticks), 0)], Axis("tokens", ticks))
    (floor,) = {of(tag, "y2")[0] for tag in page.named("line") if tag.attributes["class"] == "tick"}
    under = [tag for tag in page.named("text") if tag.attributes.get("y") == f"{floor + 13:.1f}"]
    places = [of(tag, "x")[0] for tag in under]
    assert len(places) == 3
    assert all(right - left > 40 for left, right in pairwise(places))


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=1000))
def test_a_distribution_rises_to_all_of_it(values: list[float]) -> None:
    points = ecdf(values)
    assert len(points) <= 600
    assert (points[0].x, points[0].y) == (min(values), 0)
    assert (points[-1].x, points[-1].y) == (max(values), 100)
    for before, after in pairwise(points):
        assert before.x <= after.x
        assert before.y <= after.y
    for point in points:
        below = sum(value < point.x for value in values)
        upto = sum(value <= point.x for value in values)
        assert below - len(values) / 299 - 1 <= point.y * len(values) / 100 <= upto + 1e-6


def test_no_values_no_distribution() -> None:
    assert ecdf([]) == ()
    assert ecdf([float("nan"), float("inf")]) == ()


@given(st.lists(st.tuples(st.floats(0, 1e300), st.text(max_size=300)), max_size=6))
def test_a_waterfall_stays_on_its_picture(parts: list[tuple[float, str]]) -> None:
    rows = [Row(words, (Span("compute", 0, length, words),)) for length, words in parts]
    page = Page.of(waterfall("name", "Title", "Told.", rows, Axis("ms", zero=True)))
    inside(page)
    for bar in page.named("rect"):
        assert sum(of(bar, "x", "width")) <= 940


def test_a_long_name_does_not_leave_the_picture() -> None:
    row = Row("x" * 300, (Span("compute", 0, 1, "compute: 1 ms"),))
    page = Page.of(waterfall("name", "Title", "Told.", [row], Axis("ms", zero=True)))
    assert 100 < page.words.count("x") < 140
    assert "x…" in page.words


def test_many_keys_take_more_lines() -> None:
    series = [Series(f"{at} at a time, depth 4,096", (Point(1, 1),), at) for at in range(8)]
    page = drawn(series)
    inside(page)
    keys = [tag for tag in page.named("text") if tag.attributes.get("text-anchor") == "start"]
    assert len({tag.attributes["y"] for tag in keys}) == 4
    assert all(of(tag, "x")[0] < 330 for tag in keys)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "0"), (0.04213, "0.0421"), (7.312, "7.31"), (48.21, "48.2"), (204.04, "204.0"), (1204.4, "1,204"),
        (12, "12"), (12_345, "12,345"), (3.1e18, "3.1e+18"), (2e-7, "2e-07"),
    ],
)  # fmt: skip
def test_three_digits_say_enough(value: float, words: str) -> None:
    assert short(value) == words


def test_times_and_sizes() -> None:
    assert [span_text(each) for each in (0.0384, 0.0, 20.51, 9999, 42_000)] == [
        "38.4 µs", "0 ms", "20.5 ms", "9,999 ms", "42 s",
    ]  # fmt: skip
    assert size(8230.5) == '<data value="8230.5">8.0 KiB</data>'
    assert size(17) == '<data value="17">17 B</data>'
    assert "not known" in size(None)
    assert "not known" in number(float("nan"))


@given(st.text(), st.integers(1, 20))
def test_cut_words_fit(words: str, most: int) -> None:
    assert columns(cut(words, most)) <= most
