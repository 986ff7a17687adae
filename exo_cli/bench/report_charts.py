"""The report's charts: which figures of a benchmark go into which picture. Knows nothing of drawing."""

import math
from collections.abc import Sequence
from typing import Final, Literal

from exo_cli.bench.charts import COLOURS, Axis, Point, Row, Series, Span, ecdf, plot, waterfall
from exo_cli.bench.markup import Html, short, span_text, text
from exo_cli.bench.report_details import layers_text
from exo_cli.schemas.bench import Level, StageTime, Timeline

_MOST: Final = COLOURS
"""As many lines as can be told apart."""


def latency_charts(levels: Sequence[Level]) -> list[Html]:
    """The distributions of the time to the first token and of the gaps between tokens."""
    found = []
    for name, title, samples in (
        ("ttft", "Time to first token", [level.ttfts for level in levels]),
        ("itl", "Time between tokens", [[gap for gaps in level.itls for gap in gaps] for level in levels]),
    ):
        several_depths = len({level.depth for level in levels}) > 1
        series = [
            Series(_name(level, several_depths), points, at, dashed=level.depth > 0, marks=False)
            for at, (level, values) in enumerate(zip(levels[:_MOST], samples, strict=False))
            if (points := ecdf(value * 1000 for value in values))
        ]
        if not series:
            continue
        told = f"{title}, in milliseconds: which share of all samples took at most so long, for each level."
        chart = plot(
            name,
            title,
            told,
            series,
            Axis("ms", zero=False),
            Axis("share of samples", (0, 25, 50, 75, 90, 100), lambda share: f"{share:.0f} %", zero=True),
        )
        caption = "Percentiles are in the tables."
        if len(levels) > _MOST:
            caption = f"The first {_MOST} levels; all are in the tables."
        found.append(_figure(title, chart, caption))
    return found


def throughput_chart(levels: Sequence[Level]) -> Html:
    """Tokens a second against requests at a time, at the smallest depth that has several levels."""
    for depth in sorted({level.depth for level in levels}):
        at = sorted(
            (level for level in levels if level.depth == depth), key=lambda level: level.max_concurrency
        )
        if len(at) < 2:
            continue
        series = [
            each
            for each in (
                _measured("all output", at, "output_throughput", "max_concurrency", 0),
                _measured("while decoding", at, "decode_tokens_per_s", "max_concurrency", 1),
            )
            if each.points
        ]
        if not series:
            continue
        title = "Throughput against concurrency"
        ticks = tuple(float(level.max_concurrency) for level in at)
        said = [f"{point.x:.0f} at a time {short(point.y)}" for point in series[0].points]
        told = f"Tokens per second of all requests together, {series[0].label}: {', '.join(said)}."
        chart = plot(
            "throughput", title, told, series, Axis("requests at a time", ticks), Axis("tokens/s", zero=True)
        )
        deep = f" {depth:,} tokens deep." if depth else ""
        return _figure(title, chart, f"All requests together, with 95 % intervals.{deep}")
    return Html("")


def depth_chart(levels: Sequence[Level]) -> Html:
    """Decode speed against what stands before the prompt, at the smallest concurrency with several depths."""
    for concurrency in sorted({level.max_concurrency for level in levels}):
        at = sorted(
            (level for level in levels if level.max_concurrency == concurrency), key=lambda level: level.depth
        )
        line = _measured(f"{concurrency} at a time", at, "decode_tokens_per_s", "depth", 0)
        if len(line.points) < 2:
            continue
        title = "Decode speed against context"
        said = [f"{point.x:,.0f} tokens deep {short(point.y)}" for point in line.points]
        chart = plot(
            "depth",
            title,
            f"Decoded tokens per second: {', '.join(said)}.",
            [line],
            Axis("tokens before the prompt", tuple(point.x for point in line.points)),
            Axis("tokens/s", zero=True),
        )
        return _figure(title, chart, "With 95 % intervals.")
    return Html("")


def timeline_chart(timeline: Timeline) -> Html:
    """A step's way round the chain, by its means; the wires last where only their sum is known."""
    rows, now = [], 0.0
    hops = [hop.wire_ms_mean for hop in timeline.hops]
    each_known = len(hops) == len(timeline.stages) and None not in hops
    for index, stage in enumerate(timeline.stages):
        spans = _stage_spans(stage, now, slow=index == timeline.slowest and len(timeline.stages) > 1)
        now = spans[-1].start + spans[-1].length
        wire = hops[index] if each_known else None
        if wire is not None:
            spans.append(Span("wire", now, wire, f"wire: {span_text(wire)}"))
            now += wire
        words = ", ".join(part.words for part in spans)
        layers = layers_text(stage.layers)
        rows.append(Row(f"stage {index}, layers {layers} · {words} · {stage.node}", tuple(spans)))
    if not each_known:
        words = f"wire: {span_text(timeline.wire_ms_mean)}"
        rows.append(Row(f"all hops together · {words}", (Span("wire", now, timeline.wire_ms_mean, words),)))
    parts = "; ".join(row.label for row in rows)
    told = f"One token takes {span_text(timeline.token_ms_mean)} on average. {parts}."
    chart = waterfall("timeline", "A token's way round the chain", told, rows, Axis("ms", zero=True))
    kinds = [("wait", "wait"), ("compute", "compute"), ("wire", "wire")]
    if len(timeline.stages) > 1:
        kinds.insert(2, ("slow", "compute of the slowest stage"))
    keys = "".join(f'<span class="key {kind}"></span>{text(words)}' for kind, words in kinds)
    return Html(f'<figure class="wide">{chart}<figcaption>Means.{keys}</figcaption></figure>')


def _stage_spans(stage: StageTime, now: float, *, slow: bool) -> list[Span]:
    wait, compute = stage.wait_ms_mean, stage.compute_ms_mean
    return [
        Span("wait", now, wait, f"wait: {span_text(wait)}"),
        Span("slow" if slow else "compute", now + wait, compute, f"compute: {span_text(compute)}"),
    ]


def _measured(
    label: str,
    levels: Sequence[Level],
    metric: str,
    across: Literal["max_concurrency", "depth"],
    colour: int,
) -> Series:
    points = []
    for level in levels:
        value, interval = getattr(level, metric), level.interval(metric)
        if value is not None and math.isfinite(value):
            low, high = (interval.low, interval.high) if interval else (None, None)
            points.append(Point(float(getattr(level, across)), value, low, high))
    return Series(label, tuple(points), colour)


def _name(level: Level, several_depths: bool) -> str:
    depth = f", depth {level.depth:,}" if several_depths and level.depth else ""
    return f"{level.max_concurrency} at a time{depth}"


def _figure(title: str, chart: Html, caption: str) -> Html:
    return Html(f"<figure><b>{text(title)}</b>{chart}<figcaption>{text(caption)}</figcaption></figure>")
