"""One request as its driver knows it: the prompt, what was emitted, the epoch. Pure; time is passed in.

Events go in (an answer, a token, a lost chain, a tick of the clock), actions come out, and whoever
runs a request carries them out. Tokens come out exactly once and in order, whatever is repeated, late
or from an older epoch. A chain that fails raises the epoch: the prompt and all that was emitted are to
be replayed on another chain, which goes on at the same position. A replay that fails before it gave a
token is the last one: what ends every chain it is put on is not to be put on all of them. Knows no
sockets and no text.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Final, Literal

from exo_cli.errors import BadData, ExoError, Internal, TryAgain, Unavailable
from exo_cli.schemas.sampling import Sampling

MAX_FAILOVERS: Final = 3
OPEN_TIMEOUT_S: Final = 10.0
SILENCE_S: Final = 5.0
"""A running request that is silent for so long, or for ten times its slowest recent steps, is lost."""
SILENCE_FACTOR: Final = 10.0
PROMPT_SILENCE_S: Final = 120.0
"""While a prompt is computed: chunks are short, but others' may come between, and a CPU may be slow."""
_GAPS: Final = 128
# Whoever was stopped (Ctrl-Z, a closed lid) has not waited for longer than this between two looks.
_TICK_S: Final = 1.0

State = Literal["new", "opening", "running", "waiting", "over"]
Reason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True, slots=True)
class Ask:
    """What somebody wants generated."""

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: frozenset[int] = frozenset()
    deadline_s: float | None = None
    """From the start of the request on."""
    keep_prefix: bool = False
    trace: bool = False
    """Whether every stage is to tell when it did its steps."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token as a chain sends it."""

    epoch: int
    position: int
    id: int
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()
    finish: str = ""


# -- actions ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SendOpen:
    """Open the request on the chain: all ids so far, the last `emitted` of which were generated."""

    epoch: int
    ids: tuple[int, ...]
    emitted: int
    max_tokens: int
    deadline_ms: int


@dataclass(frozen=True, slots=True)
class SendCancel:
    """Tell the chain, if it still listens, that this epoch is over."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Emit:
    """The next token of the answer."""

    token: Token


@dataclass(frozen=True, slots=True)
class Replay:
    """The chain failed because of `error`: `reopen` on another one, or `give_up`."""

    error: ExoError


@dataclass(frozen=True, slots=True)
class Done:
    """Nothing comes after this."""

    reason: Reason
    error: ExoError | None = None


Action = SendOpen | SendCancel | Emit | Replay | Done


@dataclass(slots=True)
class Request:
    """A request from its start to its end; every method returns what is to be done, in order."""

    ask: Ask
    max_failovers: int = MAX_FAILOVERS
    state: State = "new"
    epoch: int = 0
    emitted: list[int] = field(default_factory=list)
    prefix: int = 0
    """How many ids the chain did not have to compute again, the first time it was asked."""
    failovers: int = 0
    until_s: float | None = None
    """When its time is over, on the clock that is passed in."""
    _replayed: int | None = None
    """How many tokens had been emitted when it was last replayed."""
    _gaps_s: deque[float] = field(default_factory=lambda: deque(maxlen=_GAPS))
    _last_token_s: float | None = None
    _prefilled_s: float = 0.0
    _silent_s: float = 0.0
    _looked_s: float = 0.0

    @property
    def position(self) -> int:
        """Where the next token stands."""
        return len(self.ask.prompt) + len(self.emitted)

    # -- the driver's part -----------------------------------------------------------------------

    def start(self, now_s: float) -> list[Action]:
        if self.state != "new":
            raise ValueError("a request is started once")
        if not self.ask.prompt or self.ask.max_tokens < 1:
            return self._over(
                "error", BadData("a request needs a prompt and room for at least one token"), tell=False
            )
        if self.ask.deadline_s is not None:
            self.until_s = now_s + self.ask.deadline_s
        self.epoch = 1
        return self._open(now_s)

    def reopen(self, now_s: float) -> list[Action]:
        """There is a chain again."""
        if self.state != "waiting":
            return []
        if self._is_late(now_s):
            return self._late(tell=False)
        self._replayed = len(self.emitted)
        return self._open(now_s)

    def give_up(self, error: ExoError) -> list[Action]:
        """There is no other chain; what was emitted stays."""
        return self._over("error", error, tell=False) if self.state == "waiting" else []

    def cancel(self) -> list[Action]:
        """Nobody wants the rest."""
        if self.state == "over":
            return []
        return self._over("cancelled", None, tell=self.state in ("opening", "running"))

    # -- the chain's part ------------------------------------------------------------------------

    def opened(self, epoch: int, prefix: int) -> list[Action]:
        if not self._listens(epoch):
            return []
        # Tokens may have overtaken it: what it says of the prefix is news all the same.
        if epoch == 1:
            self.prefix = prefix
        if self.state == "opening":
            self.state = "running"
            self._silent_s = 0.0
        return []

    def prefilled(self, epoch: int, now_s: float) -> None:
        """A part of its prompt was computed; a token takes no longer than that did."""
        if self._listens(epoch):
            self._gaps_s.append(now_s - self._prefilled_s)
            self._prefilled_s, self._silent_s = now_s, 0.0

    def refused(self, epoch: int, error: ExoError) -> list[Action]:
        """A stage said no: to the request, which is final, or in the middle of it, which is a failure."""
        if not self._listens(epoch):
            return []
        if self.state == "running" or isinstance(error, Unavailable):
            return self._failed(error)
        if self.epoch > 1 and isinstance(error, TryAgain):
            # Nothing was computed: what is left of the last epoch, or of others, is not cleared away yet.
            self._replayed = None
            return self._failed(error)
        return self._over("error", error, tell=False)

    def token(self, token: Token, now_s: float) -> list[Action]:
        """A token is news once: in the current epoch, at the next position."""
        if self.state == "over" or token.epoch < self.epoch or not self._listens(self.epoch):
            return []
        if token.epoch > self.epoch:
            return self._broken(f"a token of epoch {token.epoch} while epoch {self.epoch} runs")
        if token.position < self.position:
            return self._repeated(token)
        if token.position > self.position:
            return self._broken(f"the token at {token.position} came and the one at {self.position} did not")
        # A driver's two flows are not ordered: tokens may overtake the answer to Open.
        self.state = "running"
        self._note_time(now_s)
        self.emitted.append(token.id)
        reason = self._why_last(token)
        return [Emit(token), *(self._over(reason, None, tell=False) if reason else [])]

    def finished(self, epoch: int, reason: str, message: str) -> list[Action]:
        """The chain ended the request without a token."""
        if not self._listens(epoch):
            return []
        if reason == "deadline":
            return self._late(tell=False)
        why = message or "no reason was given"
        return self._failed(
            Unavailable(
                f"the chain let go of the request: {why}",
                hint="exo discover shows which nodes are there; run the command again.",
            )
        )

    def lost(self, error: ExoError) -> list[Action]:
        """The chain cannot be reached any more."""
        return self._failed(error) if self._listens(self.epoch) else []

    def tick(self, now_s: float) -> list[Action]:
        """Look at the clock, about once a second."""
        passed_s = min(now_s - self._looked_s, _TICK_S)
        self._looked_s = now_s
        if self.state == "over":
            return []
        if self._is_late(now_s):
            return self._late(tell=self.state != "waiting")
        if self.state in ("opening", "running"):
            self._silent_s += max(passed_s, 0.0)
            bound_s = self._patience_s()
            if self._silent_s > bound_s:
                return self._failed(
                    Unavailable(
                        f"the chain has been silent for {bound_s:.0f} s",
                        hint="exo ps shows what its nodes do; exo unload and run again if one hangs.",
                    )
                )
        return []

    # -- how it goes on --------------------------------------------------------------------------

    def _listens(self, epoch: int) -> bool:
        return self.state in ("opening", "running") and epoch == self.epoch

    def _open(self, now_s: float) -> list[Action]:
        self.state = "opening"
        self._looked_s = self._prefilled_s = now_s
        self._silent_s, self._last_token_s = 0.0, None
        left_ms = 0 if self.until_s is None else max(1, round((self.until_s - now_s) * 1000))
        return [
            SendOpen(
                epoch=self.epoch,
                ids=(*self.ask.prompt, *self.emitted),
                emitted=len(self.emitted),
                max_tokens=self.ask.max_tokens - len(self.emitted),
                deadline_ms=left_ms,
            )
        ]

    def _failed(self, error: ExoError) -> list[Action]:
        # Of another version, or without a key: another try would meet the same.
        final = not isinstance(error, Unavailable | TryAgain | BadData)
        stuck = self._replayed == len(self.emitted)
        if final or stuck or self.failovers >= self.max_failovers:
            return self._over("error", error, tell=True)
        goodbye = SendCancel(self.epoch)
        self.failovers += 1
        self.epoch += 1
        self.state = "waiting"
        return [goodbye, Replay(error)]

    def _over(self, reason: Reason, error: ExoError | None, *, tell: bool) -> list[Action]:
        self.state = "over"
        return [*([SendCancel(self.epoch)] if tell else []), Done(reason, error)]

    def _why_last(self, token: Token) -> Reason | None:
        """The chain says so; that it forgets to, once it knows less than we do, must not matter."""
        if token.finish == "stop" or token.id in self.ask.stop_ids:
            return "stop"
        if token.finish or len(self.emitted) >= self.ask.max_tokens:
            return "length"
        return None

    def _repeated(self, token: Token) -> list[Action]:
        at = token.position - len(self.ask.prompt)
        if at >= 0 and self.emitted[at] == token.id:
            return []
        return self._broken(f"another token came for position {token.position}, which was emitted already")

    def _broken(self, what: str) -> list[Action]:
        return self._over("error", Internal(f"the chain broke its protocol: {what}"), tell=True)

    def _is_late(self, now_s: float) -> bool:
        return self.until_s is not None and now_s >= self.until_s

    def _late(self, *, tell: bool) -> list[Action]:
        error = TryAgain(
            f"the time for the request was over after {len(self.emitted)} tokens",
            hint="Give it more time, or ask for fewer tokens.",
        )
        return self._over("error", error, tell=tell)

    def _note_time(self, now_s: float) -> None:
        if self._last_token_s is not None:
            self._gaps_s.append(now_s - self._last_token_s)
        self._last_token_s, self._silent_s = now_s, 0.0

    def _patience_s(self) -> float:
        if self.state == "opening":
            return OPEN_TIMEOUT_S
        if self._last_token_s is None:
            return PROMPT_SILENCE_S
        # The slowest of the last hundred or so stands for their 99th percentile.
        return max(SILENCE_S, SILENCE_FACTOR * max(self._gaps_s, default=0.0))
