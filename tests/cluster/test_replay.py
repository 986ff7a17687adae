"""Each packet once: the guard against a simple model of it, and its bounds."""

import sys

from hypothesis import given, settings
from hypothesis import strategies as st

from exo_cli.cluster.replay import WINDOW, ReplayGuard

NODE, RUN = b"n" * 16, b"i" * 8


class Model:
    """What the guard does, written with sets and without a thought for memory."""

    def __init__(self) -> None:
        self.heard: dict[tuple[bytes, bytes], set[int]] = {}
        self.boots: dict[bytes, int] = {}

    def accept(self, node: bytes, instance: bytes, boot: int, seq: int) -> bool:
        heard = self.heard.get((node, instance), set())
        fresh = (
            boot >= self.boots.get(node, 0) and seq not in heard and (not heard or seq > max(heard) - WINDOW)
        )
        if fresh:
            self.heard[node, instance] = heard | {seq}
            self.boots[node] = boot
        return fresh


_PACKETS = st.tuples(
    st.sampled_from([b"a" * 16, b"b" * 16]),
    st.sampled_from([b"1" * 8, b"2" * 8, b"3" * 8]),
    st.integers(1, 3),
    st.integers(0, 2 * WINDOW) | st.integers(2**64 - 2 * WINDOW, 2**64 - 1),
)


@settings(deadline=None)
@given(st.lists(_PACKETS, max_size=120))
def test_it_does_what_the_model_does(packets: list[tuple[bytes, bytes, int, int]]) -> None:
    guard, model = ReplayGuard(), Model()
    for each in packets:
        node, instance, _, seq = each
        newest = seq > max(model.heard.get((node, instance), {-1}))
        assert guard.is_newest(node, instance, seq) == newest
        assert guard.accept(*each) == model.accept(*each), each


@settings(deadline=None)
@given(st.permutations(range(100, 100 + WINDOW)))
def test_within_the_window_order_does_not_matter(numbers: list[int]) -> None:
    guard = ReplayGuard()
    assert all(guard.accept(NODE, RUN, 1, number) for number in numbers)
    assert not any(guard.accept(NODE, RUN, 1, number) for number in numbers)


def test_the_window_has_an_end() -> None:
    guard = ReplayGuard()
    assert guard.accept(NODE, RUN, 1, 1000)
    assert not guard.accept(NODE, RUN, 1, 1000 - WINDOW)
    assert guard.accept(NODE, RUN, 1, 1000 - WINDOW + 1)
    assert guard.accept(NODE, RUN, 1, 1_000_000)
    assert not guard.accept(NODE, RUN, 1, 1000)


def test_an_older_boot_is_a_recording() -> None:
    guard = ReplayGuard()
    assert guard.accept(NODE, b"1" * 8, 1, 500)
    assert guard.accept(NODE, b"2" * 8, 2, 1)
    assert not guard.accept(NODE, b"1" * 8, 1, 501)
    assert not guard.accept(NODE, b"3" * 8, 1, 1)
    assert guard.accept(NODE, b"2" * 8, 2, 2)
    # A refused packet leaves no trace.
    assert not guard.accept(NODE, b"1" * 8, 1, 502)
    assert guard.accept(b"m" * 16, b"1" * 8, 1, 501)


def test_many_senders_cost_no_more_than_the_capacity() -> None:
    guard = ReplayGuard(capacity=1000)
    for number in range(100_000):
        name = number.to_bytes(16, "big")
        assert guard.accept(name, name[8:], 1, 7)
    remembered = [each for each in vars(guard).values() if not isinstance(each, int)]
    assert len(remembered) == 2
    assert {len(each) for each in remembered} == {1000}
    assert sum(sys.getsizeof(each) for each in remembered) < 1_000_000
    # The latest are those that are remembered.
    newest, oldest = (99_999).to_bytes(16, "big"), bytes(16)
    assert not guard.accept(newest, newest[8:], 1, 7)
    assert guard.accept(oldest, oldest[8:], 1, 7)


def test_who_speaks_on_is_not_forgotten_for_those_who_come_and_go() -> None:
    guard = ReplayGuard(capacity=10)
    for number in range(1000):
        assert guard.accept(NODE, RUN, 5, number)
        passing = number.to_bytes(16, "big")
        assert guard.accept(passing, passing[8:], 1, 1)
    assert not guard.accept(NODE, RUN, 5, 999)
    assert not guard.accept(NODE, RUN, 4, 1001)
