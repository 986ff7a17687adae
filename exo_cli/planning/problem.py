"""What is to be decided: a model, a cluster, how much context and how many requests, and what counts.

Holds what the parts of the planner share, and answers the questions about memory. Knows nothing of time
and of search.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from exo_cli.planning import constants
from exo_cli.planning.cluster import Cluster
from exo_cli.planning.constants import Constants
from exo_cli.planning.work import Work
from exo_cli.schemas.plan import RankMemory

Objective = Literal["latency", "throughput", "first-token", "balanced"]
Parallel = Literal["pipeline", "replicas"]
DEALS: Final = 12
"""Requests are dealt out to replicas in at most so many portions."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What somebody wants of a plan."""

    min_nodes: int = 1
    max_nodes: int | None = None
    parallel: Parallel | None = None
    """Only one chain, or only chains of one node each; None: whatever is best."""
    pins: tuple[tuple[int, int, int], ...] = ()
    """A place by its number, and the layers that it gets: first, and last excluded."""
    musts: tuple[int, ...] = ()
    """Places that have to take part."""


@dataclass(frozen=True, slots=True)
class Chain:
    """A replica: places in order, where each one's layers end, and how many requests it serves at once."""

    order: tuple[int, ...]
    bounds: tuple[int, ...]
    """Layer numbers, beginning with 0."""
    streams: int

    @property
    def ranges(self) -> list[tuple[int, int]]:
        return list(zip(self.bounds, self.bounds[1:], strict=False))


@dataclass(frozen=True, slots=True)
class Problem:
    """Everything that a plan depends on."""

    work: Work
    cluster: Cluster
    context: int
    streams: int = 1
    """Requests at once."""
    prompt: int = 512
    """How long a prompt the forecast is for; the answer follows it."""
    objective: Objective = "balanced"
    limits: Limits = field(default_factory=Limits)
    known: Constants = constants.DEFAULT

    @property
    def position(self) -> int:
        """How far a request has come in the middle of the forecast's answer."""
        return min(self.context, self.prompt + self.known.answer_tokens // 2)

    @property
    def portion(self) -> int:
        return -(-self.streams // DEALS)

    def fixed_bytes(self, place: int) -> int:
        """What an engine takes whatever its layers."""
        return self.cluster.places[place].base_bytes + activation_bytes(self.work, self.known)

    def memory(self, place: int, first: int, last: int, streams: int) -> RankMemory:
        """A stage's bytes, item by item."""
        return account(
            self.work,
            (first, last),
            self.context,
            streams,
            base_bytes=self.cluster.places[place].base_bytes,
            limit_bytes=self.cluster.room_bytes(place),
            known=self.known,
        )

    def on(self, places: Sequence[int]) -> "Problem":
        """The same with those places alone: only nodes that take part share a machine's memory."""
        return replace(self, cluster=self.cluster.only(places))


def account(
    work: Work,
    layers: tuple[int, int],
    context: int,
    streams: int,
    *,
    base_bytes: int,
    limit_bytes: int,
    known: Constants = constants.DEFAULT,
) -> RankMemory:
    """What a stage takes on a machine of that kind, item by item."""
    weights = work.stage_weights_bytes(*layers)
    return RankMemory(
        weights_bytes=weights,
        kv_bytes=work.stage_kv_bytes(*layers, context) * streams,
        buffers_bytes=activation_bytes(work, known) + allocator_bytes(weights),
        base_bytes=base_bytes,
        limit_bytes=limit_bytes,
    )


def activation_bytes(work: Work, known: Constants) -> int:
    """What a step works on beside weights and caches."""
    return constants.ACTIVATION_ITEMS * known.chunk_tokens * work.row_bytes()


def allocator_bytes(weights_bytes: int) -> int:
    return int(weights_bytes * constants.ALLOCATOR_SHARE)


def needed_bytes(memory: RankMemory) -> int:
    return memory.weights_bytes + memory.kv_bytes + memory.buffers_bytes + memory.base_bytes
