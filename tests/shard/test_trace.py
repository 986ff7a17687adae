"""When a step came, was computed and went on; by hand, with the clock standing where it is told to."""

import time

import pytest

from exo_cli.shard import trace as subject
from exo_cli.shard.trace import BATCH, Tracer


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    now = [1000]
    monkeypatch.setattr(time, "monotonic_ns", lambda: now[0])
    return now


def test_nothing_is_kept_while_nobody_asks(clock: list[int]) -> None:
    tracer = Tracer("s", first=True)
    tracer.computed(1, 1, [7], 900)
    tracer.sent(10, alone=False)
    tracer.returned(1, [7], 1100, 20)
    assert tracer.take(all_of_them=True) == []


def test_a_later_stages_step(clock: list[int]) -> None:
    tracer = Tracer("s", first=False)
    tracer.switch(True)
    tracer.arrived(800, 300)
    tracer.computed(4, 2, [7, 8], 900)
    clock[0] = 1010
    tracer.sent(50, alone=False)
    (found,) = tracer.take(all_of_them=True)
    assert (found.stage_id, found.step, found.rows) == ("s", 4, 2)
    assert (found.received_ns, found.started_ns, found.computed_ns, found.sent_ns) == (800, 900, 1000, 1010)
    assert (found.bytes_in, found.bytes_out, found.returned_ns) == (300, 50, 0)
    assert tracer.take(all_of_them=True) == []


def test_the_first_stages_step_is_told_once_it_is_back(clock: list[int]) -> None:
    tracer = Tracer("s", first=True)
    tracer.switch(True)
    tracer.computed(1, 1, [7], 900)
    tracer.sent(50, alone=False)
    assert tracer.take(all_of_them=True) == []
    tracer.returned(1, [7], 1200, 20)
    clock[0] = 1400
    tracer.computed(2, 2, [7, 8], 1300)
    tracer.sent(50, alone=False)
    tracer.returned(2, [7, 8], 1500, 40)
    one, two = tracer.take(all_of_them=True)
    # Nothing was waited for before the first one.
    assert (one.received_ns, one.returned_ns) == (900, 1200)
    assert (two.received_ns, two.returned_ns, two.bytes_in) == (1200, 1500, 20)


def test_a_chain_of_one_stage_waits_for_itself(clock: list[int]) -> None:
    tracer = Tracer("s", first=True)
    tracer.switch(True)
    for step in (1, 2):
        tracer.computed(step, 1, [7], clock[0] - 50)
        tracer.sent(0, alone=True)
        clock[0] += 100
    one, two = tracer.take(all_of_them=True)
    assert (one.computed_ns, one.returned_ns, one.bytes_out) == (1000, 1000, 0)
    assert (two.received_ns, two.started_ns) == (1000, 1050)


def test_they_are_told_many_at_once(clock: list[int]) -> None:
    tracer = Tracer("s", first=False)
    tracer.switch(True)
    for step in range(BATCH):
        assert tracer.take() == []
        tracer.computed(step, 1, [7], 900)
        tracer.sent(1, alone=False)
    assert [each.step for each in tracer.take()] == list(range(BATCH))


def test_steps_that_never_come_back_do_not_pile_up(clock: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "UNRETURNED", 3)
    tracer = Tracer("s", first=True)
    tracer.switch(True)
    for step in range(10):
        tracer.computed(step, 1, [7], 900)
        tracer.sent(1, alone=False)
    for step in range(10):
        tracer.returned(step, [7], 1100, 1)
    assert [each.step for each in tracer.take(all_of_them=True)] == [7, 8, 9]


def test_what_was_begun_before_it_was_switched_off_is_forgotten(clock: list[int]) -> None:
    tracer = Tracer("s", first=True)
    tracer.switch(True)
    tracer.computed(1, 1, [7], 900)
    tracer.switch(False)
    tracer.sent(1, alone=False)
    tracer.switch(True)
    tracer.returned(1, [7], 1100, 1)
    assert tracer.take(all_of_them=True) == []
