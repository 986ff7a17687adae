import threading
from email.utils import formatdate

import pytest

from exo_cli.errors import ExoError, Unavailable
from exo_cli.fetch import patience
from exo_cli.fetch.crew import side_by_side
from exo_cli.fetch.limit import Limit
from exo_cli.fetch.patience import Passing, Patience, Stopped, retry_after_s


class Clock(threading.Event):
    """An event that nobody sets, and whose waits take no time."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout or 0.0)
        return self.is_set()


def failing(after_s: float | None = None) -> Passing:
    return Passing(Unavailable("it is away"), after_s)


def test_waits_grow_and_end() -> None:
    clock = Clock()
    told: list[tuple[str, float]] = []
    made = Patience(clock, lambda error, wait_s: told.append((error.message, wait_s)))
    for _ in range(patience.TRIES - 1):
        made.failed(failing())
    with pytest.raises(Unavailable, match="it is away"):
        made.failed(failing())
    assert clock.waits == [0.5, 1.0, 2.0, 4.0, 8.0]
    assert told[0] == ("it is away", 0.5)


def test_bytes_that_come_begin_the_count_anew() -> None:
    clock = Clock()
    made = Patience(clock)
    for _ in range(50):
        made.moved()
        made.failed(failing())
    assert set(clock.waits) == {0.5}


def test_what_the_other_side_says_goes_first() -> None:
    clock = Clock()
    Patience(clock).failed(failing(after_s=33.0))
    assert clock.waits == [33.0]
    with pytest.raises(Unavailable) as caught:
        Patience(clock).failed(failing(after_s=3600.0))
    assert "3600 s" in (caught.value.hint or "")


def test_a_wait_ends_when_nobody_waits_for_it() -> None:
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(Stopped):
        Patience(stopped).failed(failing())


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, None),
        ("", None),
        ("7", 7.0),
        (" 12 ", 12.0),
        ("soon", None),
        ("-3", None),
        (formatdate(1000.0, usegmt=True), 400.0),
        (formatdate(10.0, usegmt=True), 0.0),
    ],
)
def test_retry_after(text: str | None, seconds: float | None) -> None:
    assert retry_after_s(text, now=lambda: 600.0) == seconds


def test_a_limit_is_kept_to_over_time() -> None:
    now_s = 0.0
    limit = Limit(1000, clock=lambda: now_s)
    for _ in range(100):
        now_s += limit.take(100)
    assert 9.8 <= now_s <= 10.0
    # Time in which nothing came is not made up for.
    now_s += 1000
    assert limit.take(1000) >= 0.89
    assert Limit(None).take(10**12) == 0.0


def test_a_crew_does_everything_and_ends_with_the_first_failure() -> None:
    stopped = threading.Event()
    done: list[int] = []
    side_by_side(done.append, range(100), most=4, stopped=stopped)
    assert sorted(done) == list(range(100))

    def fails(number: int) -> None:
        done.append(number)
        if number == 5:
            raise Unavailable("five")

    done.clear()
    with pytest.raises(Unavailable, match="five"):
        side_by_side(fails, range(10_000), most=2, stopped=stopped)
    assert len(done) < 10_000
    stopped.set()
    with pytest.raises(Stopped):
        side_by_side(done.append, range(3), most=2, stopped=stopped)


def test_a_bug_in_a_crew_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    # It would print what happened, and pytest would take that for a failure of some later test.
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)

    def bug(number: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ExoError, match="without a word"):
        side_by_side(bug, [1], most=1, stopped=threading.Event())
