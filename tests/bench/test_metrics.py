"""Figures from made-up arrivals, checked by hand and against numpy."""

import statistics
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo_cli.bench.load import Round, Sample, Spot
from exo_cli.bench.metrics import decode_tokens_per_s, levels, percentile, prefill_tokens_per_s
from exo_cli.bench.target import Arrival
from exo_cli.errors import Unavailable


def sample(
    sent_s: float, times_s: Sequence[float], *, n: int = 10, cached: int = 0, count: int = 1
) -> Sample:
    arrivals = [Arrival(at_s, 7, count) for at_s in times_s]
    return Sample(len(times_s), n, sent_s=sent_s, arrivals=arrivals, cached_tokens=cached)


def round_(*samples: Sample, warmup: bool = False, depth: int = 0, began_s: float = 0.0) -> Round:
    spot = Spot(len(samples), depth)
    ended_s = max((each.arrivals[-1].at_s for each in samples if each.arrivals), default=began_s)
    return Round(
        spot, warmup, [(0, 0, at, depth) for at in range(len(samples))], list(samples), began_s, ended_s
    )


def test_one_request_by_hand() -> None:
    # Sent at 1; tokens at 1.5, 1.6, 1.8, 2.1.
    (level,) = levels([round_(sample(1.0, (1.5, 1.6, 1.8, 2.1)), began_s=1.0)])
    assert (level.n_ttft, level.mean_ttft_ms, level.p99_ttft_ms) == (1, 500.0, 500.0)
    assert (level.n_itl, level.median_itl_ms, level.mean_itl_ms) == (3, 200.0, 200.0)
    assert level.mean_tpot_ms == 200.0
    assert level.mean_e2el_ms == 1100.0
    assert level.prefill_tokens_per_s == pytest.approx(20)
    assert level.decode_tokens_per_s == pytest.approx(5)
    assert level.output_throughput == pytest.approx(4 / 1.1, abs=1e-3)
    assert level.total_token_throughput == pytest.approx(14 / 1.1, abs=1e-3)
    assert level.request_throughput == pytest.approx(1 / 1.1, abs=1e-3)
    assert level.duration == pytest.approx(1.1)
    assert (level.total_input_tokens, level.total_output_tokens) == (10, 4)
    assert level.itls[0] == pytest.approx((0.1, 0.2, 0.3))
    # One repeat: no interval, and the figure all the same.
    assert level.intervals == ()


def test_inter_token_latency_is_not_time_per_output_token() -> None:
    # Two tokens a piece: three gaps, seven tokens after the first.
    (level,) = levels([round_(sample(0.0, (1.0, 1.2, 1.4, 1.6), count=2))])
    assert level.mean_itl_ms == pytest.approx(200)
    assert level.mean_tpot_ms == pytest.approx(600 / 7, abs=1e-3)
    assert level.total_output_tokens == 8


def test_pieces_that_do_not_say_how_many_tokens_they_hold_share_what_was_counted() -> None:
    # Three tokens a piece, and only the sum is told.
    silent = sample(0.0, (1.0, 1.5, 2.0))
    silent.counted_tokens = 9
    assert decode_tokens_per_s(round_(silent)) == pytest.approx(6)
    assert decode_tokens_per_s(round_(sample(0.0, (1.0, 1.5, 2.0), count=3))) == pytest.approx(6)


def test_what_the_target_counted_goes_before_what_came() -> None:
    counted = sample(0.0, (1.0, 1.5))
    counted.counted_tokens = 11
    (level,) = levels([round_(counted)])
    assert (level.total_output_tokens, level.mean_tpot_ms) == (11, 50.0)


def test_rates_of_several_are_those_of_the_time_when_all_run() -> None:
    # The second begins to decode at 3 and the first ends at 5: a token each half second, and each second.
    one = sample(0.0, [1.0 + 0.5 * at for at in range(9)])
    two = sample(0.0, [3.0 + at for at in range(6)])
    both = round_(one, two)
    assert decode_tokens_per_s(both) == pytest.approx(2 + 1)
    assert prefill_tokens_per_s(both) == pytest.approx(20 / 3, abs=1e-3)


def test_who_never_decodes_together_has_no_rate() -> None:
    apart = round_(sample(0.0, (1.0, 1.1, 1.2)), sample(0.0, (2.0, 2.1, 2.2)))
    assert decode_tokens_per_s(apart) is None
    (level,) = levels([apart])
    assert level.decode_tokens_per_s is None
    assert level.output_throughput is not None


def test_what_was_kept_was_not_computed() -> None:
    kept = round_(sample(0.0, (0.5, 0.6), n=110, cached=100), depth=100)
    assert prefill_tokens_per_s(kept) == pytest.approx(20)
    assert prefill_tokens_per_s(round_(sample(0.0, (0.5,), n=10, cached=10))) is None


def test_failures_are_counted_and_make_no_figures() -> None:
    cut = sample(0.0, (1.0, 2.0))
    cut.error = Unavailable("lost")
    never = Sample(4, 10, error=Unavailable("lost"))
    silent = Sample(4, 10)
    (level,) = levels([round_(sample(0.0, (1.0, 1.1)), cut, never, silent)])
    assert (level.num_prompts, level.completed, level.failed, level.incomplete) == (4, 1, 3, 1)
    assert level.errors == ("lost", "no token came")
    assert level.n_ttft == 1
    assert (level.prefill_tokens_per_s, level.decode_tokens_per_s) == (None, None)


def test_where_everything_failed_all_is_null() -> None:
    (level,) = levels([round_(Sample(4, 10, error=Unavailable("lost")))])
    assert (level.completed, level.mean_ttft_ms, level.p99_itl_ms, level.std_e2el_ms) == (0, None, None, None)
    assert level.request_throughput is None


def test_warm_ups_count_nothing_and_each_level_stands_alone() -> None:
    warm = round_(sample(0.0, (9.0, 99.0)), warmup=True)
    rounds = [warm, round_(sample(0.0, (1.0, 2.0))), round_(sample(0.0, (1.0, 2.0)), depth=5)]
    found = levels([*rounds, round_(sample(0.0, (3.0, 4.0)))])
    assert [(each.max_concurrency, each.depth, each.num_prompts) for each in found] == [(1, 0, 2), (1, 5, 1)]
    assert found[0].mean_ttft_ms == 2000.0


def test_intervals_come_from_the_repeats() -> None:
    rounds = [round_(sample(0.0, (1.0, 1.0 + gap, 1.0 + 2 * gap))) for gap in (0.1, 0.11, 0.09)]
    (level,) = levels(rounds)
    found = level.interval("decode_tokens_per_s")
    assert found is not None
    assert found.values == pytest.approx((10, 1 / 0.11, 1 / 0.09), abs=1e-3)
    assert found.low < found.mean < found.high
    assert found.mean == level.decode_tokens_per_s
    assert found.mean == pytest.approx(statistics.geometric_mean(found.values), abs=1e-3)
    assert [each.metric for each in level.intervals] == [
        "prefill_tokens_per_s",
        "decode_tokens_per_s",
        "output_throughput",
        "mean_ttft_ms",
    ]
    assert all(hasattr(level, each.metric) for each in level.intervals)


def test_energy_is_over_the_tokens_of_all_rounds_or_unknown() -> None:
    one, two = round_(sample(0.0, (1.0, 2.0))), round_(sample(0.0, (1.0, 2.0)))
    one.joules, two.joules = 3.0, 5.0
    assert levels([one, two])[0].joules_per_token == 2.0
    two.joules = None
    assert levels([one, two])[0].joules_per_token is None


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.sampled_from((0, 50, 90, 95, 99, 100)))
def test_percentiles_are_numpys(values: list[float], percent: int) -> None:
    assert percentile(values, percent) == pytest.approx(float(np.percentile(values, percent)))


def test_nothing_has_no_percentile() -> None:
    assert percentile([], 50) is None


GAPS = st.lists(st.floats(0.001, 2.0), min_size=2, max_size=30)


@given(st.lists(st.tuples(st.floats(0.001, 5.0), GAPS), min_size=1, max_size=6))
def test_figures_hold_together_whatever_comes(requests: list[tuple[float, list[float]]]) -> None:
    samples = []
    for first, gaps in requests:
        times = [first]
        for gap in gaps:
            times.append(times[-1] + gap)
        samples.append(sample(0.0, times))
    (level,) = levels([round_(*samples)])
    metrics: tuple[Literal["ttft", "itl", "tpot", "e2el"], ...] = ("ttft", "itl", "tpot", "e2el")
    for metric in metrics:
        found = level.spread(metric)
        assert found.n > 0
        assert None not in found
        assert found.p50 <= found.p90 <= found.p95 <= found.p99  # type: ignore[operator]
    assert level.n_itl == sum(len(gaps) for _, gaps in requests)
    assert level.mean_e2el_ms >= level.mean_ttft_ms  # type: ignore[operator]
    if level.decode_tokens_per_s is not None:
        # No request is faster than its fastest gap.
        assert level.decode_tokens_per_s <= sum(1 / min(gaps) for _, gaps in requests) * 1.001
