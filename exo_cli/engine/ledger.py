"""Which step of which request a stage has done: idempotence, epochs and reservations. Pure.

A step is named by (request, epoch, position). The one that comes next is run, a repeat of the last
one gets the answer that was kept, everything else is refused and changes nothing. Knows no tensors:
`kept` and `held` are whatever the stage puts there.
"""

from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from exo_cli.errors import BadData, TryAgain

Held = TypeVar("Held")
Kept = TypeVar("Kept")
Reason = Literal["unknown", "old-epoch", "new-epoch", "gap", "stale", "length"]


class StepRefused(BadData):
    """A step that must not be run; `reason` says which rule it broke."""

    code = "step-refused"

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


class DoesNotFitNow(TryAgain):
    """A request for which there is no room, with the figures."""

    code = "no-room"

    def __init__(self, needed: int, free: int) -> None:
        super().__init__(
            f"the request needs {needed} bytes of KV cache and {free} are free",
            hint="Wait for other requests to end, or ask for fewer tokens: --max-tokens.",
        )
        self.needed_bytes = needed
        self.free_bytes = free


@dataclass(slots=True)
class Entry(Generic[Held, Kept]):
    """One open request."""

    epoch: int
    next: int
    limit: int
    """No position from here on belongs to the request."""
    bytes: int
    held: Held
    kept_from: int = -1
    kept: Kept | None = None


@dataclass(slots=True)
class Ledger(Generic[Held, Kept]):
    """The open requests of a stage and the bytes that are promised to them."""

    budget_bytes: int
    entries: dict[int, Entry[Held, Kept]] = field(default_factory=dict)

    @property
    def reserved_bytes(self) -> int:
        return sum(entry.bytes for entry in self.entries.values())

    @property
    def free_bytes(self) -> int:
        return self.budget_bytes - self.reserved_bytes

    def open(self, request: int, epoch: int, *, start: int, limit: int, size: int, held: Held) -> None:
        """Reserve room; a higher epoch takes the place of the request's older one."""
        known = self.entries.get(request)
        if known is not None and epoch <= known.epoch:
            raise StepRefused("old-epoch", f"request {request} is open in epoch {known.epoch} already")
        free = self.free_bytes + (known.bytes if known else 0)
        if size > free:
            raise DoesNotFitNow(size, free)
        self.entries[request] = Entry(epoch, start, limit, size, held)

    def close(self, request: int, epoch: int) -> bool:
        """Let go of a request; an old epoch's goodbye does not end a newer one."""
        known = self.entries.get(request)
        if known is None or epoch < known.epoch:
            return False
        del self.entries[request]
        return True

    def check(self, request: int, epoch: int, position: int, n: int) -> Literal["run", "repeat"]:
        """What to do with a step; raises StepRefused, and changes nothing."""
        known = self.entries.get(request)
        if known is None:
            raise StepRefused("unknown", f"request {request} is not open here")
        if epoch != known.epoch:
            old = epoch < known.epoch
            raise StepRefused(
                "old-epoch" if old else "new-epoch", f"epoch {epoch} of request {request}, not {known.epoch}"
            )
        if position == known.kept_from and position + n == known.next:
            return "repeat"
        if position > known.next:
            raise StepRefused("gap", f"position {position} of request {request}; {known.next} comes next")
        if position < known.next:
            raise StepRefused(
                "stale", f"position {position} of request {request} is done; {known.next} is next"
            )
        if position + n > known.limit:
            raise StepRefused("length", f"request {request} has room up to position {known.limit}")
        return "run"

    def done(self, request: int, position: int, n: int, kept: Kept) -> None:
        """The step was run; its answer is kept until the next one."""
        known = self.entries[request]
        known.next = position + n
        known.kept_from, known.kept = position, kept

    def rewind(self, request: int, position: int) -> None:
        """Before its first step a request may start earlier than its prefix: a neighbour holds less."""
        known = self.entries[request]
        if known.kept_from >= 0 or position > known.next:
            raise StepRefused("gap", f"request {request} cannot start at {position}")
        known.next = position
