"""Two runs beside each other: noise is no change, a change is seen, and what is not alike is said."""

import math
import random

import msgspec
import pytest

from exo_cli.bench.compare import JUDGED, compare
from exo_cli.schemas.bench import Bench
from tests.support.benches import bench, interval, level


def run(values: dict[str, list[float]], *, concurrency: int = 1, **changes: object) -> Bench:
    """A run with one level and these values by figure."""
    means = {name: sum(each) / len(each) for name, each in values.items()}
    several = {name: each for name, each in values.items() if len(each) > 1}
    made = level(
        concurrency,
        intervals=[interval(name, each, 1.0) for name, each in several.items()],
    )
    made = msgspec.structs.replace(made, **{"mean_ttft_ms": None, **means})
    return msgspec.structs.replace(bench(), levels=(made,), **changes)


STEADY = [100.0, 101.0, 99.5, 100.5, 99.0]


@pytest.mark.parametrize(
    ("metric", "factor", "verdict"),
    [
        ("decode_tokens_per_s", 0.8, "worse"),
        ("decode_tokens_per_s", 1.2, "better"),
        ("decode_tokens_per_s", 1.005, "same"),
        ("mean_ttft_ms", 0.8, "better"),
        ("mean_ttft_ms", 1.2, "worse"),
    ],
)
def test_a_change_is_judged_by_what_is_better(metric: str, factor: float, verdict: str) -> None:
    found = compare(run({metric: STEADY}), run({metric: [value * factor for value in STEADY]}))
    (change,) = found.changes
    assert (change.metric, change.verdict, found.verdict) == (metric, verdict, verdict)
    assert change.ratio == pytest.approx(factor, rel=1e-3)
    assert change.ratio_low is not None
    assert change.ratio_high is not None
    assert change.ratio_low < factor < change.ratio_high


def test_noise_is_taken_into_account() -> None:
    noisy = [100.0, 60.0, 140.0, 80.0, 120.0]
    found = compare(
        run({"decode_tokens_per_s": noisy}), run({"decode_tokens_per_s": [v * 0.85 for v in noisy]})
    )
    assert found.verdict == "same"


def test_intervals_that_overlap_agree() -> None:
    def wide(factor: float) -> Bench:
        made = run({"decode_tokens_per_s": [value * factor for value in STEADY]})
        known = made.levels[0].intervals[0]
        level = msgspec.structs.replace(
            made.levels[0],
            intervals=(msgspec.structs.replace(known, low=known.mean * 0.8, high=known.mean * 1.2),),
        )
        return msgspec.structs.replace(made, levels=(level,))

    assert compare(wide(1.0), wide(0.8)).verdict == "same"
    assert compare(wide(1.0), wide(0.5)).verdict == "worse"


def test_one_repeat_tells_nothing_apart() -> None:
    found = compare(run({"decode_tokens_per_s": [100.0]}), run({"decode_tokens_per_s": STEADY}))
    assert (found.verdict, found.changes[0].verdict, found.changes[0].ratio_low) == (
        "unknown",
        "unknown",
        None,
    )


def test_runs_that_went_both_ways_are_mixed() -> None:
    b = {"prefill_tokens_per_s": [v * 2 for v in STEADY], "decode_tokens_per_s": [v / 2 for v in STEADY]}
    a = {"prefill_tokens_per_s": STEADY, "decode_tokens_per_s": STEADY}
    assert compare(run(a), run(b)).verdict == "mixed"


def test_twenty_figures_of_the_same_thing_are_not_called_different_more_than_once_in_twenty() -> None:
    dice = random.Random(11)

    def noisy() -> Bench:
        values = {name: [100 * math.exp(dice.gauss(0, 0.08)) for _ in range(5)] for name in JUDGED}
        made = run(values)
        levels = [msgspec.structs.replace(made.levels[0], depth=depth) for depth in range(5)]
        return msgspec.structs.replace(made, levels=tuple(levels))

    wrong = sum(compare(noisy(), noisy()).verdict != "same" for _ in range(40))
    # Those at different depths share their values here, which only makes it harder.
    assert wrong <= 40 * 0.2


def test_what_is_not_alike_is_said() -> None:
    a, b = run({"decode_tokens_per_s": STEADY}), run({"decode_tokens_per_s": STEADY}, concurrency=2)
    conditions = msgspec.structs.replace(b.conditions, seed=b.conditions.seed + 1, threads=7)
    model = msgspec.structs.replace(b.model, name="another", digest="f" * 64)
    gate = msgspec.structs.replace(b.gate, valid=False)
    b = msgspec.structs.replace(
        b, conditions=conditions, model=model, gate=gate, machine="a toaster", stages=()
    )
    notes = "\n".join(compare(a, b).notes)
    for word in (
        "models differ",
        "seed differs",
        "threads differs",
        "toaster",
        "splits differ",
        "B is marked invalid",
    ):
        assert word in notes
    assert "one of them lacks the level with 2 at a time" in notes
    assert compare(a, b).changes == ()
    assert compare(a, a).notes == ()
