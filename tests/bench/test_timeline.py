"""Traces of made-up chains, of which it is known where each nanosecond went."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exo_cli.bench.target import StageTraces
from exo_cli.bench.timeline import Round, links, record, take_apart
from exo_cli.wire.exo_pb2 import Trace

MS = 1_000_000
Spans = Callable[[int], int]


@dataclass(slots=True)
class Truth:
    """What really became of each decode step, in nanoseconds."""

    whole: list[int] = field(default_factory=list)
    compute: list[list[int]] = field(default_factory=list)
    wait: list[list[int]] = field(default_factory=list)
    hops: list[list[int]] = field(default_factory=list)


@dataclass(slots=True)
class Chain:
    """Groups of requests going round; a stage has one step at a time, in order of arrival."""

    compute: Sequence[Spans]
    wires: Sequence[Spans]
    offsets: Sequence[int]
    groups: int = 1
    rows: int = 1

    def run(self, rounds: int, *, returned: bool = True) -> tuple[list[StageTraces], Truth]:
        truth = Truth()
        told: list[list[Trace]] = [[] for _ in self.compute]
        free = [0] * len(self.compute)
        ready = [0] * self.groups
        for number in range(1, rounds * self.groups + 1):
            group = (number - 1) % self.groups
            now = came = ready[group]
            computes, waits, hops = [], [], []
            for stage, spans in enumerate(self.compute):
                started = max(now, free[stage])
                free[stage] = computed = started + spans(number)
                # No step overtakes another one on its way.
                arrived = computed + self.wires[stage](number)
                if stage + 1 < len(self.compute) and told[stage + 1]:
                    arrived = max(arrived, told[stage + 1][-1].received_ns - self.offsets[stage + 1])
                shift = self.offsets[stage]
                told[stage].append(
                    Trace(
                        step=number,
                        rows=self.rows,
                        received_ns=now + shift,
                        started_ns=started + shift,
                        computed_ns=computed + shift,
                        sent_ns=computed + shift,
                        bytes_in=4 if stage == 0 else 2048 * self.rows,
                        bytes_out=4 if stage == len(self.compute) - 1 else 2048 * self.rows,
                    )
                )
                computes.append(computed - started)
                waits.append(started - now)
                hops.append(arrived - computed)
                now = arrived
            ready[group] = now
            if returned:
                told[0][-1].returned_ns = now + self.offsets[0]
            truth.whole.append(now - came)
            truth.compute.append(computes)
            truth.wait.append(waits)
            truth.hops.append(hops)
        return [StageTraces(f"node-{at}", (at, at + 1), steps) for at, steps in enumerate(told)], truth


def take(traces: Sequence[StageTraces], **settings: object) -> Round:
    found = take_apart(traces, **{"concurrency": 1, **settings})  # type: ignore[arg-type]
    assert found is not None
    return found


def mean_ms(spans: Sequence[int]) -> float:
    return sum(spans) / len(spans) / MS


def steady(ms: float) -> Spans:
    return lambda _: round(ms * MS)


CLOCKS = st.integers(0, 2**62)


@settings(max_examples=60, deadline=None)
@given(st.lists(CLOCKS, min_size=1, max_size=5), st.integers(1, 6), st.integers(0, 2**32))
def test_every_nanosecond_has_its_place(offsets: list[int], groups: int, seed: int) -> None:
    numbers = random.Random(seed)
    longest = [numbers.randrange(1, 40 * MS) for _ in range(2 * len(offsets))]
    spans: list[Spans] = [lambda _, most=most: numbers.randrange(most) for most in longest]  # type: ignore[misc]
    chain = Chain(spans[: len(offsets)], spans[len(offsets) :], offsets, groups, rows=3)
    traces, truth = chain.run(12)
    found = take(traces, concurrency=3 * groups)
    assert (found.steps, found.left_out) == (12 * groups, 0)
    assert found.token.mean_ms == pytest.approx(mean_ms(truth.whole))
    assert found.wire.mean_ms == pytest.approx(mean_ms([sum(hops) for hops in truth.hops]))
    for at, part in enumerate(found.stages):
        assert part.compute.mean_ms == pytest.approx(mean_ms([each[at] for each in truth.compute]))
        assert part.wait.mean_ms == pytest.approx(mean_ms([each[at] for each in truth.wait]))
    parts = found.wire.mean_ms + sum(part.compute.mean_ms + part.wait.mean_ms for part in found.stages)
    assert parts == pytest.approx(found.token.mean_ms)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 5), st.data())
def test_a_slowed_stage_shows_up_as_such(stages: int, data: st.DataObject) -> None:
    slow = data.draw(st.integers(0, stages - 1))
    groups = data.draw(st.integers(1, 4))
    offsets = data.draw(st.lists(CLOCKS, min_size=stages, max_size=stages))
    numbers = random.Random(slow)
    usual: Spans = lambda _: numbers.randrange(8 * MS, 12 * MS)  # noqa: E731
    slowed: Spans = lambda _: numbers.randrange(18 * MS, 22 * MS)  # noqa: E731
    wire: Spans = lambda _: numbers.randrange(30 * MS)  # noqa: E731
    chain = Chain([slowed if at == slow else usual for at in range(stages)], [wire] * stages, offsets, groups)
    found = take(chain.run(30)[0], concurrency=groups)
    assert found.slowest == slow
    assert found.stages[slow].compute.p50_ms == pytest.approx(20, rel=0.1)
    assert all(part.compute.p50_ms < 12 for part in found.stages if part is not found.stages[slow])


def test_a_slow_wire_is_no_slow_stage() -> None:
    chain = Chain([steady(5), steady(6)], [steady(40), steady(0.5)], [0, 77])
    found = take(chain.run(10)[0])
    assert found.slowest == 1
    assert found.wire.p50_ms == pytest.approx(40.5)
    assert [part.compute.p50_ms for part in found.stages] == [5, 6]


def test_a_queue_is_waiting_and_not_the_wire() -> None:
    """Two groups on one fast and one slow stage: the second stage always has one that waits."""
    found = take(
        Chain([steady(2), steady(10)], [steady(1), steady(1)], [0, 0], groups=2).run(50)[0], concurrency=2
    )
    assert found.stages[1].wait.p50_ms == pytest.approx(6)
    assert found.wire.p50_ms == pytest.approx(2)
    assert found.token.p50_ms == pytest.approx(20)


def test_medians_and_tails() -> None:
    chain = Chain([lambda number: number * MS], [steady(0)], [0])
    compute = take(chain.run(11)[0]).stages[0].compute
    assert (compute.mean_ms, compute.p50_ms, compute.p90_ms) == (6, 6, 10)


def test_a_hop_is_told_where_both_ends_read_one_clock() -> None:
    chain = Chain([steady(1)] * 3, [steady(2), steady(3), steady(4)], [50, 50, 9_000 * MS])
    traces, _ = chain.run(5)
    found = take(traces, clocks=["studio", "studio", "mini"])
    assert [hop.wire and hop.wire.p50_ms for hop in found.hops] == [2, None, None]
    assert [hop.wire for hop in take(traces).hops] == [None, None, None]
    assert [(hop.from_stage, hop.to_stage) for hop in found.hops] == [(0, 1), (1, 2), (2, 0)]


def test_one_clock_for_all_tells_the_way_back_too() -> None:
    found = take(Chain([steady(1)] * 2, [steady(2), steady(3)], [7, 7]).run(5)[0], clocks=["a", "a"])
    assert [hop.wire and hop.wire.p50_ms for hop in found.hops] == [2, 3]


def test_clocks_said_to_be_one_that_are_not() -> None:
    found = take(Chain([steady(1)] * 2, [steady(2)] * 2, [9 * MS, 0]).run(5)[0], clocks=["a", "a"])
    assert found.hops[0].wire is None
    assert found.wire.p50_ms == pytest.approx(4)


def test_one_at_a_time_needs_no_word_of_the_return() -> None:
    chain = Chain([steady(3), steady(4)], [steady(1)] * 2, [5, 10**15])
    said, unsaid = take(chain.run(9)[0]), take(chain.run(9, returned=False)[0])
    assert unsaid.steps == said.steps - 1
    assert unsaid.token == said.token
    assert unsaid.wire == said.wire
    assert take_apart(chain.run(9, returned=False)[0], concurrency=2) is None


def test_prompts_and_holes_are_left_out_and_counted() -> None:
    chain = Chain([steady(3), steady(4)], [steady(1)] * 2, [0, 0])
    (first, second), _ = chain.run(10)
    for stage in (first, second):
        stage.steps[0].rows = 256
        stage.steps[0].computed_ns += 500 * MS
    second.steps[4].started_ns = second.steps[4].received_ns - 1
    told_twice = [*first.steps, first.steps[6]]
    hole = [trace for trace in second.steps if trace.step != 3]
    found = take([StageTraces("a", (0, 1), told_twice), StageTraces("b", (1, 2), hole)])
    assert (found.steps, found.left_out) == (6, 3)
    assert found.stages[0].compute.p90_ms == 3


def test_times_that_cannot_be_are_no_step() -> None:
    (first, second), _ = Chain([steady(3), steady(4)], [steady(1)] * 2, [0, 0]).run(1)
    first.steps[0].returned_ns = first.steps[0].computed_ns + MS
    assert take_apart([first, second], concurrency=1) is None


@pytest.mark.parametrize("traces", [[], [StageTraces("a", (0, 1), [])]])
def test_nothing_told_is_nothing_known(traces: list[StageTraces]) -> None:
    assert take_apart(traces, concurrency=1) is None


def test_the_record_and_the_links() -> None:
    chain = Chain([steady(3), steady(9)], [steady(1), steady(2)], [0, 0], rows=4)
    found = take(chain.run(10)[0], concurrency=4)
    kept = record(found, max_concurrency=4, depth=4096)
    assert (kept.steps, kept.token_ms_p50, kept.wire_ms_p90, kept.slowest) == (10, 15, 3, 1)
    assert [stage.compute_ms_p50 for stage in kept.stages] == [3, 9]
    assert [(hop.from_node, hop.to_node, hop.wire_ms_p50) for hop in kept.hops] == [
        ("node-0", "node-1", None),
        ("node-1", "node-0", None),
    ]
    assert [(link.from_node, link.bytes_per_token, link.bytes_total) for link in links(found)] == [
        ("node-0", 2048, 81920),
        ("node-1", 1, 40),
    ]


def test_a_stage_that_is_alone_has_no_link() -> None:
    found = take(Chain([steady(3)], [steady(1)], [0]).run(10)[0])
    assert links(found) == ()
    assert found.hops[0].wire == found.wire
