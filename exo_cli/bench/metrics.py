"""From what came and when, to a level's figures. Pure; the definitions are the field's.

Time to first token (TTFT): from sending to the first token. Inter-token latency (ITL): every gap between
two arrivals. Time per output token (TPOT): what is left of the whole (E2EL) after the first token, over
the tokens after the first. Rates come from whole rounds, one value a round: `prefill_tokens_per_s`
counts the prompts' tokens until the last request has its first token; `decode_tokens_per_s` is the sum of
the requests' rates between the moment when the last of them began to decode and the moment when the first
one ended, so that all of them decode all the time. A round in which a request failed gives no rate.
Knows nothing of clocks, targets and requests under way.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Final

from exo_cli.bench.confidence import interval
from exo_cli.bench.load import Round, Sample, Spot
from exo_cli.schemas.bench import Interval, Level

_PERCENTILES: Final = (50, 90, 95, 99)


def levels(rounds: Sequence[Round]) -> tuple[Level, ...]:
    """Of each level that was measured, in the order in which they first ran."""
    measured = [each for each in rounds if not each.warmup]
    spots = list(dict.fromkeys(each.spot for each in measured))
    return tuple(_level(spot, [each for each in measured if each.spot == spot]) for spot in spots)


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Between the two nearest in proportion, as numpy does."""
    if not values:
        return None
    ordered = sorted(values)
    at = (len(ordered) - 1) * percent / 100
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def _level(spot: Spot, rounds: Sequence[Round]) -> Level:
    samples = [sample for each in rounds for sample in each.samples]
    good = [sample for sample in samples if sample.completed]
    duration_s = sum(each.ended_s - each.began_s for each in rounds)
    into, out = sum(each.input_tokens for each in good), sum(each.output_tokens for each in good)
    ttfts = [_ttft_s(sample) for sample in good]
    itls = [_gaps_s(sample) for sample in good]
    intervals = tuple(_intervals(rounds))
    means = {each.metric: each.mean for each in intervals}
    joules = [each.joules for each in rounds if each.joules is not None]
    failed = [sample for sample in samples if not sample.completed]
    latencies: dict[str, list[float]] = {
        "ttft": ttfts,
        "itl": [gap for gaps in itls for gap in gaps],
        "tpot": [each for sample in good if (each := _tpot_s(sample)) is not None],
        "e2el": [sample.arrivals[-1].at_s - sample.sent_s for sample in good],
    }
    return Level(
        max_concurrency=spot.concurrency,
        depth=spot.depth,
        num_prompts=len(samples),
        completed=len(good),
        failed=len(failed),
        incomplete=sum(bool(sample.arrivals) for sample in failed),
        errors=tuple(dict.fromkeys(_why(sample) for sample in failed)),
        duration=_rounded(duration_s, 6) or 0.0,
        total_input_tokens=into,
        total_output_tokens=out,
        cached_tokens=sum(each.cached_tokens for each in good),
        request_throughput=_per_s(len(good), duration_s),
        output_throughput=_per_s(out, duration_s),
        total_token_throughput=_per_s(into + out, duration_s),
        prefill_tokens_per_s=means.get("prefill_tokens_per_s", _only(rounds, prefill_tokens_per_s)),
        decode_tokens_per_s=means.get("decode_tokens_per_s", _only(rounds, decode_tokens_per_s)),
        joules_per_token=_rounded(sum(joules) / out, 4) if out and len(joules) == len(rounds) else None,
        intervals=intervals,
        input_lens=tuple(sample.input_tokens for sample in good),
        output_lens=tuple(sample.output_tokens for sample in good),
        ttfts=tuple(round(each, 6) for each in ttfts),
        itls=tuple(tuple(round(gap, 6) for gap in gaps) for gaps in itls),
        **_spread(latencies),
    )


def _spread(latencies: dict[str, list[float]]) -> dict[str, Any]:
    """The flat keys of every latency, in milliseconds."""
    found: dict[str, Any] = {}
    for name, seconds in latencies.items():
        ms = [each * 1000 for each in seconds]
        found[f"n_{name}"] = len(ms)
        found[f"mean_{name}_ms"] = _rounded(statistics.fmean(ms) if ms else None, 4)
        found[f"std_{name}_ms"] = _rounded(statistics.pstdev(ms) if ms else None, 4)
        found[f"median_{name}_ms"] = _rounded(percentile(ms, 50), 4)
        for percent in _PERCENTILES:
            found[f"p{percent}_{name}_ms"] = _rounded(percentile(ms, percent), 4)
    return found


# -- one request -----------------------------------------------------------------------------------


def _ttft_s(sample: Sample) -> float:
    return sample.arrivals[0].at_s - sample.sent_s


def _gaps_s(sample: Sample) -> list[float]:
    return [after.at_s - before.at_s for before, after in pairwise(sample.arrivals)]


def _tpot_s(sample: Sample) -> float | None:
    if sample.output_tokens < 2:
        return None
    return (sample.arrivals[-1].at_s - sample.arrivals[0].at_s) / (sample.output_tokens - 1)


def _why(sample: Sample) -> str:
    return "no token came" if sample.error is None else sample.error.message


# -- one round -------------------------------------------------------------------------------------


def prefill_tokens_per_s(round_: Round) -> float | None:
    """What was computed of all prompts, until every request had its first token."""
    if not _whole(round_):
        return None
    last_s = max(sample.arrivals[0].at_s for sample in round_.samples)
    computed = sum(sample.input_tokens - sample.cached_tokens for sample in round_.samples)
    return _per_s(computed, last_s - round_.began_s) if computed > 0 else None


def decode_tokens_per_s(round_: Round) -> float | None:
    """While all of them decode; None if they never all did for two tokens."""
    if not _whole(round_):
        return None
    begin_s = max(sample.arrivals[0].at_s for sample in round_.samples)
    end_s = min(sample.arrivals[-1].at_s for sample in round_.samples)
    rate = 0.0
    for sample in round_.samples:
        inside = [each for each in sample.arrivals if begin_s <= each.at_s <= end_s]
        if len(inside) < 2 or inside[-1].at_s <= inside[0].at_s:
            return None
        # What the target counted itself is spread over what came: pieces may hold more than they say.
        weight = sample.output_tokens / sum(each.count for each in sample.arrivals)
        rate += weight * sum(each.count for each in inside[1:]) / (inside[-1].at_s - inside[0].at_s)
    return _rounded(rate, 3)


def _output_throughput(round_: Round) -> float | None:
    if not _whole(round_):
        return None
    return _per_s(sum(sample.output_tokens for sample in round_.samples), round_.ended_s - round_.began_s)


def _mean_ttft_ms(round_: Round) -> float | None:
    if not _whole(round_):
        return None
    return _rounded(statistics.fmean(_ttft_s(sample) for sample in round_.samples) * 1000, 4)


def _whole(round_: Round) -> bool:
    return all(sample.completed for sample in round_.samples)


HEADLINES: Final[dict[str, Callable[[Round], float | None]]] = {
    "prefill_tokens_per_s": prefill_tokens_per_s,
    "decode_tokens_per_s": decode_tokens_per_s,
    "output_throughput": _output_throughput,
    "mean_ttft_ms": _mean_ttft_ms,
}
"""The figures that get an interval, and what each round says of them."""


def _intervals(rounds: Sequence[Round]) -> list[Interval]:
    found = []
    for metric, of in HEADLINES.items():
        values = tuple(value for each in rounds if (value := of(each)) is not None)
        around = interval(values)
        if around is not None:
            found.append(
                Interval(
                    metric=metric,
                    mean=round(around.mean, 4),
                    low=round(around.low, 4),
                    high=round(around.high, 4),
                    std=round(statistics.stdev(values), 4),
                    values=values,
                )
            )
    return found


def _only(rounds: Sequence[Round], of: Callable[[Round], float | None]) -> float | None:
    """Of a level with one round that says something."""
    return next((value for each in rounds if (value := of(each)) is not None), None)


def _per_s(count: int, seconds: float) -> float | None:
    return _rounded(count / seconds, 3) if seconds > 0 else None


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
