"""Rounds of requests: how many, which prompts, in which order, and what a failure does."""

import asyncio
from collections import Counter

import pytest

from exo_cli.bench import load as module
from exo_cli.bench.load import Load, Round, Spot, prompt, run
from exo_cli.errors import DoesNotFit, Unavailable
from tests.support.fake_target import FakeTarget, right

SMALL = Load(prompt_tokens=5, gen_tokens=4, concurrency=(1, 3), depths=(0, 7), repeat=2, warmup=1)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SETTLE_S", 0.0)


def rounds_of(target: FakeTarget, load: Load) -> list[Round]:
    return asyncio.run(run(target, load))


def test_every_concurrency_runs_at_the_least_depth_and_every_further_depth_once() -> None:
    load = Load(concurrency=(4, 1, 4), depths=(100, 0, 30))
    assert load.spots() == [Spot(1, 0), Spot(4, 0), Spot(1, 30), Spot(1, 100)]


def test_room_is_asked_for_as_much_as_the_largest_level_needs() -> None:
    load = Load(prompt_tokens=6, gen_tokens=4, concurrency=(1, 8), depths=(0, 20))
    assert (load.context, load.concurrent) == (30, 3)
    assert Load(depths=(0,)).concurrent == 8


def test_levels_of_one_depth_take_turns_after_their_warm_ups() -> None:
    found = [(each.spot.concurrency, each.spot.depth, each.warmup) for each in rounds_of(FakeTarget(), SMALL)]
    assert found == [
        *((1, 0, True), (3, 0, True)),
        *((1, 0, False), (3, 0, False)) * 2,
        *((1, 7, True), (1, 7, False), (1, 7, False)),
    ]


def test_a_depth_is_filled_before_it_is_timed_also_without_warm_up() -> None:
    load = Load(prompt_tokens=5, gen_tokens=4, concurrency=(1,), depths=(0, 7), repeat=1, warmup=0)
    assert [each.warmup for each in rounds_of(FakeTarget(), load)] == [False, True, False]


def test_prompts_are_exact_follow_from_the_seed_and_are_all_different() -> None:
    target = FakeTarget()
    rounds = rounds_of(target, SMALL)
    prompts = {}
    for each in rounds:
        for key, sample in zip(each.keys, each.samples, strict=True):
            prompts[key] = prompt(SMALL, key, target.vocabulary)
            assert len(prompts[key]) == each.spot.depth + SMALL.prompt_tokens == sample.input_tokens
            assert all(0 <= token < target.vocabulary for token in prompts[key])
            assert sample.answer == tuple(right(prompts[key], SMALL.gen_tokens))
    assert len(set(prompts.values())) == len(prompts)
    again = FakeTarget()
    rounds_of(again, SMALL)
    assert [each[0] for each in again.asked] == [each[0] for each in target.asked]
    other = FakeTarget()
    rounds_of(other, Load(prompt_tokens=5, gen_tokens=4, concurrency=(1, 3), depths=(0, 7), seed=1))
    assert not {each[0] for each in other.asked} & {each[0] for each in target.asked}


def test_what_stands_before_prompts_is_the_same_and_may_be_kept() -> None:
    target = FakeTarget()
    rounds_of(target, SMALL)
    deep = [asked for asked, _, keep in target.asked if keep]
    assert len(deep) == 3
    assert len({asked[:7] for asked in deep}) == 1
    assert all(len(asked) == 5 for asked, _, keep in target.asked if not keep)


def test_the_same_prompts_run_at_all_levels_unless_the_target_remembers() -> None:
    # What both levels have in common: the first request of each of the two repeats and of the warm-up.
    shared = Counter(asked for asked, _, _ in _asked(remembers=False))
    assert sorted(shared.values()) == [1] * 6 + [2] * 3
    own = Counter(asked for asked, _, _ in _asked(remembers=True))
    assert sorted(own.values()) == [1] * 10 + [2]


def _asked(*, remembers: bool) -> list[tuple[tuple[int, ...], int, bool]]:
    target = FakeTarget(remembers=remembers)
    rounds_of(target, Load(prompt_tokens=5, gen_tokens=4, concurrency=(1, 3), depths=(0,), repeat=2))
    return target.asked


def test_so_many_run_at_a_time_and_none_is_left() -> None:
    target = FakeTarget()
    rounds_of(target, SMALL)
    assert (target.most, target.running) == (3, 0)


def test_a_failure_is_counted_and_the_others_go_on() -> None:
    target = FakeTarget(fail=lambda number: Unavailable("gone") if number == 2 else None)
    rounds = rounds_of(target, SMALL)
    failed = [sample for each in rounds for sample in each.samples if not sample.completed]
    assert [(str(sample.error), sample.output_tokens) for sample in failed] == [("gone", 2)]
    assert len(rounds) == 9


def test_a_level_that_fails_as_a_whole_is_not_tried_again() -> None:
    target = FakeTarget(fail=lambda number: DoesNotFit("no room") if 1 <= number <= 3 else None)
    seen: list[tuple[int, int]] = []
    rounds = asyncio.run(run(target, SMALL, on_round=lambda each, done, total: seen.append((done, total))))
    assert [each.spot.concurrency for each in rounds] == [1, 3, 1, 1, 1, 1, 1]
    assert seen[-1][0] == len(rounds)


def test_where_nothing_works_the_first_error_is_raised() -> None:
    with pytest.raises(Unavailable, match="gone"):
        rounds_of(FakeTarget(fail=lambda number: Unavailable("gone")), SMALL)


def test_energy_is_read_around_each_round() -> None:
    counter = iter(range(100))
    rounds = asyncio.run(run(FakeTarget(), SMALL, joules=lambda: float(next(counter))))
    assert [each.joules for each in rounds] == [1.0] * 9
