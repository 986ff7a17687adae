"""How long a place takes for layers, and a payload for a way: the cost model, as sums over cuts.

Everything that a chain costs is a sum over its stages and hops, and the largest of them; `Terms` holds both
for one number of requests and of stages. Knows nothing of memory and of search.
"""

from collections.abc import Collection
from dataclasses import dataclass
from math import inf

from exo_cli.planning.cluster import Place
from exo_cli.planning.engine import Engine
from exo_cli.planning.problem import Problem
from exo_cli.planning.work import Part


@dataclass(frozen=True, slots=True)
class Line:
    """One place's times for one kind of step: up to each cut, and what comes once."""

    until: tuple[float, ...]
    head_s: float
    fixed_s: float

    def stage_s(self, a: int, b: int) -> float:
        """From cut to cut."""
        return self.until[b] - self.until[a] + self.fixed_s + (self.head_s if b == len(self.until) - 1 else 0)


@dataclass(frozen=True, slots=True)
class Terms:
    """What chains of so many stages with so many requests cost, in seconds.

    A chain's value is `max(total, cycles * most)` or, for a train of `cycles` pieces one after the other,
    `total + (cycles - 1) * most`; total is over stages and hops, most the longest single one.
    """

    lines: tuple[Line, ...]
    """By place."""
    hops: tuple[tuple[float, ...], ...]
    """From a place to a place, the payload included."""
    busy: tuple[tuple[float, ...], ...]
    """For how long the way itself is taken."""
    back: tuple[tuple[float, ...], ...]
    """From the last stage to the first: a token only."""
    cycles: int
    train: bool

    def value(self, total: float, most: float) -> float:
        if self.train:
            # One piece: nothing waits, and nothing times inf (where nothing fits) is no number.
            return total + (self.cycles - 1) * most if self.cycles > 1 else total
        return max(total, self.cycles * most)

    def most_for(self, value: float, total: float) -> float:
        """The longest that a stage may be where the value is not to be above this."""
        if not self.train:
            return value / self.cycles
        return (value - total) / (self.cycles - 1) if self.cycles > 1 else inf


def groups(streams: int, stages: int) -> tuple[int, int]:
    """How many batches go round, and how many requests are in each."""
    count = max(1, min(streams, stages))
    return count, -(-streams // count)


class Pace:
    """The cost model of a problem. `used`: the places that take part, where that is settled."""

    def __init__(self, problem: Problem, used: Collection[int] | None = None) -> None:
        self._problem = problem
        self._used = used
        self._lines: dict[tuple[object, ...], Line] = {}
        self._terms: dict[tuple[int, int], Terms] = {}
        self._first: Terms | None = None

    def terms(self, streams: int, stages: int) -> Terms:
        """For the problem's own objective."""
        if self._problem.objective == "first-token":
            return self.first_token()
        count, rows = groups(streams, stages)
        if (count, rows) not in self._terms:
            decode = self.decode(count, rows)
            balanced = self._problem.objective == "balanced"
            self._terms[count, rows] = self._request(decode, rows) if balanced else decode
        return self._terms[count, rows]

    def decode(self, count: int, rows: int) -> Terms:
        """One token for each of the requests: batches of `rows`, `count` of them on their way."""
        return self._made(rows, self._problem.position, count, self._problem.streams, train=False)

    def alone(self) -> Terms:
        """A token of one request in an idle cluster."""
        return self._made(1, self._problem.position, 1, 1, train=False)

    def first_token(self) -> Terms:
        """A prompt's pieces, one behind the other, in an idle chain."""
        if self._first is None:
            rows, pieces = self._pieces()
            self._first = self._made(rows, self._problem.prompt // 2, pieces, 1, train=True)
        return self._first

    def _request(self, decode: Terms, rows: int) -> Terms:
        """Whole requests, prompt and answer, for each of `rows` in a batch, by the answer's token."""
        prompt = self.first_token()
        times = rows * prompt.cycles / self._problem.known.answer_tokens
        lines = tuple(
            Line(
                tuple(p * times + d for p, d in zip(pre.until, dec.until, strict=True)),
                pre.head_s * times + dec.head_s,
                pre.fixed_s * times + dec.fixed_s,
            )
            for pre, dec in zip(prompt.lines, decode.lines, strict=True)
        )

        def both(
            pre: tuple[tuple[float, ...], ...], dec: tuple[tuple[float, ...], ...]
        ) -> tuple[tuple[float, ...], ...]:
            return tuple(
                tuple(p * times + d for p, d in zip(a, b, strict=True)) for a, b in zip(pre, dec, strict=True)
            )

        return Terms(
            lines,
            both(prompt.hops, decode.hops),
            both(prompt.busy, decode.busy),
            decode.back,
            decode.cycles,
            train=False,
        )

    def _pieces(self) -> tuple[int, int]:
        rows = max(1, min(self._problem.prompt, self._problem.known.chunk_tokens))
        return rows, -(-self._problem.prompt // rows)

    def _made(self, rows: int, position: int, cycles: int, streams: int, *, train: bool) -> Terms:
        cluster, known = self._problem.cluster, self._problem.known
        payload = rows * self._problem.work.row_bytes()
        lines = tuple(
            self._line(place, rows, position, self._share(at, streams), train=train)
            for at, place in enumerate(cluster.places)
        )

        def table(what: str) -> tuple[tuple[float, ...], ...]:
            rows_ = []
            for a, line in enumerate(cluster.ways):
                row = []
                for b, way in enumerate(line):
                    if a == b or not way.open:
                        # Its hop says that a way is closed.
                        row.append(0.0 if a == b or what == "busy" else inf)
                        continue
                    taken = payload / way.bytes_per_s
                    once = way.latency_s + known.hop_s
                    row.append({"hops": once + taken, "busy": taken, "back": once}[what])
                rows_.append(tuple(row))
            return tuple(rows_)

        return Terms(lines, table("hops"), table("busy"), table("back"), cycles, train)

    def _share(self, at: int, streams: int) -> float:
        """Of its speed, what a place has while others on its machine are as busy."""
        cluster = self._problem.cluster
        place, busy = cluster.places[at], cluster.busy(at, streams, self._used)
        if busy == 1:
            return 1.0
        if place.backend != "cpu":
            return 1.0 / busy
        return min(1.0, (place.cores or busy) / busy) * self._problem.known.beside_share

    def _line(self, place: Place, rows: int, position: int, share: float, *, train: bool) -> Line:
        key = (place.bytes_per_s, place.flop_per_s, place.step_s, place.batches, rows, position, train, share)
        if key not in self._lines:
            work, known = self._problem.work, self._problem.known
            engine = Engine(place, known, share)
            # A prompt's rows share one cache and only the last one is asked for a token.
            caches, head_rows = (1, 1) if train else (rows, rows)

            def took(part: Part, n: int) -> float:
                cached = caches * part.cached_bytes(position, work.kv_item_bytes)
                return engine.took_s(part, n, cached, n * part.attention_flop * part.seen(position))

            until = [0.0]
            for first, last in zip(work.cuts, work.cuts[1:], strict=False):
                layers = sum(took(layer, rows) for layer in work.layers[first:last])
                until.append(until[-1] + layers + (last - first) * known.layer_s)
            self._lines[key] = Line(tuple(until), took(work.head, head_rows), engine.step_s)
        return self._lines[key]
