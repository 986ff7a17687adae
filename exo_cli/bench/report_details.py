"""The report's second half: what was measured on what, as asked how, and every figure of each level.

HTML out. Knows nothing of the page around it.
"""

from base64 import b64encode
from collections.abc import Iterator, Sequence
from typing import Final, Literal

import msgspec

from exo_cli.bench.markup import (
    Html,
    folded,
    joined,
    number,
    pairs,
    paragraph,
    section,
    size,
    span,
    table,
    text,
)
from exo_cli.schemas.bench import Bench, BenchStage, Interval, Level

_METRICS: Final[tuple[tuple[Literal["ttft", "itl", "tpot", "e2el"], str], ...]] = (
    ("ttft", "Time to first token: from sending to the first token"),
    ("itl", "Inter-token latency: every gap between two tokens"),
    ("tpot", "Time per output token: of a request's tokens after the first, their mean"),
    ("e2el", "End-to-end latency: from sending to the last token"),
)


def at_text(level: Level) -> str:
    """`4 requests at a time, 4,096 tokens deep`."""
    requests = "request" if level.max_concurrency == 1 else "requests"
    depth = f", {level.depth:,} tokens deep" if level.depth else ""
    return f"{level.max_concurrency} {requests} at a time{depth}"


def layers_text(layers: tuple[int, int]) -> str:
    """The last one included, as everywhere on the screen."""
    first, last = layers[0], layers[1] - 1
    return f"{first}–{last}" if first < last else f"{first}"


def machines(bench: Bench) -> Html:
    heads = (
        "Node", "Hardware", "Software", "Numerics", "Layers", "Load", "Weights", "Room for context",
        "Memory used",
    )  # fmt: skip
    rows = [
        (
            joined([text(stage.node), Html(f"<br><i>{text(stage.node_id)}</i>")]),
            joined([text(f"{stage.chip}, "), number(stage.cores, "cores"), text(f", {stage.backend}")]),
            text(f"{stage.os}, exo {stage.version}"),
            _numerics(stage),
            text(layers_text(stage.layers)),
            span(stage.load_ms) if stage.fresh or stage.load_ms is not None else text("was there"),
            size(stage.weights_bytes),
            size(stage.kv_budget_bytes),
            size(stage.node_memory_used_bytes),
        )
        for stage in bench.stages
    ]
    parts = [paragraph(text(bench.reason))] if bench.reason else []
    if rows:
        parts.append(table("Stages, in the order of the chain", heads, rows, words=4))
    else:
        parts.append(paragraph(text(f"Target: {bench.target}")))
    if bench.links:
        links = [
            (text(link.from_node), text(link.to_node), size(link.bytes_per_token), size(link.bytes_total))
            for link in bench.links
        ]
        parts.append(table("Links", ("From", "To", "Bytes per token", "Bytes in all"), links, words=2))
    return section("Machines", *parts)


def _numerics(stage: BenchStage) -> Html:
    """How it computed: with which kernels, or why without them."""
    if stage.numerics is None:
        return text("not known")
    with_ = stage.kernels if stage.numerics == "fast" else stage.numerics_reason
    return joined([text(stage.numerics), Html(f"<br><i>{text(with_)}</i>") if with_ else Html("")])


def conditions(bench: Bench) -> Html:
    asked, model = bench.conditions, bench.model
    items = [
        ("Model", text(model.name)),
        ("Digest", text(model.digest or "not known")),
        ("Layers", number(model.layers)),
        ("Parameters", number(model.parameters)),
        ("Bits per weight", number(model.bits_per_weight)),
        ("Weights", size(model.weights_bytes)),
        ("Target", text(bench.target)),
        ("Ready after", span(bench.load_ms)),
        ("Prompt tokens", number(asked.prompt_tokens)),
        ("Generated tokens", number(asked.gen_tokens)),
        ("Concurrency", joined(map(number, asked.concurrency), ", ")),
        ("Depth", joined(map(number, asked.depth), ", ")),
        ("Repeats", number(asked.repeat)),
        ("Warm-up rounds", number(asked.warmup)),
        ("Seed", number(asked.seed)),
        ("Numerics", text(asked.numerics or "not known")),
        ("Bits of the caches", number(asked.kv_bits)),
        ("Threads", number(asked.threads)),
        ("Memory limit", size(asked.memory_bytes)),
    ]
    notes = Html("<ul>" + "".join(f"<li>{text(note)}</li>" for note in bench.notes) + "</ul>")
    return section(
        "Conditions",
        Html(f'<div class="card">{pairs(items)}</div>'),
        notes if bench.notes else Html(""),
    )


def everything(bench: Bench) -> Html:
    file = b64encode(msgspec.json.encode(bench)).decode()
    link = Html(f'<a download="bench.json" href="data:application/json;base64,{file}">bench.json</a>')
    return section(
        "All figures",
        paragraph(text("The file with every single sample, for exo bench --compare: "), link),
        *(folded(at_text(level), _level(level)) for level in bench.levels),
    )


def _level(level: Level) -> Html:
    items = [
        ("Requests", number(level.num_prompts)),
        ("Completed", number(level.completed)),
        ("Failed", number(level.failed)),
        ("Of these, after some tokens", number(level.incomplete)),
        ("Duration", number(level.duration, "s")),
        ("Input tokens", number(level.total_input_tokens)),
        ("Of these, held already", number(level.cached_tokens)),
        ("Output tokens", number(level.total_output_tokens)),
        ("Requests/s", number(level.request_throughput)),
        ("Output tokens/s", number(level.output_throughput)),
        ("All tokens/s", number(level.total_token_throughput)),
        ("Prefill tokens/s", number(level.prefill_tokens_per_s)),
        ("Decode tokens/s", number(level.decode_tokens_per_s)),
        ("Joules per token", number(level.joules_per_token)),
    ]
    heads = ("Latency", "Mean", "Std", "p50", "p90", "p95", "p99", "Samples")
    rows = [(text(name), *_statistics(level, metric)) for metric, name in _METRICS]
    errors = Html("<ul>" + "".join(f"<li>{text(error)}</li>" for error in level.errors) + "</ul>")
    return joined(
        [
            pairs(items),
            table("Latencies", heads, rows),
            _intervals(level.intervals),
            errors if level.errors else Html(""),
        ]
    )


def _statistics(level: Level, metric: Literal["ttft", "itl", "tpot", "e2el"]) -> Iterator[Html]:
    spread = level.spread(metric)
    yield from map(span, (spread.mean, spread.std, spread.p50, spread.p90, spread.p95, spread.p99))
    yield number(spread.n)


def _intervals(intervals: Sequence[Interval]) -> Html:
    if not intervals:
        return paragraph(text("Too few repeats for an interval."), kind="quiet")
    rows = [
        (
            text(each.metric),
            *(number(value) for value in (each.mean, each.low, each.high, each.std)),
            joined(map(number, each.values), " · "),
        )
        for each in intervals
    ]
    return table(
        "95 % intervals, and the value of each repeat",
        ("Figure", "Mean", "Low", "High", "Std", "Repeats"),
        rows,
    )
