"""Orders worth trying where there are too many to try all: short ways first. Deterministic.

Knows nothing of layers and of memory.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from exo_cli.planning.cutting import hops
from exo_cli.planning.pace import Terms

_STARTS: Final = 6
_MENDED: Final = 14
"""Longer chains are not mended place by place."""


def likely(places: Sequence[int], terms: Terms) -> Iterator[tuple[int, ...]]:
    """A few orders of these places, each beginning with another one, without repeats."""
    seen = set()
    for start in places[:: max(1, len(places) // _STARTS)][:_STARTS]:
        order = _nearest(start, places, terms)
        if len(order) <= _MENDED:
            order = _mended(order, terms)
        if order not in seen:
            seen.add(order)
            yield order


def _nearest(start: int, places: Sequence[int], terms: Terms) -> tuple[int, ...]:
    line, left = [start], [place for place in places if place != start]
    while left:
        row = terms.hops[line[-1]]
        best = min(left, key=lambda place: (row[place], place))
        left.remove(best)
        line.append(best)
    return tuple(line)


def _mended(order: tuple[int, ...], terms: Terms) -> tuple[int, ...]:
    """Move one place at a time to where the way is shorter, as long as that helps."""
    best = hops(order, terms).total
    better = True
    while better:
        better = False
        for at in range(len(order)):
            rest = order[:at] + order[at + 1 :]
            for to in range(len(order)):
                moved = (*rest[:to], order[at], *rest[to:])
                total = hops(moved, terms).total
                if total < best * (1 - 1e-9):
                    order, best, better = moved, total, True
                    break
            if better:
                break
    return order
