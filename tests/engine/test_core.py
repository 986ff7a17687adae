"""Whole chains of stage cores in one process, over the real codec and scheduler, with a hash model."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exo_cli.engine.core import MAX_CHUNK, Open, StageCore
from exo_cli.engine.ledger import DoesNotFitNow, StepRefused
from exo_cli.engine.scheduler import Scheduler
from exo_cli.errors import BadData
from exo_cli.schemas.sampling import Sampling
from exo_cli.wire.frames import FrameData, Part, TensorData
from tests.support.chain import Chain, HashCompute, expected


def chain(stages: int, **options: int) -> Chain:
    return Chain([HashCompute() for _ in range(stages)], **options)  # type: ignore[arg-type]


def is_empty(made: Chain) -> bool:
    return all(not core.ledger.entries and core.ledger.reserved_bytes == 0 for core in made.cores)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 7),
    st.lists(
        st.tuples(st.lists(st.integers(0, 99), min_size=1, max_size=20), st.integers(1, 12)),
        min_size=1,
        max_size=5,
    ),
)
def test_any_split_any_batch_and_any_chunking_gives_the_same_tokens(
    stages: int, chunk: int, requests: list[tuple[list[int], int]]
) -> None:
    made = chain(stages, chunk=chunk)
    seen = [made.open(number, prompt, n) for number, (prompt, n) in enumerate(requests)]
    made.run()
    for each, (prompt, n) in zip(seen, requests, strict=True):
        assert each.tokens == expected(stages, prompt, n)
        assert each.finished == "length"
    assert is_empty(made)
    assert all(core.compute.alive == 0 for core in made.cores)  # type: ignore[attr-defined]


def test_a_prompt_goes_in_chunks_that_the_slowest_stage_takes() -> None:
    steps = {}
    for slow in range(3):
        made = chain(3, chunk=8)
        made.cores[slow].scheduler.chunk_tokens = 2
        seen = made.open(1, list(range(1, 18)), 1)
        made.run()
        assert seen.tokens == expected(3, list(range(1, 18)), 1)
        assert seen.prefilled == [2, 4, 6, 8, 10, 12, 14, 16, 17]
        steps[slow] = [core.steps for core in made.cores]
    assert steps == {slow: [9, 9, 9] for slow in range(3)}


def test_a_stop_id_ends_a_request_and_is_its_last_token() -> None:
    wanted = expected(2, [1, 2, 3], 20)
    stop = wanted[7]
    made = chain(2)
    seen = made.open(1, [1, 2, 3], 20, stop_ids=frozenset({stop}))
    made.run()
    assert seen.tokens == wanted[: wanted.index(stop) + 1]
    assert seen.finished == "stop"
    assert is_empty(made)


def test_four_requests_share_steps() -> None:
    made = chain(1)
    for number in range(4):
        made.open(number, [number, 5, 6], 40)
    made.run()
    assert made.cores[0].steps <= 1.3 * 40


def test_a_conversation_reuses_what_is_there() -> None:
    made = chain(3)
    first = made.open(1, [1, 2, 3, 4, 5], 6, keep_prefix=True)
    made.run()
    turn = [1, 2, 3, 4, 5, *first.tokens, 9, 9]
    before = [core.rows for core in made.cores]
    second = made.open(2, turn, 4, keep_prefix=True)
    made.run()
    # All but the newest sampled token and the user's words were computed before.
    assert second.prefix == len(turn) - 3
    assert [core.rows - old for core, old in zip(made.cores, before, strict=True)] == [3 + 3] * 3
    assert second.tokens == expected(3, turn, 4)


def test_the_smallest_prefix_of_the_chain_counts() -> None:
    made = chain(3)
    made.open(1, [1, 2, 3, 4, 5], 2, keep_prefix=True)
    made.run()
    middle = made.cores[1].compute
    assert isinstance(middle, HashCompute)
    middle.prefixes = {(1, 2): next(iter(middle.prefixes.values()))[:2]}
    again = made.open(2, [1, 2, 3, 4, 5, 6], 3)
    made.run()
    assert again.prefix == 2
    assert again.tokens == expected(3, [1, 2, 3, 4, 5, 6], 3)


def test_a_cache_that_cannot_be_cut_starts_from_nothing() -> None:
    made = chain(2)
    made.open(1, [1, 2, 3, 4], 2, keep_prefix=True)
    made.run()
    for core in made.cores:
        assert isinstance(core.compute, HashCompute)
        core.compute.rewindable = False
    tail = made.cores[1].compute
    assert isinstance(tail, HashCompute)
    tail.prefixes.clear()
    again = made.open(2, [1, 2, 3, 4, 8], 2)
    made.run()
    assert again.prefix == 0
    assert again.tokens == expected(2, [1, 2, 3, 4, 8], 2)


def test_what_does_not_fit_is_refused_before_it_starts_and_every_reservation_released() -> None:
    made = Chain([HashCompute(), HashCompute(bytes_per_token=1000), HashCompute()], budget=50_000)
    seen = made.open(1, [1, 2, 3], 60)
    made.run()
    assert isinstance(seen.refused, DoesNotFitNow)
    assert seen.refused.needed_bytes == 63_000
    assert seen.refused.free_bytes == 50_000
    assert is_empty(made)
    small = made.open(2, [1, 2, 3], 10)
    made.run()
    assert small.tokens == expected(3, [1, 2, 3], 10)


def test_a_cancelled_request_frees_its_room_and_leaves_the_others_alone() -> None:
    made = chain(2)
    made.open(1, [1], 1000)
    other = made.open(2, [2], 30)
    for _ in range(40):
        made.tick()
    made.cancel(1)
    made.run()
    assert other.tokens == expected(2, [2], 30)
    assert is_empty(made)


@pytest.mark.parametrize("where", [1, 2])
@pytest.mark.parametrize("ticks", range(40, 60, 3))
def test_a_request_that_a_later_stage_ends_takes_nobody_with_it(where: int, ticks: int) -> None:
    """Its row is in a frame with others', which was on its way."""
    made = chain(3)
    made.open(1, [1], 1000)
    others = {number: made.open(number, [number], 30) for number in (2, 3, 4, 5)}
    for _ in range(ticks):
        made.tick()
    made._carry(where, made.cores[where].end_early(1, 1))
    for _ in range(ticks):
        made.tick()
    # What it said has come up by now, and the goodbye goes down.
    made.cancel(1)
    made.run()
    for number, other in others.items():
        assert other.refused is None
        assert other.tokens == expected(3, [number], 30)
    assert is_empty(made)
    assert not made.cores[where].over


def test_requests_that_ended_early_are_forgotten_one_day(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exo_cli.engine.core.MAX_OVER", 3)
    core = StageCore(
        HashCompute(), 1000, first=False, last=True, scheduler=Scheduler(stages=2, chunk_tokens=4)
    )
    for request in range(6):
        core.open(Open(request, 1, (1,), Sampling(), max_tokens=4))
        core.end_early(request, 1)
    assert list(core.over) == [3, 4, 5]
    row = TensorData("float32", (1, 1), bytes(4))
    assert core.frame(FrameData(1, (Part(4, 1, 0, 1),), (1,), row), 0.0) == []
    with pytest.raises(StepRefused):
        core.frame(FrameData(1, (Part(4, 2, 0, 1),), (1,), row), 0.0)
    core.open(Open(4, 2, (1,), Sampling(), max_tokens=4))
    assert list(core.over) == [3, 5]
    assert core.frame(FrameData(1, (Part(4, 2, 0, 1),), (1,), row), 0.0)


def test_repeated_frames_are_answered_from_what_was_kept() -> None:
    made = Chain([HashCompute(), HashCompute()], meddle=lambda frame: [frame, frame])
    seen = made.open(1, [1, 2, 3, 4, 5, 6], 8)
    made.run()
    # Each answer came twice; the first stage took each token once, the last computed each row once.
    assert seen.tokens[::2] == seen.tokens[1::2] == expected(2, [1, 2, 3, 4, 5, 6], 8)
    assert made.cores[1].rows == made.cores[0].rows


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"epoch": 0}, "old-epoch"),
        ({"epoch": 2}, "new-epoch"),
        ({"request": 9}, "unknown"),
        ({"position": 4}, "gap"),
        ({"position": 1}, "stale"),
        ({"n": 30}, "length"),
    ],
)
def test_an_illegal_frame_is_refused_and_changes_nothing(change: dict[str, int], reason: str) -> None:
    made = chain(2)
    made.open(1, [1, 2, 3], 20)
    tail = made.cores[1]
    while not tail.rows:
        made.tick()
    held = list(tail.ledger.entries[1].held.caches)
    counts = tail.steps, tail.rows, tail.ledger.entries[1].next
    part = replace(Part(1, 1, 3, 1), **change)
    with pytest.raises(StepRefused) as caught:
        tail.frame(FrameData(99, (part,), tuple(range(part.n)), None), 0.0)
    assert caught.value.reason == reason
    assert list(tail.ledger.entries[1].held.caches) == held
    assert (tail.steps, tail.rows, tail.ledger.entries[1].next) == counts


def test_a_new_epoch_replays_and_goes_on_at_the_same_position() -> None:
    made = chain(2)
    whole = expected(2, [1, 2, 3], 12)
    made.open(1, [1, 2, 3], 12)
    while len(made.driver[1].tokens) < 5:
        made.tick()
    had = list(made.driver[1].tokens)
    made.lose_everything_under_way()
    again = made.open(1, [1, 2, 3, *had], 12 - len(had), epoch=2, emitted=len(had))
    made.run()
    assert had + again.tokens == whole
    assert is_empty(made)


def test_requests_without_a_prompt_or_room_are_refused() -> None:
    made = chain(1)
    assert made.open(1, [], 3) is not None
    assert made.open(2, [1], 0) is not None
    made.run()
    assert all(seen.refused.exit == 65 for seen in made.driver.values())


def test_a_newer_epoch_that_does_not_fit_ends_the_older_one() -> None:
    made = chain(2)
    made.open(1, [1, 2, 3], 12)
    while len(made.driver[1].tokens) < 3:
        made.tick()
    made.lose_everything_under_way()
    again = made.open(1, [1, 2, 3], 10**9, epoch=2)
    made.run()
    assert isinstance(again.refused, DoesNotFitNow)
    assert is_empty(made)


def test_the_same_epoch_again_leaves_the_request_as_it_is() -> None:
    made = chain(1)
    first = made.open(1, [1, 2, 3], 12)
    while len(first.tokens) < 3:
        made.tick()
    again = made.open(1, [9], 1)
    made.driver[1] = first
    made.run()
    assert first.refused.code == "step-refused"
    assert again.tokens == []
    assert first.tokens == expected(1, [1, 2, 3], 12)


def test_a_token_that_the_model_does_not_have_ends_its_request_and_not_the_stage() -> None:
    wanted = expected(2, [1, 2, 3], 12)

    class Strict(HashCompute):
        def run(self, rows: Any, tokens: Any, tensor: Any) -> Any:
            if wanted[2] in tokens:
                raise BadData("no such token")
            return super().run(rows, tokens, tensor)

    made = Chain([Strict(), HashCompute()])
    seen = made.open(1, [1, 2, 3], 12)
    other = made.open(2, [4], 2)
    made.run()
    assert seen.tokens == wanted[:3]
    assert "no such token" in seen.refused.message
    assert other.tokens == expected(2, [4], 2)
    assert is_empty(made)


def test_frames_hold_one_chunk_or_rows_of_one_token() -> None:
    tail = chain(2).cores[1]
    long = FrameData(1, (Part(1, 1, 0, MAX_CHUNK + 1),), (1,) * (MAX_CHUNK + 1), None)
    mixed = FrameData(1, (Part(1, 1, 0, 2), Part(2, 1, 0, 1)), (1, 1, 1), None)
    for frame in (long, mixed):
        with pytest.raises(StepRefused, match="at once"):
            tail.frame(frame, 0.0)
