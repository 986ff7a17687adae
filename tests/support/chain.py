"""A chain of stage cores in one process, through the real frame codec; arithmetic is pluggable.

`HashCompute` is a model in a few lines: what a stage says of a position depends on every token before
it, so a lost, repeated or misplaced step changes the tokens.
"""

import hashlib
import struct
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from operator import eq
from typing import Any

from exo_cli.engine.core import (
    CancelDown,
    Compute,
    Effect,
    FinishedOut,
    FrameDown,
    Open,
    OpenDown,
    OpenedUp,
    PrefilledUp,
    RefusedUp,
    StageCore,
    Token,
    TokensBack,
    TokensOut,
)
from exo_cli.engine.scheduler import Row, Scheduler
from exo_cli.schemas.sampling import Sampling
from exo_cli.wire import frames
from exo_cli.wire.frames import FrameData, FrameReader, TensorData

VOCAB = 1000


def _hash(*values: float) -> float:
    return float(int.from_bytes(hashlib.blake2b(repr(values).encode(), digest_size=3).digest(), "big"))


@dataclass
class HashCompute:
    """One stage of the hash model; a cache is the list of its values by position."""

    bytes_per_token: int = 8
    prefixes: dict[tuple[int, ...], list[float]] = field(default_factory=dict)
    alive: int = 0
    rewindable: bool = True

    def size(self, open: Open) -> int:
        return open.limit * self.bytes_per_token

    def begin(self, open: Open) -> tuple[list[float], int]:
        self.alive += 1
        best: tuple[list[float], int] = ([], 0)
        for ids, kept in self.prefixes.items():
            n = sum(1 for _ in takewhile(bool, map(eq, ids, open.prompt)))
            if n > best[1] and (self.rewindable or n == len(ids)):
                best = list(kept[:n]), n
        return best

    def rewind(self, held: list[float], position: int) -> int:
        keep = position if self.rewindable else 0
        del held[keep:]
        return keep

    def end(self, held: list[float], ids: Sequence[int] | None) -> None:
        self.alive -= 1
        if ids is not None:
            self.prefixes[tuple(ids)] = list(held)

    def _values(
        self, rows: Sequence[tuple[list[float], Row]], tokens: Sequence[int], tensor: TensorData | None
    ) -> list[list[float]]:
        given = None if tensor is None else deque(struct.unpack(f"<{tensor.shape[0]}f", tensor.data))
        queue, out = deque(tokens), []
        for held, row in rows:
            del held[row.position :]
            assert len(held) == row.position, "a gap reached the arithmetic"
            values = []
            for _ in range(row.n):
                token = queue.popleft()
                x = float(token) if given is None else given.popleft()
                held.append(_hash(x, *held[-3:], len(held)))
                values.append(held[-1])
            out.append(values)
        return out

    def run(
        self, rows: Sequence[tuple[list[float], Row]], tokens: Sequence[int], tensor: TensorData | None
    ) -> TensorData:
        flat = [value for values in self._values(rows, tokens, tensor) for value in values]
        return TensorData("float32", (len(flat), 1), struct.pack(f"<{len(flat)}f", *flat))

    def run_last(
        self,
        rows: Sequence[tuple[list[float], Row]],
        tokens: Sequence[int],
        tensor: TensorData | None,
        wanted: Sequence[bool],
    ) -> list[Token | None]:
        values = self._values(rows, tokens, tensor)
        return [
            Token(0, 0, 0, int(each[-1]) % VOCAB) if want else None
            for each, want in zip(values, wanted, strict=True)
        ]


def expected(stages: int, prompt: Sequence[int], n: int) -> list[int]:
    """What the model says, computed one position after the other without any of our machinery."""
    computes = [HashCompute() for _ in range(stages)]
    caches: list[list[float]] = [[] for _ in range(stages)]
    ids, out = list(prompt), list[int]()
    for position in range(len(prompt) + n - 1):
        value: float = ids[position]
        for _, cache in zip(computes, caches, strict=True):
            cache.append(_hash(float(value), *cache[-3:], len(cache)))
            value = struct.unpack("<f", struct.pack("<f", cache[-1]))[0]
        if position >= len(prompt) - 1:
            out.append(int(caches[-1][-1]) % VOCAB)
            ids.append(out[-1])
    return out


@dataclass
class Driven:
    """What the driver saw of one request."""

    tokens: list[int] = field(default_factory=list)
    prefix: int | None = None
    refused: Any = None
    finished: str | None = None
    prefilled: list[int] = field(default_factory=list)
    """How far its prompt was through the chain, each time the first stage said so."""


class Chain:
    """Cores, and the wires between them: queues whose frames go through the codec."""

    def __init__(
        self,
        computes: Sequence[Compute[Any]],
        *,
        chunk: int = 4,
        budget: int = 100_000,
        meddle: Callable[[FrameData], list[FrameData]] = lambda frame: [frame],
    ) -> None:
        n = len(computes)
        self.cores = [
            StageCore(
                compute,
                budget,
                first=index == 0,
                last=index == n - 1,
                scheduler=Scheduler(stages=n, chunk_tokens=chunk),
            )
            for index, compute in enumerate(computes)
        ]
        self.now = 0.0
        self.driver: dict[int, Driven] = {}
        self._meddle = meddle
        self._readers = [FrameReader() for _ in computes]
        self._queue: deque[Callable[[], None]] = deque()

    def open(self, request: int, prompt: Sequence[int], n: int, *, epoch: int = 1, **options: Any) -> Driven:
        options.setdefault("sampling", Sampling())
        message = Open(request, epoch, tuple(prompt), max_tokens=n, **options)
        seen = self.driver[request] = Driven()
        self._carry(0, self.cores[0].open(message))
        return seen

    def cancel(self, request: int, epoch: int = 1) -> None:
        self._carry(0, self.cores[0].cancel(request, epoch))

    def tick(self) -> bool:
        """One delivery, one step or one wait; False where nothing is left to do."""
        if self._queue:
            self._queue.popleft()()
            return True
        due = self.cores[0].poll(self.now)
        if isinstance(due, float):
            self.now = max(due, self.now)
        elif due is not None:
            self._carry(0, due)
        return due is not None

    def run(self, limit: int = 100_000) -> None:
        for _ in range(limit):
            if not self.tick():
                return
        raise AssertionError("it does not end")

    def lose_everything_under_way(self) -> None:
        self._queue.clear()

    def _carry(self, at: int, effects: Sequence[Effect]) -> None:
        for effect in effects:
            self._queue.append(lambda effect=effect: self._deliver(at, effect))  # type: ignore[misc]

    def _deliver(self, at: int, effect: Effect) -> None:
        cores = self.cores
        match effect:
            case OpenDown(message):
                self._carry(at + 1, cores[at + 1].open(message))
            case FrameDown(frame):
                for sent in self._meddle(frame):
                    for piece in frames.encode(sent):
                        whole = self._readers[at + 1].feed(piece)
                        if whole is not None:
                            self._carry(at + 1, cores[at + 1].frame(whole, self.now))
            case CancelDown(request, epoch):
                self._carry(at + 1, cores[at + 1].cancel(request, epoch))
            case OpenedUp(request, epoch, prefix, chunk):
                if at == 0:
                    self.driver[request].prefix = prefix
                else:
                    self._carry(at - 1, cores[at - 1].opened(request, epoch, prefix, chunk))
            case PrefilledUp(request, _, position):
                assert at == 0
                self.driver[request].prefilled.append(position)
            case RefusedUp(request, epoch, error):
                if at == 0:
                    self.driver[request].refused = error
                else:
                    self._carry(at - 1, [effect, *cores[at - 1].cancel(request, epoch)])
            case TokensBack():
                self._carry(0, cores[0].tokens_back(effect, self.now))
            case TokensOut(tokens):
                for token in tokens:
                    self.driver[token.request].tokens.append(token.id)
            case FinishedOut(request, _, reason):
                self.driver[request].finished = reason
