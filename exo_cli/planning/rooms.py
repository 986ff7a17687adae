"""Which layers fit a place: for every end of a stage, where it may begin.

Counts in cuts, not in layers. Exactly the accounting of problem.memory, from sums made once. Knows nothing
of time.
"""

from dataclasses import dataclass

from exo_cli.planning.problem import Problem, allocator_bytes


@dataclass(frozen=True, slots=True)
class Room:
    """What one place can hold for so many requests; cut 0 is the first, `cuts` - 1 the last."""

    whole: bool
    """The model and all."""
    first_most: int
    """As the first stage of several: its last possible end; 0 if none."""
    last_least: int
    """As the last of several: its first possible beginning; the number of the last cut if none."""
    lowest: tuple[int, ...]
    """As a stage in the middle that ends at a cut: its first possible beginning; the end itself if none."""


class Rooms:
    """Asked for a place, and for how many requests."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        work = problem.work
        self._weights, self._kv = [0], [0]
        for first, last in zip(work.cuts, work.cuts[1:], strict=False):
            layers = work.layers[first:last]
            self._weights.append(self._weights[-1] + sum(layer.weights_bytes for layer in layers))
            self._kv.append(self._kv[-1] + work.stage_kv_bytes(first, last, problem.context))
        self._made: dict[tuple[int, int, int], Room] = {}

    def room(self, place: int, streams: int) -> Room:
        fixed, limit = self._problem.fixed_bytes(place), self._problem.cluster.room_bytes(place)
        key = (fixed, limit, streams)
        if key not in self._made:
            self._made[key] = self._room(*key)
        return self._made[key]

    def capacity(self, place: int) -> int:
        """Bytes for weights and caches, at the most."""
        return max(0, self._problem.cluster.room_bytes(place) - self._problem.fixed_bytes(place))

    def _room(self, fixed: int, limit: int, streams: int) -> Room:
        work, weights, kv = self._problem.work, self._weights, self._kv
        last = len(weights) - 1
        front, back = work.embedding.weights_bytes, work.head.weights_bytes
        own_back = back + (front if work.tied else 0)

        def fits(a: int, b: int, ends: int) -> bool:
            size = weights[b] - weights[a] + ends
            return size + (kv[b] - kv[a]) * streams + allocator_bytes(size) + fixed <= limit

        first_most = 0
        while first_most + 1 < last and fits(0, first_most + 1, front):
            first_most += 1
        last_least = last
        while last_least > 1 and fits(last_least - 1, last, own_back):
            last_least -= 1
        lowest, a = [0], 1
        for b in range(1, last):
            while a < b and not fits(a, b, 0):
                a += 1
            lowest.append(a)
        return Room(fits(0, last, front + back), first_most, last_least, tuple(lowest))
