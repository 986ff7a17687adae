"""A topology as places and ways: what each node may use and how fast it is, how far it is to the others.

Says who takes no part and why, and which figures were measured. Knows nothing of models but the name of
their weights' format.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import Final, Literal

from msgspec import structs

from exo_cli.planning import constants, hardware
from exo_cli.planning.constants import Constants
from exo_cli.schemas.topology import Link, Node, Rate, Topology

Basis = Literal["measured", "table", "guessed"]
_BASES: Final[tuple[Basis, ...]] = ("measured", "table", "guessed")
HEADROOM: Final = 0.1
"""Of free memory, left to the system; a node lets engines have no more either."""
_LONGEST_STEP_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Place:
    """A node that takes part."""

    id: str
    name: str
    host: str
    backend: str
    cap_bytes: int
    """The smallest of its three numbers, less the headroom: alone on its machine."""
    free_bytes: int
    """What the machine has free, less the headroom; nodes on one machine have it together."""
    bytes_per_s: float
    flop_per_s: float
    basis: Basis
    step_s: float | None = None
    """What a step costs whatever is in it, where that was measured."""
    batches: tuple[tuple[int, float], ...] = ()
    """Rows of a step, and how many times as long it takes as with one: what was measured of that."""
    cores: int = 0
    """Of its machine; 0: nobody knows."""
    fast: bool = False
    """Whether it offers that way of computing."""

    @property
    def base_bytes(self) -> int:
        return constants.base_bytes(self.backend, fast=self.fast)


@dataclass(frozen=True, slots=True)
class Way:
    """From one place to another."""

    latency_s: float
    """One way."""
    bytes_per_s: float
    basis: Basis
    closed: str | None = None
    """Why nothing can go there."""

    @property
    def open(self) -> bool:
        return self.closed is None


@dataclass(frozen=True, slots=True)
class Cluster:
    """Who takes part, and the ways between all of them."""

    places: tuple[Place, ...]
    ways: tuple[tuple[Way, ...], ...]
    left_out: tuple[tuple[str, str], ...]
    """Names and reasons."""

    def room_bytes(self, at: int) -> int:
        """What a place may use. Nodes on one machine share what it has free in even parts."""
        place = self.places[at]
        if place.backend == "cuda":
            return place.cap_bytes
        here = [other for other in self.places if other.host == place.host and other.backend != "cuda"]
        # They looked at different moments: the machine had as much as one of them saw.
        return min(place.cap_bytes, max(other.free_bytes for other in here) // len(here))

    def busy(self, at: int, streams: int, used: Collection[int] | None = None) -> int:
        """How many nodes compute at once on the processor or GPU of this one while there are so many requests
        in all. `used`: those that take part; None: all."""
        place = self.places[at]
        if place.backend == "cuda" or streams == 1:
            return 1
        here = sum(
            other.host == place.host and other.backend != "cuda" and (used is None or number in used)
            for number, other in enumerate(self.places)
        )
        return max(1, min(here, streams))

    def only(self, keep: Sequence[int]) -> "Cluster":
        """The same with the places of those numbers alone."""
        return Cluster(
            tuple(self.places[at] for at in keep),
            tuple(tuple(self.ways[a][b] for b in keep) for a in keep),
            self.left_out,
        )


def weakest(bases: Iterable[Basis]) -> Basis:
    return _BASES[max((_BASES.index(basis) for basis in bases), default=0)]


_HERE: Final = Way(0.0, math.inf, "measured")


def cluster_of(
    topology: Topology,
    *,
    format: str,
    protocol: int | None = None,
    headroom: float = HEADROOM,
    exclude: Collection[str] = (),
    only_link: str | None = None,
    here: str | None = None,
    known: Constants = constants.DEFAULT,
) -> Cluster:
    """In the order of names, so that the order of a file's lines means nothing.

    `here`: the host whose nodes come first, and so are taken where others would be as good.
    """
    places, left_out = [], []
    nodes = _as_they_compute(topology.nodes, protocol)
    shares = _shares(nodes, format, known)
    for node in sorted(nodes, key=lambda node: (node.host != here, node.name, node.id)):
        why = "is excluded" if {node.id, node.name} & set(exclude) else unfit(node, protocol)
        if why is not None:
            left_out.append((node.name, why))
        else:
            places.append(_place(node, format, headroom, known, shares.get(node.backend, (1.0, 1.0))))
    links = {(link.from_, link.to): link for link in topology.links}
    ways = tuple(tuple(_way(a, b, links, only_link) for b in places) for a in places)
    return Cluster(tuple(places), ways, tuple(left_out))


def _as_they_compute(nodes: Sequence[Node], protocol: int | None) -> list[Node]:
    """With the rates of how they would compute together: `fast` where all of them offer it."""
    workers = [node for node in nodes if unfit(node, protocol) is None]
    numerics = "fast" if workers and all("fast" in node.numerics for node in workers) else "exact"
    return [
        structs.replace(node, rates=tuple(rate for rate in node.rates if rate.numerics == numerics))
        for node in nodes
    ]


def unfit(node: Node, protocol: int | None) -> str | None:
    """Why a node takes no part; None if it can."""
    if protocol is not None and node.protocol != protocol:
        return f"speaks protocol {node.protocol} (version {node.version})"
    if node.role != "shard":
        return "only announces itself"
    if node.state != "ready":
        return f"is {node.state}"
    return "has no engine" if node.backend == "none" else None


def usable_bytes(node: Node, headroom: float = HEADROOM) -> int:
    """The smallest of its three numbers, less what the system needs to breathe."""
    memory = node.memory
    return int(min(memory.ram_bytes, memory.limit_bytes, memory.free_bytes) * (1.0 - headroom))


def _place(node: Node, format: str, headroom: float, known: Constants, of: tuple[float, float]) -> Place:
    memory = node.memory
    share = 1.0 - headroom
    bytes_per_s, flop_per_s, basis = _rates(node, format, known)
    rate = _measured(node, format)
    if basis != "measured":
        bytes_per_s, flop_per_s = bytes_per_s * of[0], flop_per_s * of[1]
    return Place(
        id=node.id,
        name=node.name,
        host=node.host,
        backend=node.backend,
        cap_bytes=usable_bytes(node, headroom),
        free_bytes=int(min(memory.ram_bytes, memory.free_bytes) * share),
        bytes_per_s=bytes_per_s,
        flop_per_s=flop_per_s,
        basis=basis,
        step_s=None if rate is None else _step_s(rate),
        batches=() if rate is None else _batches(rate),
        cores=node.cores,
        fast="fast" in node.numerics,
    )


def _step_s(rate: Rate) -> float | None:
    """Nothing where what a node says cannot be."""
    return rate.step_s if rate.step_s is not None and 0 <= rate.step_s <= _LONGEST_STEP_S else None


def _batches(rate: Rate) -> tuple[tuple[int, float], ...]:
    """As a curve that only rises, and no steeper than one row after the other, whatever a node says."""
    found: list[tuple[int, float]] = []
    for each in sorted(rate.batches, key=lambda batch: batch.rows):
        rows, times = found[-1] if found else (1, 1.0)
        if each.rows > rows:
            found.append((each.rows, min(max(times, each.times), float(each.rows))))
    return tuple(found)


def _shares(nodes: Iterable[Node], format: str, known: Constants) -> dict[str, tuple[float, float]]:
    """By backend: what measured nodes reach of what would be said of them unmeasured, in the middle.

    Those that were not measured yet are taken to reach as much, or one engine would look as quick as the
    maker's figure beside the very same that has been timed.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for node in nodes:
        rate = _measured(node, format)
        if rate is not None:
            said = _unmeasured(node, known)
            share = (rate.decode_bytes_per_s / said[0], rate.prefill_flop_per_s / said[1])
            found.setdefault(node.backend, []).append(share)
    return {
        backend: (median_low(a for a, _ in each), median_low(b for _, b in each))
        for backend, each in found.items()
    }


def _rates(node: Node, format: str, known: Constants) -> tuple[float, float, Basis]:
    """Of that format; else of the one that is nearest in name; else from the table; else guessed."""
    rate = _measured(node, format)
    if rate is not None:
        return rate.decode_bytes_per_s, rate.prefill_flop_per_s, "measured"
    return _unmeasured(node, known)


def _measured(node: Node, format: str) -> Rate | None:
    usable = [rate for rate in node.rates if rate.decode_bytes_per_s > 0 and rate.prefill_flop_per_s > 0]
    return min(usable, key=lambda rate: (_distance(rate, format), rate.format), default=None)


def _unmeasured(node: Node, known: Constants) -> tuple[float, float, Basis]:
    found = hardware.chip(node.chip)
    basis: Basis = "guessed" if found is None else "table"
    found = found or hardware.guess(node.backend, node.cores)
    return found.bytes_per_s * known.decode_share, found.flop_per_s * known.prefill_share, basis


def _distance(rate: Rate, format: str) -> int:
    if rate.format == format:
        return 0
    packed = [name.startswith(("affine", "mxfp", "nvfp")) for name in (rate.format, format)]
    return 1 if packed[0] == packed[1] else 2


def _way(a: Place, b: Place, links: dict[tuple[str, str], Link], only: str | None) -> Way:
    if a is b:
        return _HERE
    link = links.get((a.id, b.id))
    if link is None and a.host != b.host:
        back = links.get((b.id, a.id))
        link = back if back is not None and back.error is None else None
    if link is not None and link.error is not None:
        return Way(math.inf, 0.0, "measured", link.error)
    if only is not None and a.host != b.host and (link is None or link.kind != only):
        kind = "not measured" if link is None else link.kind or "of an unknown kind"
        return Way(math.inf, 0.0, "measured", f"it is {kind}, and only {only} is wanted")
    local = a.host == b.host
    rtt_s, rate, basis = None, None, "measured"
    if link is not None:
        rtt_s = None if link.rtt_us_p50 is None else link.rtt_us_p50 / 1e6
        rate = link.bytes_per_s
    if rtt_s is None or not rate:
        basis = "guessed"
    if rtt_s is None:
        rtt_s = constants.LOOPBACK_RTT_S if local else constants.UNKNOWN_RTT_S
    if not rate:
        rate = constants.LOOPBACK_BYTES_PER_S if local else constants.UNKNOWN_BYTES_PER_S
    return Way(rtt_s / 2, rate, "guessed" if basis == "guessed" else "measured")


def classes(cluster: Cluster) -> list[int]:
    """For each place the first one that it could change places with, everything else staying as it is."""
    found: list[int] = []
    for at in range(len(cluster.places)):
        found.append(next((other for other in range(at) if _alike(cluster, other, at)), at))
    return found


def _alike(cluster: Cluster, a: int, b: int) -> bool:
    left, right = cluster.places[a], cluster.places[b]
    same = (
        _speed(left) == _speed(right)
        and (left.backend, left.cap_bytes) == (right.backend, right.cap_bytes)
        and (left.free_bytes == right.free_bytes or left.cap_bytes <= min(left.free_bytes, right.free_bytes))
        and _company(cluster.places, a, b)
    )
    if not same or _figures(cluster.ways[a][b]) != _figures(cluster.ways[b][a]):
        return False
    return all(
        _figures(cluster.ways[a][other]) == _figures(cluster.ways[b][other])
        and _figures(cluster.ways[other][a]) == _figures(cluster.ways[other][b])
        for other in range(len(cluster.places))
        if other not in (a, b)
    )


def _speed(place: Place) -> tuple[object, ...]:
    """All that says how fast it is."""
    return place.bytes_per_s, place.flop_per_s, place.step_s, place.batches, place.cores


def _company(places: Sequence[Place], a: int, b: int) -> bool:
    """Whether they share a machine with the same others."""
    if places[a].host == places[b].host:
        return True
    hosts = [place.host for place in places]
    return hosts.count(places[a].host) == hosts.count(places[b].host) == 1


def _figures(way: Way) -> tuple[float, float]:
    return way.latency_s, way.bytes_per_s
