"""Intervals from a few repeats: exact where tables exist, and honest on made-up noise."""

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo_cli.bench.confidence import FLOOR, WIDEST, interval, ratio, t_quantile

POSITIVE = st.floats(1e-6, 1e6)


@pytest.mark.parametrize(
    ("p", "freedom", "expected"),
    [
        (0.975, 1, 12.7062),
        (0.975, 2, 4.3027),
        (0.975, 4, 2.7764),
        (0.975, 9, 2.2622),
        (0.995, 4, 4.6041),
        (0.95, 30, 1.6973),
        (0.9995, 4, 8.6103),
        (0.5, 3, 0.0),
        (0.975, math.inf, 1.95996),
    ],
)
def test_students_t_is_that_of_the_tables(p: float, freedom: float, expected: float) -> None:
    assert t_quantile(p, freedom) == pytest.approx(expected, abs=1e-4)


def test_a_probability_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="between"):
        t_quantile(1.0, 3)


@pytest.mark.parametrize("values", [(), (5.0,), (5.0, 0.0), (5.0, -1.0)])
def test_what_says_nothing_has_no_interval(values: tuple[float, ...]) -> None:
    assert interval(values) is None
    assert ratio(values, (1.0, 2.0)) is None
    assert ratio((1.0, 2.0), values) is None


@given(st.lists(POSITIVE, min_size=2, max_size=20))
def test_an_interval_holds_its_mean_and_never_claims_too_much(values: list[float]) -> None:
    found = interval(values)
    assert found is not None
    assert 0 < found.low < found.mean < found.high < math.inf
    assert found.high / found.mean >= 1 + FLOOR * 0.999
    assert min(values) * 0.999 <= found.mean <= max(values) * 1.001


def test_an_interval_of_mere_noise_stays_within_numbers() -> None:
    found = interval((1e-3, 1e6))
    assert found is not None
    assert found.high / found.mean == pytest.approx(WIDEST)
    assert found.mean / found.low == pytest.approx(WIDEST)


@pytest.mark.parametrize("noise", [0.03, 0.2])
@pytest.mark.parametrize("repeats", [3, 5])
def test_another_run_falls_into_the_interval_as_often_as_it_says(noise: float, repeats: int) -> None:
    dice = random.Random(5)

    def run() -> list[float]:
        return [100 * math.exp(dice.gauss(0, noise)) for _ in range(repeats)]

    hits = 0
    for _ in range(2000):
        found = interval(run())
        assert found is not None
        hits += found.low <= statistics.geometric_mean(run()) <= found.high
    # 95 of 100, within five standard deviations of a fair count.
    assert 0.925 < hits / 2000 < 0.975


def test_the_ratio_of_two_runs_of_the_same_thing_rarely_excludes_one() -> None:
    dice = random.Random(6)
    missed = 0
    for _ in range(400):
        a, b = ([math.exp(dice.gauss(0, sigma)) for _ in range(5)] for sigma in (0.05, 0.15))
        found = ratio(a, b)
        assert found is not None
        missed += not found.low <= 1 <= found.high
    assert missed / 400 < 0.08


def test_a_real_difference_is_seen_and_a_small_one_is_not() -> None:
    a = (100.0, 101.0, 99.0, 100.5)
    slower = ratio(a, tuple(value * 0.8 for value in a))
    assert slower is not None
    assert slower.high < 1
    assert slower.mean == pytest.approx(0.8)
    same = ratio((100.0, 100.0, 100.0), (101.0, 101.0, 101.0))
    assert same is not None
    assert same.low <= 1 <= same.high
