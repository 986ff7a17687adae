"""Tensor parallelism in figures: what a group that acts as one stage takes in time and memory.

Ranks share heads, and may do so unevenly; twice a layer they add up what each has computed. Modelled, and
not offered in plans as long as no engine runs it. Knows nothing of pipelines.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt

from exo_cli.planning.cluster import Way
from exo_cli.planning.problem import Problem, allocator_bytes
from exo_cli.planning.work import Part
from exo_cli.schemas.plan import RankMemory

EXCHANGES = 2
"""In a layer: behind attention and behind the network after it."""


@dataclass(frozen=True, slots=True)
class Group:
    """Places that share layers, and how many units each has of them."""

    places: tuple[int, ...]
    units: tuple[int, ...]

    def share(self, rank: int) -> float:
        return self.units[rank] / sum(self.units)


def group(problem: Problem, places: Sequence[int], first: int, last: int, streams: int) -> Group | None:
    """Units where they make the slowest rank as quick as can be and fit; None where nothing does."""
    total = problem.work.units
    if len(places) > total:
        return None
    speeds = [problem.cluster.places[at].bytes_per_s for at in places]
    most = [_most(problem, at, first, last, streams) for at in places]
    if not all(most):
        return None
    units = [1] * len(places)
    for _ in range(total - len(places)):
        able = [rank for rank in range(len(places)) if units[rank] < most[rank]]
        if not able:
            return None
        # One by one to who is done the soonest: no other deal has a quicker slowest rank.
        best = min(able, key=lambda rank: ((units[rank] + 1) / speeds[rank], rank))
        units[best] += 1
    return Group(tuple(places), tuple(units))


def _most(problem: Problem, place: int, first: int, last: int, streams: int) -> int:
    low, high = 0, problem.work.units
    limit = problem.cluster.room_bytes(place)
    while low < high:
        middle = (low + high + 1) // 2
        memory = rank_memory(problem, place, middle / problem.work.units, first, last, streams)
        needed = memory.weights_bytes + memory.kv_bytes + memory.buffers_bytes + memory.base_bytes
        if needed <= limit:
            low = middle
        else:
            high = middle - 1
    return low


def rank_memory(
    problem: Problem, place: int, share: float, first: int, last: int, streams: int
) -> RankMemory:
    """One rank's bytes, item by item."""
    work = problem.work
    parts: list[Part] = list(work.layers[first:last])
    parts += [work.embedding] if first == 0 else []
    parts += [work.head] if last == len(work.layers) else []
    weights = sum(part.whole_bytes + int((part.weights_bytes - part.whole_bytes) * share) for part in parts)
    kv = work.stage_kv_bytes(first, last, problem.context) * streams
    base = problem.cluster.places[place].base_bytes
    return RankMemory(
        weights_bytes=weights,
        kv_bytes=kv if work.latent else int(kv * share),
        buffers_bytes=problem.fixed_bytes(place) - base + allocator_bytes(weights),
        base_bytes=base,
        limit_bytes=problem.cluster.room_bytes(place),
    )


def exchange_s(ways: Sequence[Way], payload_bytes: float) -> float:
    """Adding up so many bytes over all ranks, by whichever of three shapes is the quickest.

    `ways` are those between the ranks, the slowest of which decides; for n ranks there are n(n-1).
    """
    if not ways:
        return 0.0
    ranks = (1 + isqrt(1 + 4 * len(ways))) // 2
    latency, rate = max(way.latency_s for way in ways), min(way.bytes_per_s for way in ways)
    others = ranks - 1
    at_once = latency + others * payload_bytes / rate
    ring = 2 * others * (latency + payload_bytes / ranks / rate)
    star = 2 * latency + 2 * others * payload_bytes / rate
    return min(at_once, ring, star)


def step_s(problem: Problem, group: Group, first: int, last: int, rows: int, position: int) -> float:
    """A step of so many rows through layers `first` to `last`."""
    work, known = problem.work, problem.known
    places = problem.cluster.places
    ways = [problem.cluster.ways[a][b] for a in group.places for b in group.places if a != b]
    exchange = exchange_s(ways, rows * work.row_bytes()) + (known.reduce_s if ways else 0.0)

    def took(part: Part) -> float:
        each = []
        for rank, at in enumerate(group.places):
            share = group.share(rank)
            kv = part.cached_bytes(position, work.kv_item_bytes) * rows
            read = part.step_bytes(rows) * share + kv * (1.0 if work.latent else share)
            flop = rows * share * (part.flop + part.attention_flop * part.seen(position))
            each.append(max(read / places[at].bytes_per_s, flop / places[at].flop_per_s))
        return max(each)

    total = sum(took(layer) for layer in work.layers[first:last])
    total += (last - first) * (known.layer_s + EXCHANGES * exchange)
    if last == len(work.layers):
        total += took(work.head) + exchange
    return total + known.pass_s
