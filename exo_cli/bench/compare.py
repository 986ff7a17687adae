"""Two runs of the bench beside each other, with their noise. Pure.

Every headline figure that both have is judged by the confidence interval of its ratio. Since many are
judged at once, each is held to a stricter confidence (Bonferroni), so that two runs of the same thing
are called different once in twenty comparisons, not once in twenty figures; what is within the floor of
`confidence` is never called a change, nor what the two runs' own intervals have in common. Knows nothing
of files.
"""

from collections.abc import Iterator
from typing import Final, Literal

from exo_cli.bench.confidence import CONFIDENCE, ratio
from exo_cli.schemas.bench import Bench, Change, Comparison, Level

JUDGED: Final[dict[str, Literal[1, -1]]] = {
    "prefill_tokens_per_s": 1,
    "decode_tokens_per_s": 1,
    "output_throughput": 1,
    "mean_ttft_ms": -1,
}
"""With the sign of what is better."""

_CONDITIONS: Final = (
    "prompt_tokens",
    "gen_tokens",
    "seed",
    "numerics",
    "kv_bits",
    "threads",
    "memory_bytes",
)

Verdict = Literal["same", "better", "worse", "mixed", "unknown"]


def compare(a: Bench, b: Bench, *, names: tuple[str, str] = ("A", "B")) -> Comparison:
    """`b` against `a`."""
    pairs = list(_pairs(a, b))
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(pairs))
    changes = tuple(_change(*pair, confidence) for pair in pairs)
    return Comparison(
        a=names[0], b=names[1], verdict=_verdict(changes), changes=changes, notes=tuple(_notes(a, b))
    )


def _pairs(a: Bench, b: Bench) -> Iterator[tuple[Level, Level, str]]:
    others = {(level.max_concurrency, level.depth): level for level in b.levels}
    for level in a.levels:
        other = others.get((level.max_concurrency, level.depth))
        if other is not None:
            for metric in JUDGED:
                if getattr(level, metric) is not None and getattr(other, metric) is not None:
                    yield level, other, metric


def _change(a: Level, b: Level, metric: str, confidence: float) -> Change:
    one, other = a.interval(metric), b.interval(metric)
    around = ratio(one.values, other.values, confidence) if one and other else None
    before, after = float(getattr(a, metric)), float(getattr(b, metric))
    verdict: Literal["same", "better", "worse", "unknown"] = "unknown"
    if around is not None and one and other:
        apart = one.high < other.low or other.high < one.low
        more = 0 if not apart else 1 if around.low > 1 else -1 if around.high < 1 else 0
        verdict = "same" if not more else "better" if more == JUDGED[metric] else "worse"
    return Change(
        max_concurrency=a.max_concurrency,
        depth=a.depth,
        metric=metric,
        a=before,
        b=after,
        ratio=round(around.mean if around else after / before if before else 0.0, 4),
        ratio_low=round(around.low, 4) if around else None,
        ratio_high=round(around.high, 4) if around else None,
        verdict=verdict,
    )


def _verdict(changes: tuple[Change, ...]) -> Verdict:
    found = {change.verdict for change in changes}
    if {"better", "worse"} <= found:
        return "mixed"
    for verdict in ("worse", "better", "same"):
        if verdict in found:
            return verdict
    return "unknown"


def _notes(a: Bench, b: Bench) -> Iterator[str]:
    """What is not equal, and so may be what differs."""
    if (a.model.digest, a.model.name) != (b.model.digest, b.model.name) and (
        a.model.digest is None or a.model.digest != b.model.digest
    ):
        yield f"the models differ: {a.model.name} and {b.model.name}"
    for name in _CONDITIONS:
        one, other = getattr(a.conditions, name), getattr(b.conditions, name)
        if one != other:
            yield f"{name.replace('_', ' ')} differs: {_shown(one)} and {_shown(other)}"
    if a.machine != b.machine:
        yield f"the machines differ: {a.machine} and {b.machine}"
    splits = [[(stage.node, stage.layers) for stage in each.stages] for each in (a, b)]
    if splits[0] != splits[1]:
        yield f"the splits differ: {_split(a)} and {_split(b)}"
    for name, each in zip(("A", "B"), (a, b), strict=True):
        if not each.gate.valid:
            yield f"{name} is marked invalid: its greedy tokens differ"
    spots = [{(level.max_concurrency, level.depth) for level in each.levels} for each in (a, b)]
    for concurrency, depth in sorted(spots[0] ^ spots[1]):
        yield f"one of them lacks the level with {concurrency} at a time at depth {depth}"


def _shown(value: object) -> str:
    return "none" if value is None else str(value)


def _split(bench: Bench) -> str:
    return ", ".join(f"{stage.node} {stage.layers[0]}-{stage.layers[1] - 1}" for stage in bench.stages) or "-"
