"""How long one place's engine takes for a part of a model: the least that reading and arithmetic allow.

What was measured decides, one row and a few at a time and a whole piece of a prompt; between those it is
taken to lie on a line. Knows nothing of chains.
"""

from dataclasses import dataclass, field

from exo_cli.planning.cluster import Place
from exo_cli.planning.constants import Constants
from exo_cli.planning.work import Part


@dataclass(slots=True)
class Engine:
    """Of one place, which has `share` of its speed."""

    place: Place
    known: Constants
    share: float = 1.0
    step_s: float = field(init=False)
    """What a step costs whatever is in it."""

    def __post_init__(self) -> None:
        measured = self.place.step_s
        self.step_s = (self.known.pass_s if measured is None else measured) / self.share

    def took_s(self, part: Part, rows: int, cached_bytes: float, attention_flop: float) -> float:
        """A step of so many rows, which looks back at so much of caches."""
        place = self.place
        read = (part.step_bytes(rows) + cached_bytes) / place.bytes_per_s
        flop = (rows * part.flop + attention_flop) / place.flop_per_s
        if place.batches:
            weights = self._weights_s(part, rows)
            read = max(read, weights + cached_bytes / place.bytes_per_s)
        return max(read, flop) / self.share

    def _weights_s(self, part: Part, rows: int) -> float:
        """By the measured batches; beyond the largest on the line to what a piece of a prompt takes."""
        most, chunk = self.place.batches[-1][0], self.known.chunk_tokens
        if rows <= most:
            return self._batch_s(part, rows)
        last = self._batch_s(part, most)
        whole = chunk * part.flop / self.place.flop_per_s
        return last + (rows - most) * max(0.0, whole - last) / max(1, chunk - most)

    def _batch_s(self, part: Part, rows: int) -> float:
        """Each of the experts that are read has fewer rows than there are."""
        read = part.read_bytes * self._times(rows)
        if part.routed_bytes:
            used = part.step_bytes(rows) - part.read_bytes
            an_expert = rows * part.routed_share * part.routed_bytes / used if used else 1.0
            read += used * self._times(max(1.0, an_expert))
        return read / self.place.bytes_per_s

    def _times(self, rows: float) -> float:
        before, times = 1.0, 1.0
        for at, reached in self.place.batches:
            if rows <= at:
                return times + (reached - times) * (rows - before) / (at - before)
            before, times = at, reached
        return times
