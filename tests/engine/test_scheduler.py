"""The policy in virtual time: every rule of the design, over made-up traffic."""

from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exo_cli.engine.scheduler import LINGER_S, Row, Scheduler, Step


@dataclass
class Chain:
    """A chain whose stages take one tick each; the last one gives back a token for each decoding row."""

    stages: int
    chunk: int = 4
    now: float = 0.0
    log: list[Step] = field(default_factory=list)
    lengths: dict[int, int] = field(default_factory=dict)
    prompts: dict[int, int] = field(default_factory=dict)
    flying: deque[tuple[float, Step]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(stages=self.stages, chunk_tokens=self.chunk)

    def open(self, request: int, prompt: int, generate: int, prefix: int = 0) -> None:
        self.scheduler.open(request, prompt=prompt, prefix=prefix)
        self.prompts[request], self.lengths[request] = prompt, generate

    def run(self, limit: int = 10_000) -> None:
        """Until nothing is left to do."""
        busy_until = 0.0
        for _ in range(limit):
            step = self.scheduler.next(self.now) if self.now >= busy_until else busy_until
            if isinstance(step, Step):
                self.log.append(step)
                self.flying.append((self.now + self.stages * 0.01, step))
                busy_until = self.now + 0.01
                continue
            times = [at for at, _ in self.flying] + ([step] if step is not None else [])
            if not times:
                return
            self.now = max(self.now, min(times))
            while self.flying and self.flying[0][0] <= self.now:
                self._arrive(self.flying.popleft()[1])
        raise AssertionError("it does not end")

    def _arrive(self, step: Step) -> None:
        self.scheduler.through(step.number, self.now)
        for row in step.rows:
            position = row.position + row.n
            if row.request not in self.lengths or position < self.prompts[row.request]:
                continue
            if position - self.prompts[row.request] + 1 >= self.lengths[row.request]:
                self.scheduler.close(row.request)
            else:
                assert self.scheduler.token(row.request, position, self.now)

    def steps_of(self, request: int) -> list[Step]:
        return [step for step in self.log if any(row.request == request for row in step.rows)]


def test_four_requests_take_hardly_more_steps_than_the_longest() -> None:
    chain = Chain(stages=1)
    for request in range(4):
        chain.open(request, prompt=3, generate=40)
    chain.run()
    assert len(chain.log) <= 1.3 * len(chain.steps_of(0))


def test_two_stages_work_on_two_groups() -> None:
    chain = Chain(stages=2)
    for request in range(8):
        chain.open(request, prompt=1, generate=30)
    chain.run()
    settled = [len(step.rows) for step in chain.log[20:-16]]
    assert set(settled) == {4}


def test_a_long_prompt_goes_in_chunks_between_the_steps_of_others() -> None:
    chain = Chain(stages=1, chunk=4)
    chain.open(1, prompt=2, generate=30)
    chain.open(2, prompt=40, generate=2)
    chain.run()
    chunks = [index for index, step in enumerate(chain.log) if step.chunk and step.rows[0].request == 2]
    assert len(chunks) == 10
    running = [index for index, step in enumerate(chain.log) if not step.chunk and step.rows[0].request == 1]
    for before, after in pairwise(running):
        assert sum(before < chunk < after for chunk in chunks) <= 1


def test_stages_further_down_may_want_shorter_chunks() -> None:
    scheduler = Scheduler(stages=1, chunk_tokens=8)
    for request, chunk, n in ((1, 3, 3), (2, 100, 8), (3, 0, 8)):
        scheduler.open(request, prompt=50, prefix=0, chunk=chunk)
        step = scheduler.next(0.0)
        assert isinstance(step, Step)
        assert step.rows == (Row(request, 0, n),)
        scheduler.through(step.number, 0.0)
        scheduler.close(request)


def test_short_prompts_do_not_wait_for_a_long_one() -> None:
    chain = Chain(stages=1, chunk=4)
    chain.open(1, prompt=400, generate=1)
    chain.open(2, prompt=4, generate=1)
    chain.run()
    assert chain.log.index(chain.steps_of(2)[0]) == 1


def test_an_incomplete_group_waits_for_the_linger_and_no_longer() -> None:
    scheduler = Scheduler(stages=1, chunk_tokens=8)
    for request in (1, 2):
        scheduler.open(request, prompt=1, prefix=0)
        step = scheduler.next(0.0)
        assert isinstance(step, Step)
        scheduler.through(step.number, 0.0)
    assert scheduler.token(1, 1, 1.0)
    assert scheduler.token(2, 1, 1.0)
    both = scheduler.next(1.0)
    assert isinstance(both, Step)
    assert len(both.rows) == 2
    scheduler.through(both.number, 0.0)
    assert scheduler.token(1, 2, 2.0)
    assert scheduler.next(2.0) == pytest.approx(2.0 + LINGER_S)
    alone = scheduler.next(2.0 + LINGER_S)
    assert isinstance(alone, Step)
    assert [row.request for row in alone.rows] == [1]


def test_tokens_that_nobody_waits_for_change_nothing() -> None:
    scheduler = Scheduler(stages=1, chunk_tokens=8)
    assert not scheduler.token(7, 1, 0.0)
    scheduler.open(7, prompt=3, prefix=0)
    assert isinstance(scheduler.next(0.0), Step)
    assert not scheduler.token(7, 2, 0.0)
    assert scheduler.token(7, 3, 0.0)
    assert not scheduler.token(7, 3, 0.0)
    scheduler.close(7)
    assert not scheduler.token(7, 4, 0.0)
    assert scheduler.requests == ()


def test_steps_that_were_lost_with_their_requests_hold_up_nobody() -> None:
    scheduler = Scheduler(stages=2, chunk_tokens=4)
    for request in (1, 2):
        scheduler.open(request, prompt=3, prefix=0)
        assert isinstance(scheduler.next(0.0), Step)
    scheduler.open(3, prompt=3, prefix=0)
    assert scheduler.next(0.0) is None
    scheduler.close(1)
    step = scheduler.next(0.0)
    assert isinstance(step, Step)
    assert [row.request for row in step.rows] == [3]


def test_a_prompt_must_leave_something_to_compute() -> None:
    scheduler = Scheduler(stages=1, chunk_tokens=8)
    with pytest.raises(ValueError, match="last token"):
        scheduler.open(1, prompt=4, prefix=4)
    scheduler.open(1, prompt=4, prefix=3)
    with pytest.raises(ValueError, match="already"):
        scheduler.open(1, prompt=4, prefix=0)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 9),
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 20), st.integers(0, 39)), min_size=1, max_size=9),
)
def test_whatever_comes_every_token_is_computed_once_and_in_order(
    stages: int, chunk: int, requests: list[tuple[int, int, int]]
) -> None:
    chain = Chain(stages=stages, chunk=chunk)
    for number, (prompt, generate, prefix) in enumerate(requests):
        chain.open(number, prompt, generate, min(prefix, prompt - 1))
    chain.run()
    assert chain.scheduler.requests == ()
    assert chain.scheduler.under_way == 0
    for number, (prompt, generate, prefix) in enumerate(requests):
        computed = [
            position
            for step in chain.log
            for row in step.rows
            if row.request == number
            for position in range(row.position, row.position + row.n)
        ]
        assert computed == list(range(min(prefix, prompt - 1), prompt + generate - 1))
    assert all(len({row.request for row in step.rows}) == len(step.rows) for step in chain.log)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 3), st.lists(st.integers(1, 60), min_size=2, max_size=6))
def test_at_most_one_chunk_between_two_steps_of_anybody(stages: int, prompts: list[int]) -> None:
    chain = Chain(stages=stages, chunk=5)
    for number, prompt in enumerate(prompts):
        chain.open(number, prompt, 25)
    chain.run()
    for number in range(len(prompts)):
        own = [
            index
            for index, step in enumerate(chain.log)
            if not step.chunk and any(row.request == number for row in step.rows)
        ]
        for before, after in pairwise(own):
            assert sum(step.chunk for step in chain.log[before + 1 : after]) <= 1
