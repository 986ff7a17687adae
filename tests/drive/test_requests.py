from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo_cli.drive.requests import (
    MAX_FAILOVERS,
    OPEN_TIMEOUT_S,
    PROMPT_SILENCE_S,
    SILENCE_S,
    Action,
    Ask,
    Done,
    Emit,
    Replay,
    Request,
    SendCancel,
    SendOpen,
    Token,
)
from exo_cli.errors import BadData, Internal, NotAuthorised, TryAgain, Unavailable, VersionMismatch

LOST = Unavailable("a node was lost")


def model(position: int) -> int:
    """What the chain says at a position."""
    return (position * 7919) % 1000


def token(request: Request, position: int | None = None, epoch: int | None = None, **more: Any) -> Token:
    at = request.position if position is None else position
    return Token(request.epoch if epoch is None else epoch, at, more.pop("id", model(at)), **more)


def started(n: int = 10, prompt: int = 3, **options: Any) -> tuple[Request, list[Action]]:
    request = Request(Ask(tuple(range(prompt)), n, **options))
    return request, request.start(0.0)


def running(n: int = 10, **options: Any) -> Request:
    request, _ = started(n, **options)
    assert request.opened(1, 0) == []
    return request


def ids(actions: list[Action]) -> list[int]:
    return [action.token.id for action in actions if isinstance(action, Emit)]


def error_of(actions: list[Action]) -> Any:
    (done,) = [action for action in actions if isinstance(action, Done)]
    return done.error


def test_a_request_from_its_start_to_its_end() -> None:
    request, actions = started(2, stop_ids=frozenset((999,)))
    assert actions == [SendOpen(epoch=1, ids=(0, 1, 2), emitted=0, max_tokens=2, deadline_ms=0)]
    assert request.opened(1, 2) == []
    assert request.prefix == 2
    first, last = token(request), token(request, 4, finish="length")
    assert request.token(first, 1.0) == [Emit(first)]
    assert request.token(last, 1.1) == [Emit(last), Done("length")]
    assert request.token(token(request, 5), 1.2) == []
    assert request.cancel() == []


@pytest.mark.parametrize("ask", [Ask((), 3), Ask((1,), 0)])
def test_what_cannot_be_asked(ask: Ask) -> None:
    assert isinstance(error_of(Request(ask).start(0.0)), BadData)


@pytest.mark.parametrize(
    ("more", "reason"),
    [({"finish": "stop"}, "stop"), ({"id": 999}, "stop"), ({"finish": "length"}, "length")],
)
def test_why_a_token_is_the_last(more: dict[str, Any], reason: str) -> None:
    request = running(stop_ids=frozenset((999,)))
    assert request.token(token(request, **more), 1.0)[1:] == [Done(reason)]  # type: ignore[arg-type]


def test_no_more_tokens_than_were_asked_for() -> None:
    request = running(1)
    assert request.token(token(request), 1.0)[1:] == [Done("length")]


def test_tokens_may_overtake_the_answer_to_open() -> None:
    request, _ = started()
    assert ids(request.token(token(request), 0.1)) == [model(3)]
    assert request.opened(1, 2) == []
    assert request.prefix == 2
    assert ids(request.token(token(request), 0.2)) == [model(4)]


def test_repeats_and_old_epochs_are_dropped() -> None:
    request = running()
    first = token(request)
    request.token(first, 1.0)
    assert request.token(first, 1.1) == []
    request.lost(LOST)
    request.reopen(1.2)
    assert request.token(token(request, epoch=1), 1.3) == []
    assert request.opened(1, 3) == []
    assert request.refused(1, LOST) == []
    assert request.finished(1, "lost", "") == []
    assert ids(request.token(token(request), 1.4)) == [model(4)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"position": 5},  # a gap
        {"epoch": 2},  # from the future
        {"position": 3, "id": 1},  # another token than before
        {"position": 1, "id": 1},  # within the prompt
    ],
)
def test_what_breaks_the_protocol_ends_the_request(wrong: dict[str, Any]) -> None:
    request = running()
    request.token(token(request), 1.0)
    actions = request.token(token(request, **wrong), 1.1)
    assert actions[0] == SendCancel(1)
    assert isinstance(error_of(actions), Internal)
    assert request.state == "over"


def test_a_lost_chain_is_replayed_with_what_was_emitted() -> None:
    request = running(5)
    for _ in range(2):
        request.token(token(request), 1.0)
    assert request.lost(LOST) == [SendCancel(1), Replay(LOST)]
    assert request.lost(LOST) == []  # both flows of a chain end
    assert request.reopen(2.0) == [
        SendOpen(epoch=2, ids=(0, 1, 2, model(3), model(4)), emitted=2, max_tokens=3, deadline_ms=0)
    ]
    assert request.reopen(2.0) == []
    assert ids(request.token(token(request), 3.0)) == [model(5)]


def test_so_many_failovers_and_no_more() -> None:
    request = running()
    for _ in range(MAX_FAILOVERS):
        assert request.lost(LOST)[-1] == Replay(LOST)
        request.reopen(1.0)
        request.token(token(request), 1.0)
    assert request.lost(LOST)[-1] == Done("error", LOST)


def test_what_ends_a_chain_without_a_token_is_put_on_no_third_one() -> None:
    request, _ = started()
    assert request.lost(LOST)[-1] == Replay(LOST)
    request.reopen(1.0)
    request.opened(2, 0)
    assert request.lost(LOST) == [SendCancel(2), Done("error", LOST)]


def test_a_replay_for_which_there_is_no_room_yet_is_tried_again() -> None:
    request = running()
    busy = TryAgain("it works in another chain")
    request.lost(LOST)
    for epoch in (2, 3):
        request.reopen(1.0)
        assert request.refused(epoch, busy) == [SendCancel(epoch), Replay(busy)]
    request.reopen(1.0)
    assert request.refused(4, busy)[-1] == Done("error", busy)


@pytest.mark.parametrize("error", [VersionMismatch("another version"), NotAuthorised("no key")])
def test_what_another_try_would_meet_again_is_final(error: Any) -> None:
    assert running().lost(error) == [SendCancel(1), Done("error", error)]


def test_a_refusal_is_final_and_one_in_the_middle_is_a_failure() -> None:
    request, _ = started()
    no_room = TryAgain("no room")
    assert request.refused(1, no_room) == [Done("error", no_room)]
    request, _ = started()
    assert request.refused(1, LOST)[-1] == Replay(LOST)
    gap = BadData("a gap")
    assert running().refused(1, gap) == [SendCancel(1), Replay(gap)]


def test_giving_up_keeps_the_reason() -> None:
    request = running()
    request.lost(LOST)
    nobody = Unavailable("nobody is left")
    assert request.give_up(nobody) == [Done("error", nobody)]
    assert request.reopen(1.0) == []


def test_finished_without_a_token() -> None:
    lost = running().finished(1, "lost", "node b is gone")
    assert isinstance(lost[-1], Replay)
    assert "node b is gone" in lost[-1].error.message
    assert isinstance(error_of(running().finished(1, "deadline", "")), TryAgain)


def test_cancelling() -> None:
    request = running()
    assert request.cancel() == [SendCancel(1), Done("cancelled")]
    assert request.cancel() == []
    assert request.token(token(request), 1.0) == []
    request = running()
    request.lost(LOST)
    assert request.cancel() == [Done("cancelled")]


def test_the_deadline_is_told_and_kept() -> None:
    request, actions = started(deadline_s=2.0)
    assert actions[0].deadline_ms == 2000  # type: ignore[union-attr]
    request.opened(1, 0)
    assert request.tick(1.9) == []
    request.lost(LOST)
    assert request.reopen(1.5)[0].deadline_ms == 500  # type: ignore[union-attr]
    actions = request.tick(2.0)
    assert actions[0] == SendCancel(2)
    assert isinstance(error_of(actions), TryAgain)


def test_no_chain_is_opened_after_the_deadline() -> None:
    request = running(deadline_s=2.0)
    request.lost(LOST)
    assert isinstance(error_of(request.reopen(2.5)), TryAgain)


def ticked(request: Request, from_s: float, to_s: float) -> list[Action]:
    """Ticks, four a second, until something happens."""
    now_s = from_s
    while now_s < to_s:
        now_s += 0.25
        if actions := request.tick(now_s):
            return actions
    return []


def test_a_chain_that_does_not_answer_or_falls_silent_is_lost() -> None:
    request, _ = started()
    assert ticked(request, 0.0, OPEN_TIMEOUT_S) == []
    assert isinstance(ticked(request, OPEN_TIMEOUT_S, OPEN_TIMEOUT_S + 1)[-1], Replay)
    request = running()
    request.token(token(request), 0.0)
    assert ticked(request, 0.0, SILENCE_S) == []
    assert isinstance(ticked(request, SILENCE_S, SILENCE_S + 1)[-1], Replay)


def test_a_prompt_may_take_long_while_its_chunks_are_told() -> None:
    request = running()
    for now_s in (100.0, 200.0, 300.0):
        assert ticked(request, now_s - 100, now_s) == []
        request.prefilled(1, now_s)
    request.token(token(request), 300.0)
    assert ticked(request, 300.0, 1299.0) == []  # as slow as its chunks were, ten times over
    assert isinstance(ticked(request, 1299.0, 1301.0)[-1], Replay)
    request = running()
    request.prefilled(2, 60.0)  # of another epoch
    assert isinstance(ticked(request, 0.0, PROMPT_SILENCE_S + 1)[-1], Replay)


def test_a_slow_chain_has_more_time() -> None:
    request = running()
    for now_s in (0.0, 2.0, 4.0):
        request.token(token(request), now_s)
        request.tick(now_s)
    assert ticked(request, 4.0, 23.0) == []
    assert isinstance(ticked(request, 23.0, 26.0)[-1], Replay)


def test_a_driver_that_was_stopped_blames_nobody() -> None:
    request = running()
    request.token(token(request), 0.0)
    request.tick(0.1)
    assert request.tick(3600.0) == []
    assert ids(request.token(token(request), 3600.1)) == [model(4)]


EVENTS = st.lists(
    st.one_of(
        st.sampled_from(
            ("token", "token", "token", "repeat", "stale", "lost", "late-finish", "opened", "tick")
        ),
        st.integers(0, 30),
    ),
    max_size=60,
)


@given(EVENTS, st.integers(1, 12))
def test_whatever_happens_tokens_come_once_and_in_order(events: list[Any], n: int) -> None:
    request, _ = started(n)
    out: list[int] = []
    now_s = 0.0
    done: list[Done] = []
    for event in events:
        now_s += 0.01
        if event == "token":
            actions = request.token(token(request), now_s)
        elif event == "repeat":
            actions = request.token(token(request, max(3, request.position - 1)), now_s)
        elif event == "stale":
            actions = request.token(token(request, epoch=request.epoch - 1), now_s)
        elif event == "lost":
            actions = request.lost(LOST) + request.lost(LOST)
        elif event == "late-finish":
            actions = request.finished(request.epoch - 1, "lost", "")
        elif event == "opened":
            actions = request.opened(request.epoch, 1)
        elif event == "tick":
            actions = request.tick(now_s)
        else:
            # Any position of what was emitted already, again.
            actions = request.token(token(request, min(request.position, 3 + event)), now_s)
        if any(isinstance(action, Replay) for action in actions):
            (opened,) = request.reopen(now_s)
            assert isinstance(opened, SendOpen)
            assert opened.ids == (0, 1, 2, *out)
            assert opened.emitted == len(out)
            assert opened.max_tokens == n - len(out)
        out += ids(actions)
        done += [action for action in actions if isinstance(action, Done)]
    assert out == [model(3 + at) for at in range(len(out))]
    assert len(out) <= n
    assert len(done) <= 1
    assert (len(out) == n) <= (done == [Done("length")])
    assert request.failovers <= MAX_FAILOVERS
