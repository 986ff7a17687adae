"""What the engine's thread waits for: calls from other threads, and connections that have something to read.

One wait for both, so that a message from a neighbour wakes the thread that computes and no other. Knows
nothing of what a call does nor of what a connection says.
"""

import os
import selectors
from collections import deque
from typing import Generic, Protocol, TypeVar


class Readable(Protocol):
    def fileno(self) -> int: ...


Work = TypeVar("Work")
Source = TypeVar("Source", bound=Readable)


class Inbox(Generic[Work, Source]):
    """`put` is for any thread, all else for the one that waits."""

    def __init__(self) -> None:
        self._calls: deque[Work] = deque()
        self._asleep = False
        self._selector = selectors.DefaultSelector()
        self._bell, self._ringing = os.pipe()
        for end in (self._bell, self._ringing):
            os.set_blocking(end, False)
        self._selector.register(self._bell, selectors.EVENT_READ)

    def __len__(self) -> int:
        """Calls that wait."""
        return len(self._calls)

    def put(self, call: Work) -> None:
        self._calls.append(call)
        # In this order: whoever goes to sleep says so first and looks for calls then.
        if self._asleep:
            self._asleep = False
            os.write(self._ringing, b"!")

    def watch(self, source: Source) -> None:
        """From now on it is told when there is something to read."""
        self._selector.register(source, selectors.EVENT_READ, source)

    def forget(self, source: Source) -> None:
        self._selector.unregister(source)

    def wait(self, timeout_s: float | None) -> tuple[list[Work], list[Source]]:
        """The calls that wait and the sources that can be read; waits for the first of them."""
        self._asleep = timeout_s != 0
        if self._calls:
            self._asleep = False
        events = self._selector.select(timeout_s if self._asleep else 0)
        self._asleep = False
        ready = [key.data for key, _ in events if key.data is not None]
        if len(ready) < len(events):
            os.read(self._bell, 64)
        calls = []
        while self._calls:
            calls.append(self._calls.popleft())
        return calls, ready

    def close(self) -> None:
        self._selector.close()
        os.close(self._bell)
        os.close(self._ringing)
