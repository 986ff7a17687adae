"""What no chain over a set of places can beat, whatever its order and its cuts.

Layers become a fluid that every place takes up to its room, the quickest first; for the longest stage,
all of them level. Knows nothing of which orders and cuts there are.
"""

from collections.abc import Sequence

from exo_cli.planning.constants import ALLOCATOR_SHARE
from exo_cli.planning.cutting import NEVER, Least
from exo_cli.planning.pace import Terms
from exo_cli.planning.problem import Problem
from exo_cli.planning.rooms import Rooms


class Fluid:
    """The model as a fluid, for one number of requests."""

    def __init__(self, problem: Problem, rooms: Rooms, streams: int) -> None:
        work = problem.work
        self._rooms = rooms
        self._masses = []
        for first, last in zip(work.cuts, work.cuts[1:], strict=False):
            weights = sum(layer.weights_bytes for layer in work.layers[first:last])
            kv = work.stage_kv_bytes(first, last, problem.context) * streams
            self._masses.append(weights * (1 + ALLOCATOR_SHARE) + kv)
        self._mass = sum(self._masses)
        ends = work.embedding.weights_bytes + work.head.weights_bytes
        self._ends = ends * (1 + ALLOCATOR_SHARE)
        self._per_mass: dict[int, float] = {}

    @property
    def least_mass(self) -> float:
        """What has to find room, whatever the split."""
        return self._mass + self._ends

    def least(self, places: Sequence[int], terms: Terms) -> Least:
        """For all of these together, each with a stage."""
        fixed = [terms.lines[place].fixed_s for place in places]
        least = self.some(places, terms)
        if len(places) > len(self._masses):
            return NEVER
        return Least(least.total + sum(fixed), least.most + min(fixed))

    def some(self, places: Sequence[int], terms: Terms) -> Least:
        """For any of these, without what comes once a stage."""
        room = [self._rooms.capacity(place) for place in places]
        # A byte of slack each: the accounting rounds down, this does not.
        if sum(room) + len(room) < self.least_mass:
            return NEVER
        slow = [self._slowness(place, terms) for place in places]
        head = min(terms.lines[place].head_s for place in places)
        return Least(self._filled(room, slow) + head, self._level(room, slow))

    def alone(self, places: Sequence[int], terms: Terms) -> list[float]:
        """How long each would take for all the layers."""
        return [self._slowness(place, terms) * self._mass for place in places]

    def _slowness(self, place: int, terms: Terms) -> float:
        """Seconds a byte, where it is the least."""
        line = terms.lines[place]
        key = id(line)
        if key not in self._per_mass:
            steps = zip(line.until, line.until[1:], self._masses, strict=False)
            self._per_mass[key] = min((after - before) / mass for before, after, mass in steps)
        return self._per_mass[key]

    def _filled(self, room: Sequence[int], slow: Sequence[float]) -> float:
        left, total = self._mass, 0.0
        for pace, size in sorted(zip(slow, room, strict=True)):
            taken = min(left, size)
            total += taken * pace
            left -= taken
        return total

    def _level(self, room: Sequence[int], slow: Sequence[float]) -> float:
        """How long the longest stage is where all are equally long, but for those that are full."""
        left, speed = self._mass, sum(1 / pace for pace in slow)
        level = 0.0
        for full, pace, size in sorted(
            (size * pace, pace, size) for pace, size in zip(slow, room, strict=True)
        ):
            if left / speed <= full:
                break
            left -= size
            speed -= 1 / pace
            level = full
            if left <= 0 or speed <= 0:
                return level
        return max(level, left / speed)
