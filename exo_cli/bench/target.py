"""What a load is put on: a chain of our own, or a server. Types only; knows nothing of either.

All times are seconds of `time.perf_counter`, read when a token arrives here.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from exo_cli.wire import exo_pb2 as pb


@dataclass(frozen=True, slots=True)
class Arrival:
    """Something came: one token, or as many as a server puts into one piece."""

    at_s: float
    token: int | str
    """Its id, or its text where ids are not told. Two answers are equal if these are."""
    count: int = 1


@dataclass(frozen=True, slots=True)
class Counted:
    """Last, from a target that counts itself; what it says goes before what was counted here."""

    input_tokens: int | None = None
    cached_tokens: int = 0
    """Of the input: what it held already and did not compute."""
    output_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class StageTraces:
    """What one stage told of its steps, in its order, by its own clock."""

    node: str
    layers: tuple[int, int]
    steps: Sequence[pb.Trace]


class Target(Protocol):
    """A load's other side; whoever opened it closes it."""

    name: str
    """`chain`, or the API and URL of a server."""
    vocabulary: int
    """Prompts are made of ids below it."""
    remembers: bool
    """Whether it may reuse what an earlier request made it compute though nobody asked for that."""

    def open(
        self, prompt: Sequence[int], max_tokens: int, *, seed: int, greedy: bool, keep: bool = False
    ) -> AsyncGenerator[Arrival | Counted, None]:
        """A request; it begins with the first step of the iteration, and `aclose` ends it. With `keep`
        the target may keep what it computed for a later prompt that begins alike.

        Exactly `max_tokens` come, whatever they are, or an ExoError is raised; a server that ends
        earlier by itself is told by how many came.
        """
        ...

    def traces(self) -> Sequence[StageTraces] | None:
        """What the stages told so far, in the order of the chain; None if nobody tells."""
        ...
