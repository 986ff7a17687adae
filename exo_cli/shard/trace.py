"""When each step came, was computed and went on, for whoever wants to see where a token's time goes.

Costs next to nothing while nobody asks. One clock, this process's monotonic one. Knows nothing of how
traces travel, nor what another stage's clock says.
"""

import time
from collections.abc import Iterable, Sequence
from typing import Final

from exo_cli.wire import exo_pb2 as pb

BATCH: Final = 64
"""So many are told at once: telling is work between two tokens."""
UNRETURNED: Final = 1024
"""Steps that may be on their way; of one that is lost on it nothing comes back."""


class Tracer:
    """The steps of one stage. For the engine's thread alone."""

    def __init__(self, stage_id: str, *, first: bool) -> None:
        self.on = False
        self._stage_id = stage_id
        self._first = first
        self._arrived = (0, 0)
        self._tokens: dict[int, tuple[int, int]] = {}
        self._current: pb.Trace | None = None
        self._requests: Sequence[int] = ()
        self._away: dict[int, pb.Trace] = {}
        self._done: list[pb.Trace] = []

    def switch(self, on: bool) -> None:
        self.on = on
        if not on:
            self._tokens.clear()
            self._away.clear()
            self._current = None

    def arrived(self, received_ns: int, size: int) -> None:
        """The frame that is looked at next was here at that time."""
        self._arrived = (received_ns, size)

    def returned(self, step: int, requests: Iterable[int], received_ns: int, size: int) -> None:
        """At the first stage: a step is through the chain, and these requests may go on."""
        if not self.on:
            return
        for request in requests:
            self._tokens[request] = (received_ns, size)
        away = self._away.pop(step, None)
        if away is not None:
            away.returned_ns = received_ns
            self._done.append(away)

    def computed(self, step: int, rows: int, requests: Sequence[int], started_ns: int) -> None:
        """A step was computed just now."""
        if not self.on:
            return
        now_ns = time.monotonic_ns()
        known = [self._tokens[request] for request in requests if request in self._tokens]
        waited_for, size = self._arrived
        if self._first:
            waited_for = max((at for at, _ in known), default=started_ns)
            size = sum(each for _, each in known)
        self._requests = requests
        self._current = pb.Trace(
            stage_id=self._stage_id,
            step=step,
            rows=rows,
            received_ns=min(waited_for, started_ns),
            started_ns=started_ns,
            computed_ns=now_ns,
            bytes_in=size,
        )

    def sent(self, size: int, *, alone: bool) -> None:
        """What the step gave is with the transport; of a chain of one stage nothing travels."""
        trace, self._current = self._current, None
        if trace is None:
            return
        trace.sent_ns = time.monotonic_ns()
        trace.bytes_out = size
        if alone:
            trace.returned_ns = trace.computed_ns
            self._tokens.update(dict.fromkeys(self._requests, (trace.computed_ns, 0)))
        if self._first and not alone:
            self._away[trace.step] = trace
            while len(self._away) > UNRETURNED:
                del self._away[next(iter(self._away))]
        else:
            self._done.append(trace)

    def take(self, *, all_of_them: bool = False) -> list[pb.Trace]:
        """Those that are ready to be told, if it is worth it."""
        if not self._done or (len(self._done) < BATCH and not all_of_them):
            return []
        done, self._done = self._done, []
        return done
