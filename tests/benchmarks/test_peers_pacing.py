"""How a slow side gets through, and how tokens become rates."""

import pytest

from benchmarks.peers.pacing import PROBE, affordable, rate, rate_together
from benchmarks.peers.shapes import even


def test_a_fast_side_does_all_of_it() -> None:
    assert affordable(2048, 4, 0.01, 30.0) == 2048


def test_a_slow_side_does_what_there_is_time_for() -> None:
    assert affordable(2048, 4, 4.0, 30.0) == 30


def test_a_side_without_time_still_does_the_probe() -> None:
    assert affordable(2048, 4, 4.0, -5.0) == PROBE
    assert affordable(2, 4, 4.0, -5.0) == 2


def test_the_first_token_begins_the_clock() -> None:
    assert rate([10.0, 10.5, 11.0]) == pytest.approx(2.0)
    assert rate([10.0]) is None


def test_only_the_time_in_which_all_generate_counts() -> None:
    early = [0.0, 1.0, 2.0, 3.0]
    late = [1.0, 2.0, 3.0, 4.0, 5.0]
    assert rate_together([early, late]) == pytest.approx(2.0)
    assert rate_together([early, []]) is None
    assert rate_together([early, [9.0, 10.0]]) is None


@pytest.mark.parametrize(
    ("layers", "head", "stages", "bounds"),
    [
        ([1] * 4, 0, 2, (0, 2, 4)),
        ([1] * 16, 4, 2, (0, 10, 16)),
        ([1] * 6, 0, 3, (0, 2, 4, 6)),
        ([1] * 3, 100, 2, (0, 2, 3)),
        ([1] * 5, 0, 1, (0, 5)),
    ],
)
def test_stages_read_about_as_much(
    layers: list[int], head: int, stages: int, bounds: tuple[int, ...]
) -> None:
    assert even(layers, head, stages) == bounds
