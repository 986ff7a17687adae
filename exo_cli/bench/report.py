"""One page about one benchmark: HTML that needs nothing else, no script, no address, light and dark.

Every figure of the file stands in it with its exact value, single samples in the file that the page
carries along. Strangers' words are made visible and escaped, and the page forbids itself to load
anything. Pure; knows nothing of how the figures came about or where the page goes.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from exo_cli.bench.markup import Html, folded, joined, number, paragraph, section, size, span, table, text
from exo_cli.bench.report_charts import depth_chart, latency_charts, throughput_chart, timeline_chart
from exo_cli.bench.report_details import at_text, conditions, everything, machines
from exo_cli.schemas.bench import Bench, Gate, Level, Timeline

# Belt and braces: were there ever a hole in the escaping, nothing could be fetched, sent or run.
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE: Final = Path(__file__).parent / "report.css"


def page(bench: Bench) -> str:
    """The whole document."""
    title = f"{bench.model.name}: exo bench"
    style = _STYLE.read_text(encoding="utf-8")
    body = joined(
        [
            _header(bench),
            _banner(bench.gate),
            _tiles(bench.levels),
            _levels(bench.levels),
            _latency(bench.levels),
            _speeds(bench.levels),
            _timeline(bench.timeline),
            machines(bench),
            conditions(bench),
            everything(bench),
        ]
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{style}</style></head><body><main>{body}</main></body></html>\n"
    )


# -- what one sees first ---------------------------------------------------------------------------


def _header(bench: Bench) -> Html:
    when = datetime.fromtimestamp(bench.unix_ms / 1000, UTC)
    kind = {"weights": "", "random": ", random weights at its geometry", "http": ", behind a server"}
    stages = f"{len(bench.stages)} {'stage' if len(bench.stages) == 1 else 'stages'}"
    where = stages if bench.stages else bench.target
    return Html(
        f"<header><h1>{text(bench.model.name)}</h1>"
        f'<p class="quiet">{text(where + kind[bench.model.kind])} · measured from {text(bench.machine)} · '
        f'<time datetime="{when.isoformat()}"><data value="{bench.unix_ms}">{when:%Y-%m-%d %H:%M} UTC</data>'
        f"</time> · exo {text(bench.version)}</p></header>"
    )


def _banner(gate: Gate) -> Html:
    names = {"levels": "Between concurrency levels", "unsplit": "With the unsplit model"}
    checks = joined(
        Html(
            f"<p>{text(names[check.name])}: <strong>{text(check.state)}</strong>, "
            f"{number(check.compared)} compared. {text(check.said)}</p>"
        )
        for check in gate.checks
    )
    if gate.valid:
        agree = any(check.state == "agree" for check in gate.checks)
        kind, head = ("valid", "Greedy tokens agree") if agree else ("unchecked", "Tokens were not checked")
        return Html(f'<div class="banner {kind}"><p class="head">{head}</p>{checks}</div>')
    return Html(
        '<div class="banner invalid" role="alert"><p class="head">These figures are not valid</p>'
        f"<p>The chain gave other tokens than it should; how fast it was says nothing.</p>{checks}</div>"
    )


def _tiles(levels: Sequence[Level]) -> Html:
    if not levels:
        return paragraph(text("Nothing was measured."))
    first = levels[0]
    busiest = max(levels, key=lambda level: level.output_throughput or 0.0)
    tiles = (
        ("Decode, tokens/s", _with_reach(first, "decode_tokens_per_s"), at_text(first)),
        ("Time to first token, median", span(first.p50_ttft_ms), at_text(first)),
        ("Between tokens, median", span(first.p50_itl_ms), at_text(first)),
        ("Most output, tokens/s", _with_reach(busiest, "output_throughput"), at_text(busiest)),
    )
    return Html(
        '<div class="tiles">'
        + "".join(
            f'<div class="card tile"><span>{text(name)}</span><b>{value}</b><span>{text(at)}</span></div>'
            for name, value, at in tiles
        )
        + "</div>"
    )


def _with_reach(level: Level, metric: str) -> Html:
    """A figure and how far it may be off, to either side."""
    interval = level.interval(metric)
    if interval is None:
        return number(getattr(level, metric))
    half = max(interval.high - interval.mean, interval.mean - interval.low)
    return Html(f"{number(getattr(level, metric))} <i>± {number(half)}</i>")


# -- the figures -----------------------------------------------------------------------------------


def _levels(levels: Sequence[Level]) -> Html:
    heads = (
        "At a time", "Depth", "Decode tok/s", "Output tok/s", "Prefill tok/s", "TTFT p50", "TTFT p99",
        "ITL p50", "ITL p99", "Done", "Failed",
    )  # fmt: skip
    rows = [
        (
            number(level.max_concurrency),
            number(level.depth),
            _with_reach(level, "decode_tokens_per_s"),
            _with_reach(level, "output_throughput"),
            _with_reach(level, "prefill_tokens_per_s"),
            *(span(value) for value in (level.p50_ttft_ms, level.p99_ttft_ms)),
            *(span(value) for value in (level.p50_itl_ms, level.p99_itl_ms)),
            number(level.completed),
            number(level.failed),
        )
        for level in levels
    ]
    note = "± tells where another such run should fall, by 95 % confidence over the repeats."
    return section(
        "Levels",
        table("Requests at a time, and tokens in front of each prompt", heads, rows, words=0),
        paragraph(text(note), kind="quiet") if any(level.intervals for level in levels) else Html(""),
    )


def _latency(levels: Sequence[Level]) -> Html:
    charts = latency_charts(levels)
    return section("Latency", Html(f'<div class="charts">{joined(charts)}</div>')) if charts else Html("")


def _speeds(levels: Sequence[Level]) -> Html:
    charts = [chart for chart in (throughput_chart(levels), depth_chart(levels)) if chart]
    return section("Speed", Html(f'<div class="charts">{joined(charts)}</div>')) if charts else Html("")


def _timeline(timeline: Timeline | None) -> Html:
    title = "Where a token's time went"
    if timeline is None:
        return section(title, paragraph(text("The stages told nothing of their steps."), kind="quiet"))
    slowest = timeline.stages[timeline.slowest]
    share = slowest.compute_ms_mean / timeline.token_ms_mean if timeline.token_ms_mean > 0 else 0.0
    said = paragraph(
        text(f"Stage {timeline.slowest} on {slowest.node} computes longest: "),
        Html(f"{span(slowest.compute_ms_mean)} of {span(timeline.token_ms_mean)}, {text(f'{share:.0%}')}. "),
        text("Measured at "),
        Html(f"{number(timeline.max_concurrency)} at a time, depth {number(timeline.depth)}, "),
        Html(f"{number(timeline.steps)} steps."),
    )
    rows = [(text("Whole round"), *_spans(timeline, "token_ms"), text(""), text(""))]
    for index, stage in enumerate(timeline.stages):
        name = joined([number(index), text(f" {stage.node}: ")])
        slow = " (slowest)" if index == timeline.slowest else ""
        sizes = size(stage.bytes_in_per_step), size(stage.bytes_out_per_step)
        rows.append((joined([name, text("wait")]), *_spans(stage, "wait_ms"), text(""), text("")))
        rows.append((joined([name, text(f"compute{slow}")]), *_spans(stage, "compute_ms"), *sizes))
    for hop in timeline.hops:
        way = f"Wire {hop.from_node} → {hop.to_node}"
        rows.append((text(way), *_spans(hop, "wire_ms"), text(""), size(hop.bytes_per_step)))
    rows.append((text("Wire, all hops together"), *_spans(timeline, "wire_ms"), text(""), text("")))
    unknown = any(hop.wire_ms_mean is None for hop in timeline.hops)
    note = "Means add up to the whole; medians need not." + (
        " Machines' clocks are not compared, so the wire is known only as the sum over its hops."
        if unknown
        else ""
    )
    heads = ("Part", "Mean", "Median", "p90", "Bytes in", "Bytes out")
    return section(
        title,
        said,
        timeline_chart(timeline),
        folded("The same as a table", table("One decode step", heads, rows)),
        paragraph(text(note), kind="quiet"),
    )


def _spans(record: object, name: str) -> tuple[Html, Html, Html]:
    mean, p50, p90 = (span(getattr(record, f"{name}_{part}")) for part in ("mean", "p50", "p90"))
    return mean, p50, p90
