"""Asking again: how long to wait after a failure that may pass, and when to give up.

There is no bound in total, since lines are slow: each byte that comes begins the count anew. What the
other side says itself (Retry-After) goes before our own waits. Knows nothing of HTTP beyond that header.
"""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, TypeVar

from exo_cli.errors import ExoError

T = TypeVar("T")

TRIES: Final = 6
FIRST_WAIT_S: Final = 0.5
MOST_WAIT_S: Final = 16.0
LONGEST_AFTER_S: Final = 300.0
"""Somebody who shall wait longer than that is told so, instead of being kept."""


class Passing(Exception):
    """Asking again may help; `error` is what to say if it does not."""

    def __init__(self, error: ExoError, after_s: float | None = None) -> None:
        super().__init__(error.message)
        self.error = error
        self.after_s = after_s


class Stopped(Exception):
    """Nobody waits for it any more."""


class Patience:
    """For one thing that is asked for, until it is there."""

    def __init__(
        self,
        stopped: threading.Event,
        on_wait: Callable[[ExoError, float], None] = lambda error, wait_s: None,
        *,
        tries: int | None = None,
    ) -> None:
        self._stopped = stopped
        self._on_wait = on_wait
        self._tries = TRIES if tries is None else tries
        self._failures = 0

    def moved(self) -> None:
        """Something came."""
        self._failures = 0

    def failed(self, passing: Passing) -> None:
        """Wait; or give up, and raise why."""
        self._failures += 1
        wait_s = min(FIRST_WAIT_S * 2 ** (self._failures - 1), MOST_WAIT_S)
        if passing.after_s is not None:
            wait_s = max(passing.after_s, FIRST_WAIT_S)
        if self._failures >= self._tries or wait_s > LONGEST_AFTER_S:
            if wait_s > LONGEST_AFTER_S:
                passing.error.hint = f"It asks for {wait_s:.0f} s of patience. What came is kept."
            raise passing.error from passing
        self._on_wait(passing.error, wait_s)
        if self._stopped.wait(wait_s):
            raise Stopped

    def until_done(self, work: Callable[[], T]) -> T:
        """Do it, as often as it takes."""
        while True:
            try:
                return work()
            except Passing as passing:
                self.failed(passing)


def retry_after_s(text: str | None, *, now: Callable[[], float] = time.time) -> float | None:
    """What a Retry-After header says: seconds, or a date."""
    if not text:
        return None
    if text.strip().isdecimal():
        return float(text.strip()[:9])
    try:
        date: datetime = parsedate_to_datetime(text)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, date.timestamp() - now())
