"""What no chain over a set of places can beat, whatever its order and its cuts.

Layers become a fluid that every place takes up to its room, the quickest first; for the longest stage,
all of them level. Knows nothing of which orders and cuts there are.
"""

from collections.abc import Sequence
from math import inf
from typing import Final

from exo_cli.planning.constants import ALLOCATOR_SHARE
from exo_cli.planning.cutting import NEVER, Least
from exo_cli.planning.pace import Terms
from exo_cli.planning.problem import Problem
from exo_cli.planning.rooms import Rooms

_STEPS: Final = 12
_CLOSE: Final = 1e-4


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

    def joint(self, places: Sequence[int], terms: Terms, least: Least, way: float) -> float:
        """For all of these together, no value is smaller: a shorter longest stage makes the total longer.
        `way`: of all hops."""
        fixed = [terms.lines[place].fixed_s for place in places]
        return self._joint(places, terms, least, fixed, way, sum(fixed))

    def any(self, places: Sequence[int], terms: Terms, stages: int, way: float) -> float:
        """The same for so many of these."""
        some = self.some(places, terms)
        fixed = min(terms.lines[place].fixed_s for place in places)
        least = Least(some.total + stages * fixed, some.most + fixed)
        return self._joint(places, terms, least, [fixed] * len(places), way, stages * fixed)

    def _joint(
        self,
        places: Sequence[int],
        terms: Terms,
        least: Least,
        fixed: Sequence[float],
        way: float,
        all_fixed: float,
    ) -> float:
        plain = terms.value(least.total + way, least.most)
        if terms.cycles == 1 or plain == inf or len(places) == 1:
            return plain
        curve = _Curve(
            [self._rooms.capacity(place) for place in places],
            [self._slowness(place, terms) for place in places],
            fixed,
            self._mass,
            min(terms.lines[place].head_s for place in places) + way + all_fixed,
        )
        found = (
            curve.train(terms.cycles - 1, least.most) if terms.train else curve.ring(terms.cycles, least.most)
        )
        return max(plain, found)

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


class _Curve:
    """The least total by how long a stage may be: falling and convex, of the fluid."""

    def __init__(
        self, room: Sequence[int], slow: Sequence[float], fixed: Sequence[float], mass: float, once: float
    ) -> None:
        self._places = sorted(zip(slow, room, fixed, strict=True))
        self._mass = mass
        self._once = once

    def train(self, pieces: int, low: float) -> float:
        """Of total and `pieces` times the longest stage."""
        high = max(min(room, self._mass) * slow + fixed for slow, room, fixed in self._places)
        if high <= low:
            return self._at(low)[0] + pieces * low
        for _ in range(_STEPS):
            middle = (low + high) / 2
            if self._at(middle)[1] + pieces < 0:
                low = middle
            else:
                high = middle
        total, slope = self._at(low)
        # Between the two no less than on the line that touches it, nor than the best of either end.
        touching = -inf if total == inf else total + pieces * low + min(0.0, (slope + pieces) * (high - low))
        return max(touching, self._at(high)[0] + pieces * low)

    def ring(self, cycles: int, low: float) -> float:
        """Of the larger of total and `cycles` times the longest stage."""
        high = self._at(inf)[0] / cycles
        while high > low * (1 + _CLOSE):
            middle = (low + high) / 2
            if self._at(middle)[0] < cycles * middle:
                high = middle
            else:
                low = middle
        # Shorter stages take longer in total than `cycles` of these.
        return cycles * low if self._at(low)[0] >= cycles * low else 0.0

    def _at(self, most: float) -> tuple[float, float]:
        """The least total where no stage takes longer, and how quickly it falls there."""
        left, total, tight = self._mass, self._once, list[float]()
        for slow, room, fixed in self._places:
            capped = (most - fixed) / slow
            taken = max(0.0, min(left, room, capped))
            total += taken * slow
            left -= taken
            if left <= len(self._places):
                # The accounting rounds down, this does not. From here a longer stage takes.
                return total, sum(1 - slow / each for each in tight)
            if capped < room:
                tight.append(slow)
        return inf, -inf
