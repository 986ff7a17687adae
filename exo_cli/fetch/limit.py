"""How fast bytes may come, for all connections together. Knows nothing of where they come from."""

import threading
import time
from collections.abc import Callable

BURST_S = 0.1


class Limit:
    """`take` answers how long to wait; safe to use from several threads."""

    def __init__(self, bytes_per_s: int | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._bytes_per_s = bytes_per_s
        self._clock = clock
        self._free_at_s = clock()
        self._guard = threading.Lock()

    @property
    def is_set(self) -> bool:
        return self._bytes_per_s is not None

    def take(self, count: int) -> float:
        """So many bytes came: for how many seconds none should be asked for."""
        if self._bytes_per_s is None:
            return 0.0
        with self._guard:
            now_s = self._clock()
            self._free_at_s = max(self._free_at_s, now_s - BURST_S) + count / self._bytes_per_s
            return max(0.0, self._free_at_s - now_s)
