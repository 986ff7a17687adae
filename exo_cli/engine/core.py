"""One stage's part in every request: what a message means, and what is sent because of it.

Messages go in, effects come out; whoever runs a core carries them to where they belong. Everything
happens on one thread. Arithmetic is `Compute`'s business, so this module knows no tensors, no
sockets and no clock of its own, and whole chains of cores run in one process in the tests.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Generic, Literal, Protocol, TypeVar

from exo_cli.engine.ledger import DoesNotFitNow, Ledger, StepRefused
from exo_cli.engine.scheduler import Row, Scheduler, Step
from exo_cli.errors import BadData, ExoError
from exo_cli.schemas.sampling import Sampling
from exo_cli.wire.frames import FrameData, Part, TensorData

MAX_CHUNK: Final = 2048
"""The longest part of a prompt that goes through at once: what a step needs grows with its square."""

MAX_OVER: Final = 1024
"""Requests that ended here before the stages above knew of it."""

Held = TypeVar("Held")
Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Open:
    """A request, as every stage of its chain is told."""

    request: int
    epoch: int
    prompt: tuple[int, ...]
    sampling: Sampling
    max_tokens: int
    stop_ids: frozenset[int] = frozenset()
    emitted: int = 0
    keep_prefix: bool = False

    @property
    def limit(self) -> int:
        """No position from here on belongs to it."""
        return len(self.prompt) + self.max_tokens


@dataclass(frozen=True, slots=True)
class Token:
    """A sampled token and the position it stands at."""

    request: int
    epoch: int
    position: int
    id: int
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()


class TooLong(BadData):
    """A request that goes on beyond what the stage was loaded for."""

    code = "too-long"

    def __init__(self, prompt: int, new: int, context: int) -> None:
        super().__init__(
            f"the prompt has {prompt} tokens and up to {new} more are asked for, "
            f"but the stage was loaded for {context} in all",
            hint="Ask for fewer tokens with --max-tokens, or load the model with a larger context.",
        )


# -- effects: what is to be sent, and where to ------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OpenDown:
    open: Open


@dataclass(frozen=True, slots=True)
class FrameDown:
    frame: FrameData


@dataclass(frozen=True, slots=True)
class CancelDown:
    request: int
    epoch: int


@dataclass(frozen=True, slots=True)
class OpenedUp:
    """To the stage before, or from the first stage to the driver."""

    request: int
    epoch: int
    prefix: int
    chunk: int
    """The most tokens that every stage from here on takes at once in good time."""


@dataclass(frozen=True, slots=True)
class PrefilledUp:
    """From the first stage to the driver: so much of its prompt is through the chain."""

    request: int
    epoch: int
    position: int


@dataclass(frozen=True, slots=True)
class RefusedUp:
    request: int
    epoch: int
    error: ExoError


@dataclass(frozen=True, slots=True)
class TokensBack:
    """From the last stage to the first: what to go on with, and which step is through."""

    step: int
    tokens: tuple[Token, ...]
    finished: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class TokensOut:
    """The driver's copy."""

    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class FinishedOut:
    request: int
    epoch: int
    reason: Finish


@dataclass(frozen=True, slots=True)
class Closed:
    """This stage holds nothing of the request any more."""

    request: int
    epoch: int


Effect = (
    OpenDown
    | FrameDown
    | CancelDown
    | OpenedUp
    | PrefilledUp
    | RefusedUp
    | TokensBack
    | TokensOut
    | FinishedOut
    | Closed
)


def reasons(effects: Sequence[Effect]) -> dict[int, Finish]:
    """Why requests end with these."""
    return {each.request: each.reason for each in effects if isinstance(each, FinishedOut)}


class Compute(Protocol[Held]):
    """What a stage does with numbers."""

    def size(self, open: Open) -> int:
        """Bytes of KV cache that the request may come to need."""

    def begin(self, open: Open) -> tuple[Held, int]:
        """Caches for a request, and how many of its prompt's tokens are in them already."""

    def rewind(self, held: Held, position: int) -> int:
        """Forget what stands at `position` and after it; returns where it really starts (0 if it cannot)."""

    def run(
        self, rows: Sequence[tuple[Held, Row]], tokens: Sequence[int], tensor: TensorData | None
    ) -> TensorData:
        """A stage's layers over the rows; not for the last stage."""

    def run_last(
        self,
        rows: Sequence[tuple[Held, Row]],
        tokens: Sequence[int],
        tensor: TensorData | None,
        wanted: Sequence[bool],
    ) -> list[Token | None]:
        """The last layers and the head; a token for each row that wants one (request and epoch unset)."""

    def end(self, held: Held, ids: Sequence[int] | None) -> None:
        """Let the caches go; `ids`: what they hold, worth keeping as a prefix."""


@dataclass(slots=True)
class _Request(Generic[Held]):
    open: Open
    caches: Held
    ids: list[int]
    """The tokens whose positions are known here: the prompt, then what was sampled."""
    started: bool = False


@dataclass(slots=True)
class _Kept:
    """The answer to a step, for its repeat."""

    effects: list[Effect]


@dataclass(slots=True)
class StageCore(Generic[Held]):
    """A stage. `first` and `last` may be the same one."""

    compute: Compute[Held]
    budget_bytes: int
    first: bool
    last: bool
    scheduler: Scheduler
    context: int = 0
    """The most positions of a request; 0: as many as there is room for."""
    step_s: float = 0.0
    """How long a step takes that is as long as may be, as tried when the stage was loaded."""
    clock: Callable[[], float] | None = None
    """What time it is after a step; without one a step takes none."""
    ledger: Ledger[_Request[Held], _Kept] = field(init=False)
    steps: int = 0
    rows: int = 0
    over: dict[int, int] = field(default_factory=dict)
    """Requests that were ended here, and the epoch: rows of theirs may still be on their way."""
    latest: tuple[int, tuple[Part, ...]] = (0, ())
    """The number and the rows of the step that was run last."""

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.budget_bytes)

    # -- opening and closing ---------------------------------------------------------------------

    def open(self, message: Open) -> list[Effect]:
        """A request comes down the chain: reserve, and ask the next stage."""
        older = self.ledger.entries.get(message.request)
        try:
            if not message.prompt or message.max_tokens < 1:
                raise BadData("a request needs a prompt and room for at least one token")
            if self.context and message.limit > self.context:
                raise TooLong(len(message.prompt), message.max_tokens, self.context)
            self.ledger.open(
                message.request,
                message.epoch,
                start=0,
                limit=message.limit,
                size=self.compute.size(message),
                held=_Request(message, None, list(message.prompt)),  # type: ignore[arg-type]
            )
        except (BadData, DoesNotFitNow) as error:
            refused = RefusedUp(message.request, message.epoch, error)
            if older is not None and message.epoch <= older.epoch:
                return [refused]
            # Whoever raises an epoch has given up the one before; below nobody hears of the new one.
            below: list[Effect] = []
            if self._close(message.request, message.epoch, keep=False) and not self.last:
                below = [CancelDown(message.request, message.epoch)]
            return [refused, *below, Closed(message.request, message.epoch)]
        if older is not None:
            self._let_go(message.request, older.held, keep=False)
        self.over.pop(message.request, None)
        entry = self.ledger.entries[message.request]
        entry.held.caches, prefix = self.compute.begin(message)
        # The last token is always computed: its logits are what is wanted.
        entry.next = min(prefix, len(message.prompt) - 1)
        if not self.last:
            return [OpenDown(message)]
        return self._opened(message.request, message.epoch, entry.next, 0)

    def opened(self, request: int, epoch: int, prefix: int, chunk: int = 0) -> list[Effect]:
        """The stages below are open; the smallest prefix counts, and the smallest chunk."""
        entry = self.ledger.entries.get(request)
        if entry is None or entry.epoch != epoch or entry.held.started:
            return []
        return self._opened(request, epoch, min(prefix, entry.next), chunk)

    def _opened(self, request: int, epoch: int, prefix: int, chunk: int) -> list[Effect]:
        chunk = min(chunk or self.scheduler.chunk_tokens, self.scheduler.chunk_tokens)
        if self.first:
            entry = self.ledger.entries[request]
            self._start_at(request, prefix)
            self.scheduler.open(request, prompt=len(entry.held.open.prompt), prefix=entry.next, chunk=chunk)
            prefix = entry.next
        return [OpenedUp(request, epoch, prefix, chunk)]

    def _start_at(self, request: int, position: int) -> None:
        entry = self.ledger.entries[request]
        if position < entry.next:
            position = self.compute.rewind(entry.held.caches, position)
        self.ledger.rewind(request, position)
        entry.held.started = True

    def cancel(self, request: int, epoch: int) -> list[Effect]:
        """The request is over, whatever the reason; its room is free when this returns."""
        self.over.pop(request, None)
        if not self._close(request, epoch, keep=True):
            return []
        closed = Closed(request, epoch)
        return [closed] if self.last else [CancelDown(request, epoch), closed]

    def end_early(self, request: int, epoch: int) -> list[Effect]:
        """The request is over because of something that this stage knows first."""
        effects = self.cancel(request, epoch)
        if effects and not self.first:
            self.over[request] = epoch
            while len(self.over) > MAX_OVER:
                del self.over[next(iter(self.over))]
        return effects

    def _close(self, request: int, epoch: int, *, keep: bool) -> bool:
        entry = self.ledger.entries.get(request)
        if entry is None or not self.ledger.close(request, epoch):
            return False
        self._let_go(request, entry.held, keep=keep, known=entry.next)
        return True

    def _let_go(self, request: int, held: "_Request[Held]", *, keep: bool, known: int = 0) -> None:
        ids = held.ids[:known] if keep and held.open.keep_prefix and len(held.ids) >= known > 0 else None
        self.compute.end(held.caches, ids)
        if self.first:
            self.scheduler.close(request)

    # -- steps -----------------------------------------------------------------------------------

    def poll(self, now_s: float) -> list[Effect] | float | None:
        """At the first stage: run what is due. Effects, or when to ask again, or None."""
        due = self.scheduler.next(now_s)
        if not isinstance(due, Step):
            return due
        parts, tokens = [], []
        for row in due.rows:
            held = self.ledger.entries[row.request].held
            parts.append(Part(row.request, held.open.epoch, row.position, row.n))
            tokens += held.ids[row.position : row.position + row.n]
        try:
            effects = self._run(FrameData(due.number, tuple(parts), tuple(tokens), None))
        except BadData as error:
            # The last stage brought a token that the model does not have: nothing was computed.
            said: list[Effect] = []
            for part in parts:
                said += [RefusedUp(part.request, part.epoch, error), *self.cancel(part.request, part.epoch)]
            return said
        return self._take_back(effects, now_s if self.clock is None else self.clock())

    def frame(self, frame: FrameData, now_s: float) -> list[Effect]:
        """At a later stage: run a frame, or give the kept answer; raises StepRefused and changes nothing."""
        if any(self.over.get(part.request) == part.epoch for part in frame.parts):
            # Whoever shares the step with it goes on.
            frame = frame.only([self.over.get(part.request) != part.epoch for part in frame.parts])
            if not frame.parts:
                return []
        longest = max((part.n for part in frame.parts), default=0)
        if longest > (MAX_CHUNK if len(frame.parts) == 1 else 1):
            raise StepRefused("length", f"{longest} tokens at once in a frame of {len(frame.parts)} parts")
        verdicts = {self._verdict(part) for part in frame.parts}
        if verdicts == {"repeat"}:
            kept = self.ledger.entries[frame.parts[0].request].kept
            return list(kept.effects) if kept is not None else []
        if len(verdicts) != 1:
            raise StepRefused("stale", "a frame repeats some of its rows and not others")
        for part in frame.parts:
            if not self.ledger.entries[part.request].held.started:
                self._start_at(part.request, part.position)
        for part in frame.parts:
            # A cache that cannot be cut begins anew at 0, which is a gap for a later position.
            self.ledger.check(part.request, part.epoch, part.position, part.n)
        return self._run(frame)

    def _verdict(self, part: Part) -> str:
        """A request's first frame says where it begins: at its prefix here, or before."""
        entry = self.ledger.entries.get(part.request)
        fresh = entry is not None and entry.epoch == part.epoch and not entry.held.started
        if (
            entry is not None
            and fresh
            and part.position < entry.next
            and part.position + part.n <= entry.limit
        ):
            return "run"
        return self.ledger.check(part.request, part.epoch, part.position, part.n)

    def _run(self, frame: FrameData) -> list[Effect]:
        rows = [
            (self.ledger.entries[part.request].held.caches, Row(part.request, part.position, part.n))
            for part in frame.parts
        ]
        if self.last:
            wanted = [self._is_wanted(part) for part in frame.parts]
            sampled = self.compute.run_last(rows, frame.tokens, frame.tensor, wanted)
            effects = self._answers(frame, sampled)
        else:
            effects = [FrameDown(replace(frame, tensor=self.compute.run(rows, frame.tokens, frame.tensor)))]
        self.steps += 1
        self.latest = frame.step, frame.parts
        self.rows += sum(part.n for part in frame.parts)
        kept = _Kept(effects)
        for part in frame.parts:
            self.ledger.done(part.request, part.position, part.n, kept)
        if not self.first:
            self._remember(frame)
        return effects

    def _remember(self, frame: FrameData) -> None:
        """Ids beyond the prompt, as they pass: a kept prefix needs them."""
        at = 0
        for part in frame.parts:
            ids = self.ledger.entries[part.request].held.ids
            for offset, token in enumerate(frame.tokens[at : at + part.n]):
                if part.position + offset == len(ids):
                    ids.append(token)
            at += part.n

    def _is_wanted(self, part: Part) -> bool:
        """A token is sampled after the prompt's last position, and after each one that follows."""
        return part.position + part.n >= len(self.ledger.entries[part.request].held.open.prompt)

    def _answers(self, frame: FrameData, sampled: list[Token | None]) -> list[Effect]:
        tokens: list[Token] = []
        finished: list[tuple[int, int]] = []
        ends: list[Effect] = []
        for part, each in zip(frame.parts, sampled, strict=True):
            if each is None:
                continue
            opened = self.ledger.entries[part.request].held.open
            token = replace(each, request=part.request, epoch=part.epoch, position=part.position + part.n)
            tokens.append(token)
            reason: Finish | None = "stop" if token.id in opened.stop_ids else None
            if reason is None and token.position + 1 >= opened.limit:
                reason = "length"
            if reason is not None:
                finished.append((part.request, part.epoch))
                ends.append(FinishedOut(part.request, part.epoch, reason))
        back = TokensBack(frame.step, tuple(tokens), tuple(finished))
        return [back, *([TokensOut(tuple(tokens))] if tokens else []), *ends]

    def tokens_back(self, message: TokensBack, now_s: float) -> list[Effect]:
        """At the first stage: go on with what the last one sampled."""
        effects: list[Effect] = []
        chunk = self.scheduler.through(message.step, now_s)
        if chunk is not None and (entry := self.ledger.entries.get(chunk.request)) is not None:
            effects.append(PrefilledUp(chunk.request, entry.epoch, chunk.position + chunk.n))
        over = {request for request, _ in message.finished}
        for token in message.tokens:
            entry = self.ledger.entries.get(token.request)
            if entry is None or entry.epoch != token.epoch or token.request in over:
                continue
            if self.scheduler.token(token.request, token.position, now_s):
                entry.held.ids.append(token.id)
        for request, epoch in message.finished:
            effects += self.cancel(request, epoch)
        return effects

    def _take_back(self, effects: list[Effect], now_s: float) -> list[Effect]:
        """In a chain of one stage what goes back to the first stage has arrived already."""
        if not self.last:
            return effects
        told: list[Effect] = []
        after: list[Effect] = []
        for effect in effects:
            if isinstance(effect, TokensBack):
                after += self.tokens_back(effect, now_s)
            else:
                told.append(effect)
        # The driver hears of a request's last token before the request is forgotten.
        return told + after
