"""What stage 0 computes next: policy only, pure, with the time passed in.

Batches are formed here and keep together down the chain. Knows no tensors, no sockets, no models:
it deals in request numbers, positions and counts.

The rules. A group is about (running requests ÷ stages) rows, so that every stage has one to work on;
it waits up to the linger for its last rows. No more steps are under way than there are stages. A
prompt goes in chunks, and between two decode steps of a running request there is at most one chunk of
anybody's prompt.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from exo_cli.engine.pace import Pace

LINGER_S: Final = 0.002


@dataclass(frozen=True, slots=True)
class Row:
    """One request's share of a step: `n` tokens from `position` on."""

    request: int
    position: int
    n: int


@dataclass(frozen=True, slots=True)
class Step:
    """What to run now; rows of one chunk, or one row each of several running requests."""

    number: int
    rows: tuple[Row, ...]
    chunk: bool
    began_s: float


@dataclass(slots=True)
class _Request:
    prompt: int
    """How many tokens there are to compute before the first one is sampled."""
    next: int
    """The first position that is not computed yet."""
    chunk: int
    """The most of its prompt that may go through at once."""
    running: bool = False
    chunks_since_step: int = 0


@dataclass(slots=True)
class Scheduler:
    """The requests of stage 0 and the steps under way."""

    stages: int
    chunk_tokens: int
    """The longest chunk that this stage takes in good time, as far as was tried."""
    linger_s: float = LINGER_S
    _requests: dict[int, _Request] = field(default_factory=dict)
    _prompts: deque[int] = field(default_factory=deque)
    _ready: dict[int, float] = field(default_factory=dict)
    """Running requests whose next token is known, and since when; in order of arrival."""
    _under_way: dict[int, Step] = field(default_factory=dict)
    _number: int = 0
    _pace: Pace = field(init=False)

    def __post_init__(self) -> None:
        self._pace = Pace(self.chunk_tokens)

    def open(self, request: int, *, prompt: int, prefix: int, chunk: int = 0) -> None:
        """A request with `prompt` tokens of which `prefix` need not be computed again.

        `chunk`: the most that the stages after this one take at once in good time; 0 if nobody said.
        """
        if request in self._requests:
            raise ValueError(f"request {request} is open already")
        if not 0 <= prefix < prompt:
            raise ValueError("at least the prompt's last token has to be computed")
        at_once = min(chunk or self.chunk_tokens, self.chunk_tokens)
        self._requests[request] = _Request(prompt=prompt, next=prefix, chunk=at_once)
        self._prompts.append(request)

    def token(self, request: int, position: int, now_s: float) -> bool:
        """The token at `position` was sampled; False if nobody waits for it (cancelled, or a repeat)."""
        known = self._requests.get(request)
        if known is None or request in self._ready or position != known.next:
            return False
        known.running = True
        self._ready[request] = now_s
        return True

    def through(self, number: int, now_s: float) -> Row | None:
        """A step has left the chain's last stage; the chunk of a prompt that it was, if it was one."""
        step = self._under_way.pop(number, None)
        if step is None or not step.chunk:
            return None
        self._pace.took(step.rows[0].n, now_s - step.began_s)
        return step.rows[0]

    def close(self, request: int) -> None:
        """Finished or cancelled: it takes part in no further step."""
        self._requests.pop(request, None)
        self._ready.pop(request, None)
        if request in self._prompts:
            self._prompts.remove(request)
        # A step that was refused or lost on its way never comes back; it must not hold up the others.
        self._under_way = {
            number: step
            for number, step in self._under_way.items()
            if any(row.request in self._requests for row in step.rows)
        }

    def next(self, now_s: float) -> Step | float | None:
        """The step to run now, or the time to ask again, or None: something has to happen first."""
        if len(self._under_way) >= self.stages:
            return None
        running = [known for known in self._requests.values() if known.running]
        if self._prompts and all(known.chunks_since_step == 0 for known in running):
            return self._chunk(running, now_s)
        oldest_s = next(iter(self._ready.values()), None)
        if oldest_s is None:
            return None
        group = -(-len(running) // self.stages)
        if len(self._ready) >= group or now_s >= oldest_s + self.linger_s:
            return self._decode(group, now_s)
        return oldest_s + self.linger_s

    def _decode(self, group: int, now_s: float) -> Step:
        rows = []
        for request in list(self._ready)[:group]:
            del self._ready[request]
            known = self._requests[request]
            known.chunks_since_step = 0
            rows.append(Row(request, known.next, 1))
            known.next += 1
        return self._begin(tuple(rows), now_s, chunk=False)

    def _chunk(self, running: list[_Request], now_s: float) -> Step:
        request = self._prompts[0]
        known = self._requests[request]
        n = min(known.chunk, self._pace.tokens, known.prompt - known.next)
        row = Row(request, known.next, n)
        known.next += n
        if known.next == known.prompt:
            self._prompts.popleft()
        else:
            # In turns: a short prompt does not wait for all of a long one.
            self._prompts.rotate(-1)
        for other in running:
            other.chunks_since_step += 1
        return self._begin((row,), now_s, chunk=True)

    def _begin(self, rows: tuple[Row, ...], now_s: float, *, chunk: bool) -> Step:
        self._number += 1
        step = self._under_way[self._number] = Step(self._number, rows, chunk, now_s)
        return step

    @property
    def under_way(self) -> int:
        return len(self._under_way)

    @property
    def requests(self) -> tuple[int, ...]:
        return tuple(self._requests)
