"""Streams of events in whatever pieces they come."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo_cli.bench.sse import MAX_EVENT_BYTES, Events
from exo_cli.errors import BadData

STREAM = (
    b": keepalive 6/7\n\nevent: x\nid: 7\ndata: one\n\ndata:two\r\n\r\ndata: three\ndata:  and more\n\n\n"
    b"retry: 5\n\ndata: [DONE]\n\n"
)


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_events_are_found_wherever_the_stream_is_cut(cuts: list[int]) -> None:
    events, found, at = Events(), [], 0
    for cut in [*sorted(cuts), len(STREAM)]:
        found += events.feed(STREAM[at:cut])
        at = cut
    assert found == [b"one", b"two", b"three\n and more", b"[DONE]"]


def test_an_event_is_not_told_before_it_ends() -> None:
    events = Events()
    assert events.feed(b"data: a\n") == []
    assert events.feed(b"\n") == [b"a"]


@pytest.mark.parametrize("piece", [b"x" * 65_536, b"data: xxxxxxxxxxxxxxxx\n" * 4096])
def test_an_event_without_an_end_is_refused(piece: bytes) -> None:
    def flood(events: Events) -> None:
        for _ in range(MAX_EVENT_BYTES // len(piece) * 2):
            events.feed(piece)

    with pytest.raises(BadData):
        flood(Events())
