"""The best cuts for places in a given order: a dynamic program over stages and cuts. Exact.

Stage after stage, the cheapest total for every possible end, with each stage's beginning within a window
that memory and a bound on the longest stage leave; the window only moves forward, so a stage costs one
pass over the cuts. Knows nothing of hops, which do not depend on where the cuts are.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf

from exo_cli.planning.pace import Line, Terms
from exo_cli.planning.rooms import Room

Pins = Mapping[int, tuple[int, int]]
_CLOSER = 1e-9
"""Two values that differ by less than this share are the same."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Cuts for an order: total and longest of the stages' own times."""

    at: tuple[int, ...]
    total: float
    most: float


@dataclass(frozen=True, slots=True)
class Least:
    """What the stages' times cannot be below: in total, and the longest."""

    total: float
    most: float


NOTHING = Least(0.0, 0.0)
NEVER = Least(inf, inf)


@dataclass(frozen=True, slots=True)
class Member:
    """One place in an order, for one number of requests."""

    line: Line
    room: Room
    pin: tuple[int, int] | None = None
    """The cuts between which somebody wants it."""


def least_total(members: Sequence[Member], most: float = inf) -> Cut | None:
    """The cuts with the smallest total among those where no stage takes longer than `most`."""
    last = len(members[0].line.until) - 1
    if len(members) > last:
        return None
    if len(members) == 1:
        return _alone(members[0], last, most)
    ends = _first(members[0], last - len(members) + 1, most)
    came: list[list[int]] = []
    for number, member in enumerate(members[1:-1], 1):
        ends, chosen = _middle(member, ends, number, last - len(members) + number + 1, most)
        came.append(chosen)
    total, begin = _last(members[-1], ends, len(members) - 1, last, most)
    if total == inf:
        return None
    at = [last, begin]
    for chosen in reversed(came):
        at.append(chosen[at[-1]])
    bounds = (0, *reversed(at))
    took = (member.line.stage_s(a, b) for member, a, b in zip(members, bounds, bounds[1:], strict=False))
    return Cut(bounds, total, max(took))


def _alone(member: Member, last: int, most: float) -> Cut | None:
    took = member.line.stage_s(0, last)
    if not member.room.whole or took > most or member.pin not in (None, (0, last)):
        return None
    return Cut((0, last), took, took)


def _first(member: Member, highest: int, most: float) -> list[float]:
    ends = [inf] * (len(member.line.until))
    for b in range(1, min(highest, member.room.first_most) + 1):
        took = member.line.stage_s(0, b)
        if took > most:
            break
        if member.pin in (None, (0, b)):
            ends[b] = took
    return ends


def _middle(
    member: Member, before: Sequence[float], number: int, highest: int, most: float
) -> tuple[list[float], list[int]]:
    """`number` stages stand before it; it ends at `highest` at the latest."""
    until, fixed = member.line.until, member.line.fixed_s
    ends, chosen = [inf] * len(until), [0] * len(until)
    lowest = member.room.lowest
    # Beginnings by what they leave, the least at the front; those that the window has passed go.
    window: deque[tuple[float, int]] = deque()
    for b in range(number + 1, highest + 1):
        begin = b - 1
        if before[begin] < inf and (member.pin is None or member.pin[0] == begin):
            left = before[begin] - until[begin]
            while window and window[-1][0] > left:
                window.pop()
            window.append((left, begin))
        limit = until[b] + fixed - most
        while window and (window[0][1] < lowest[b] or until[window[0][1]] < limit):
            window.popleft()
        if window and (member.pin is None or member.pin[1] == b):
            ends[b] = window[0][0] + until[b] + fixed
            chosen[b] = window[0][1]
    return ends, chosen


def _last(member: Member, before: Sequence[float], number: int, last: int, most: float) -> tuple[float, int]:
    best, begin = inf, 0
    for a in range(max(number, member.room.last_least), last):
        took = member.line.stage_s(a, last)
        if took <= most and member.pin in (None, (a, last)) and before[a] + took < best:
            best, begin = before[a] + took, a
    return best, begin


@dataclass(frozen=True, slots=True)
class Hops:
    """What an order's ways cost: their sum, back to the first included, and the longest that one is taken."""

    total: float
    busy: float


def hops(order: Sequence[int], terms: Terms) -> Hops:
    if len(order) == 1:
        return Hops(0.0, 0.0)
    pairs = list(pairwise(order))
    total = sum(terms.hops[a][b] for a, b in pairs) + terms.back[order[-1]][order[0]]
    return Hops(total, max(terms.busy[a][b] for a, b in pairs))


def value(cut: Cut, way: Hops, terms: Terms) -> float:
    return terms.value(cut.total + way.total, max(cut.most, way.busy))


def best_cut(
    members: Sequence[Member], way: Hops, terms: Terms, below: float = inf, least: Least = NOTHING
) -> Cut | None:
    """The cuts of the smallest value, if that is below a bound; `least`: no stages take less."""
    best: Cut | None = None
    for cut in _improving(members, way, terms, below, least):
        best = cut
    return best


def _improving(
    members: Sequence[Member], way: Hops, terms: Terms, below: float, least: Least
) -> Iterator[Cut]:
    if terms.value(way.total, way.busy) >= below or way.total == inf:
        return
    bound = below * (1 - _CLOSER) if below < inf else inf
    found = least_total(members, terms.most_for(bound, way.total))
    if found is None:
        return
    if terms.train:
        yield from _train(members, way, terms, found, below, least.most)
        return
    low = max(found.total + way.total, terms.cycles * max(way.busy, least.most))
    high = value(found, way, terms)
    if high >= bound:
        # Only the total can be at fault: the stages' bound holds.
        return
    yield found
    while high > low * (1 + _CLOSER):
        middle = low + (high - low) / 2
        closer = least_total(members, terms.most_for(middle, way.total))
        if closer is None:
            low = middle
        elif (reached := value(closer, way, terms)) <= middle:
            low, high = max(low, closer.total + way.total), reached
            yield closer
        else:
            # Every chain with such short stages takes longer in total.
            low = middle
            if reached < high * (1 - _CLOSER):
                high = reached
                yield closer


def _train(
    members: Sequence[Member], way: Hops, terms: Terms, first: Cut, below: float, shortest: float
) -> Iterator[Cut]:
    """Intervals of the longest stage, halved as long as they may hold something better."""
    best = below * (1 - _CLOSER) if below < inf else inf
    reached = value(first, way, terms)
    if reached < best:
        best = reached * (1 - _CLOSER)
        yield first
    # Beginning and end, and what no chain within is shorter than in total.
    todo = [(max(shortest, way.busy), first.most, first.total)]
    while todo and terms.cycles > 1:
        low, high, total = todo.pop()
        if high <= low * (1 + _CLOSER) or terms.value(total + way.total, low) >= best:
            continue
        middle = low + (high - low) / 2
        todo.append((middle, high, total))
        closer = least_total(members, middle)
        if closer is None:
            continue
        reached = value(closer, way, terms)
        if reached < best:
            best = reached * (1 - _CLOSER)
            yield closer
        todo.append((low, closer.most, closer.total))


def evenest(members: Sequence[Member], way: Hops, terms: Terms, found: Cut) -> Cut:
    """Of the cuts that are as good as these, those whose longest stage is the shortest."""
    allowed = value(found, way, terms) * (1 + _CLOSER)
    best, low = found, max(way.busy, found.total / len(members) / 2)
    while best.most > low * (1 + 1e-4):
        middle = low + (best.most - low) / 2
        closer = least_total(members, middle)
        if closer is not None and value(closer, way, terms) <= allowed:
            best = closer
        else:
            low = middle
    return best
