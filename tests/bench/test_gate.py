"""A target that lies is found out, and nothing is held against one that cannot be compared."""

import asyncio
from collections.abc import Sequence

import pytest

from exo_cli.bench import gate
from exo_cli.bench import load as module
from exo_cli.bench.load import Load, Round, Spot, prompt, run
from exo_cli.bench.verify import excused
from exo_cli.errors import Unavailable
from tests.support.fake_target import FakeTarget

LOAD = Load(prompt_tokens=5, gen_tokens=6, concurrency=(1, 2), depths=(0, 9), repeat=2)


def rounds_of(target: FakeTarget, load: Load = LOAD) -> list[Round]:
    return asyncio.run(run(target, load))


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SETTLE_S", 0.0)


def spoiled(tokens: list[int], at: int) -> list[int]:
    return [*tokens[:at], tokens[at] + 1, *tokens[at + 1 :]]


def test_an_honest_target_passes() -> None:
    check = gate.by_levels(rounds_of(FakeTarget()))
    assert (check.state, check.compared) == ("agree", 3)
    assert gate.gate(check).valid


@pytest.mark.parametrize("at", [0, 3, 5])
def test_a_target_that_lies_when_it_is_busy_is_found_out(at: int) -> None:
    target = FakeTarget(lie=lambda tokens, running: spoiled(tokens, at) if running > 1 else tokens)
    check = gate.by_levels(rounds_of(target))
    assert check.state == "differ"
    assert check.said.startswith("with 2 requests at a time it gives another token at position ")
    assert f"position {at + 1} (" in check.said
    assert check.said.endswith(" than with 1")
    assert not gate.gate(check).valid


def test_a_target_that_ends_too_early_is_found_out() -> None:
    target = FakeTarget(lie=lambda tokens, running: tokens[:4] if running > 1 else tokens)
    check = gate.by_levels(rounds_of(target))
    assert (check.state, check.said) == (
        "differ",
        "with 2 requests at a time it gives an answer of another length (4 instead of 6 tokens) than with 1",
    )


def test_one_level_has_nothing_to_be_compared_with() -> None:
    check = gate.by_levels(rounds_of(FakeTarget(), Load(prompt_tokens=5, gen_tokens=2, concurrency=(2,))))
    assert check.state == "skipped"
    assert gate.gate(check).valid


def test_failed_requests_are_not_compared() -> None:
    target = FakeTarget(fail=lambda number: Unavailable("gone") if number == 1 else None)
    assert gate.by_levels(rounds_of(target)).compared == 2


def test_the_whole_model_says_the_same_or_the_chain_is_wrong() -> None:
    rounds = rounds_of(FakeTarget())
    answers = {
        key: sample.answer
        for each in rounds
        for key, sample in zip(each.keys, each.samples, strict=True)
        if not each.warmup
    }
    agree = gate.with_unsplit(rounds, answers)
    # Two repeats of three requests, and two at the further depth.
    assert (agree.state, agree.compared) == ("agree", 8)
    key = rounds[-1].keys[0]
    differ = gate.with_unsplit(rounds, {**answers, key: (999, *answers[key][1:])})
    assert differ.state == "differ"
    assert "the chain gives another token at position 1 (" in differ.said
    assert differ.said.startswith("with 1 request at a time ")
    assert gate.with_unsplit(rounds, {}).state == "skipped"
    assert not gate.gate(agree, differ).valid


def test_what_rounding_explains_is_no_difference_if_somebody_looked() -> None:
    target = FakeTarget(lie=lambda tokens, running: spoiled(tokens, 3) if running > 1 else tokens)
    rounds = rounds_of(target)
    found = gate.differences(rounds, {})
    assert [each.at for each in found] == [3] * 3
    ties = frozenset((each.key, each.at) for each in found)
    check = gate.by_levels(rounds, ties)
    assert (check.state, check.compared) == ("agree", 3)
    assert check.said == "3 of them part where two tokens are as likely"
    assert gate.by_levels(rounds, frozenset(list(ties)[1:])).state == "differ"


@pytest.mark.parametrize(
    ("top", "tie"),
    [
        (((7, -1.0), (8, -1.0005)), True),
        (((8, -1.0), (7, -1.0)), True),
        (((7, -1.0), (8, -1.1)), False),
        (((7, -1.0), (9, -1.0)), False),
        (((7, -1.0),), False),
        ((), False),
    ],
)
def test_rounding_explains_what_is_equally_likely_and_nothing_else(
    top: tuple[tuple[int, float], ...], tie: bool
) -> None:
    key = (0, 0, 0, 0)
    part = gate.Difference(key, Spot(2), (5, 6, 7, 1), (5, 6, 8, 2))
    shorter = gate.Difference(key, Spot(2), (5, 6), (5,))
    asked: list[tuple[int, ...]] = []

    async def likeliest(ids: Sequence[int]) -> tuple[tuple[int, float], ...]:
        asked.append(tuple(ids))
        return top

    found = asyncio.run(excused([part, shorter], LOAD, 500, likeliest))
    assert found == ({(key, 2)} if tie else set())
    # What the chain is asked is the prompt and what both said.
    assert asked == [(*prompt(LOAD, key, 500), 5, 6)]
    many = [gate.Difference((0, 0, at, 0), Spot(2), (7,), (8,)) for at in range(50)]
    assert asyncio.run(excused(many, LOAD, 500, likeliest)) == frozenset()


def test_texts_are_compared_whole_however_they_are_cut() -> None:
    load = Load(prompt_tokens=5, gen_tokens=3, concurrency=(1,), depths=(0,), repeat=1, warmup=0)
    (only,) = rounds_of(FakeTarget(), load)
    (key,) = only.keys
    texts = ("he", "llo", "!")
    for arrival, text in zip(only.samples[0].arrivals, texts, strict=True):
        object.__setattr__(arrival, "token", text)
    assert gate.with_unsplit([only], {key: ("hello", "!")}).state == "agree"
    check = gate.with_unsplit([only], {key: ("help", "!")})
    assert (check.state, "character 4" in check.said) == ("differ", True)
