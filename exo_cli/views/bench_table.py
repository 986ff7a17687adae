"""What `exo bench` shows: a row for each level, words about the rest, and two runs beside each other.

Knows nothing of terminals; every text is plain.
"""

from collections.abc import Callable, Iterator
from typing import Final

from exo_cli.schemas.bench import Bench, BenchStage, Comparison, Gate, Interval, Level, Links, Timeline
from exo_cli.views.figures import bytes_text, plural, rate_text, round_trip_text

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]

LEVELS = (
    "at once",
    "depth",
    "ttft ms",
    "p99",
    "itl ms",
    "p99",
    "prefill t/s",
    "interval",
    "decode t/s",
    "interval",
    "output t/s",
    "interval",
    "failed",
)
CHANGES = ("at once", "depth", "figure", "A", "B", "B/A", "interval", "verdict")
NOISY: Final = 10.0
"""Where an interval ends at more times as much as it begins with, its ends tell nothing."""
LINKS = ("from", "to", "over", "round trip", "interval", "p99", "bandwidth", "interval", "rounds", "remark")


def levels(bench: Bench) -> Table:
    """Medians of latencies, and tokens a second with the interval in which another run should find them.

    Narrow enough for a terminal.
    """
    return LEVELS, [_level(level) for level in bench.levels]


def words(bench: Bench) -> Iterator[str]:
    """What stands around the figures, a line each."""
    model = bench.model
    bits = "" if model.bits_per_weight is None else f", {model.bits_per_weight:.2f} bits a weight"
    random = ", random weights" if model.kind == "random" else ""
    yield f"{model.name}{random}{bits}; {bench.target}"
    yield from map(_stage, bench.stages)
    yield from _numerics(bench)
    for link in bench.links:
        if link.bytes_per_token is not None:
            yield f"{link.from_node} to {link.to_node}: {bytes_text(link.bytes_per_token)} a token"
    if bench.timeline is not None:
        yield _timeline(bench.timeline)
    if bench.load_ms is not None:
        yield f"ready after {bench.load_ms / 1000:.1f} s"
    joules = [level for level in bench.levels if level.joules_per_token is not None]
    for level in joules:
        yield f"{level.max_concurrency} at a time: {level.joules_per_token:.2f} J a token"
    yield from bench.notes
    yield gate(bench.gate)
    if any(level.intervals for level in bench.levels):
        yield "interval: where 95 of 100 further runs like this one should be, on a machine as busy"
    if any(_is_noisy(each) for level in bench.levels for each in level.intervals):
        yield "interval ?: the repeats are too few, or too different, to say; more --repeat would show it"


def gate(it: Gate) -> str:
    """Whether the tokens are right, in a sentence."""
    if not it.valid:
        return "INVALID: " + "; ".join(check.said for check in it.checks if check.state == "differ")
    names = {"levels": "at all levels", "unsplit": "by the whole model on one node"}
    agreed = [
        f"{names[check.name]} ({'; '.join(filter(None, (plural(check.compared, 'answer'), check.said)))})"
        for check in it.checks
        if check.state == "agree"
    ]
    skipped = [
        f"not compared {names[check.name]}: {check.said}" for check in it.checks if check.state == "skipped"
    ]
    return "; ".join([f"the same tokens {' and '.join(agreed)}"] * bool(agreed) + skipped)


def changes(comparison: Comparison) -> Table:
    """Two runs, figure by figure."""
    rows: list[tuple[str, ...]] = []
    for change in comparison.changes:
        rows.append(
            (
                str(change.max_concurrency),
                str(change.depth),
                change.metric,
                _figure(change.a),
                _figure(change.b),
                f"{change.ratio:.3f}",
                _span(change.ratio_low, change.ratio_high, "{:.3f}".format),
                change.verdict,
            )
        )
    return CHANGES, rows


def links(found: Links) -> Table:
    """The ways between nodes."""
    rows: list[tuple[str, ...]] = []
    for link in found.links:
        tried = link.rounds + link.failed
        rows.append(
            (
                link.from_node,
                link.to_node,
                link.interface or "-",
                round_trip_text(link.rtt_us_p50),
                _span(link.rtt_us_low, link.rtt_us_high, round_trip_text),
                round_trip_text(link.rtt_us_p99),
                rate_text(link.bytes_per_s),
                _span(link.bytes_per_s_low, link.bytes_per_s_high, rate_text),
                str(link.rounds) if not link.failed else f"{link.rounds} of {tried}",
                link.error or "-",
            )
        )
    return LINKS, rows


def _level(level: Level) -> tuple[str, ...]:
    ttft, itl = level.spread("ttft"), level.spread("itl")
    return (
        str(level.max_concurrency),
        str(level.depth),
        _figure(ttft.p50),
        _figure(ttft.p99),
        _figure(itl.p50),
        _figure(itl.p99),
        *_known(level, "prefill_tokens_per_s"),
        *_known(level, "decode_tokens_per_s"),
        *_known(level, "output_throughput"),
        f"{level.failed} of {level.num_prompts}",
    )


def _known(level: Level, metric: str) -> tuple[str, str]:
    """A figure, and its interval."""
    found = level.interval(metric)
    if found is None:
        return _figure(getattr(level, metric)), "-"
    return _figure(found.mean), "?" if _is_noisy(found) else _span(found.low, found.high, _figure)


def _is_noisy(interval: Interval) -> bool:
    return interval.high > NOISY * interval.low


def _span(low: float | None, high: float | None, text: Callable[[float], str]) -> str:
    """`133-151`; a dash where nothing is known."""
    return "-" if low is None or high is None else f"{text(low)}-{text(high)}"


def _stage(stage: BenchStage) -> str:
    on = f"{stage.node} ({stage.chip}, {plural(stage.cores, 'core')}, {stage.backend})"
    layers = f"layers {stage.layers[0]}-{stage.layers[1] - 1}"
    held = f"{bytes_text(stage.weights_bytes)} of weights, {bytes_text(stage.kv_budget_bytes)} for KV"
    used = stage.node_memory_used_bytes
    whole = "" if used is None else f", {bytes_text(used)} in use by models"
    return f"{on}: {layers}, {held}{whole}"


def _numerics(bench: Bench) -> Iterator[str]:
    """How it was computed, where that is known, and why no other way."""
    if bench.conditions.numerics is not None:
        yield f"numerics {bench.conditions.numerics}"
    reasons = {stage.node: stage.numerics_reason for stage in bench.stages if stage.numerics_reason}
    for node, reason in reasons.items():
        yield f"no fast kernels on {node}: {reason}"


def _timeline(it: Timeline) -> str:
    """Where the time of a token goes."""
    parts = [f"{stage.node} computes {stage.compute_ms_mean:.2f}" for stage in it.stages]
    waits = sum(stage.wait_ms_mean for stage in it.stages)
    slowest = f"; the slowest stage is {it.stages[it.slowest].node}" if len(it.stages) > 1 else ""
    wires = f", {it.wire_ms_mean:.2f} on the wires" if len(it.stages) > 1 else ""
    return f"of {it.token_ms_mean:.2f} ms a token {', '.join(parts)}, {waits:.2f} waiting{wires}{slowest}"


def _figure(value: float | None) -> str:
    """Three digits or more."""
    if value is None:
        return "-"
    if value >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
