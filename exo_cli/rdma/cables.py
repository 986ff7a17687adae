"""Which cable joins which Macs, from the domain UUIDs at both ends; whether they make a mesh or a ring.

Each port has a domain UUID, and what is on it names the UUID of the port at the other end: that is the
join. Pure. Knows nothing of findings.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Final

from exo_cli.rdma.mac import Mac
from exo_cli.rdma.thunderbolt import Port
from exo_cli.schemas.doctor import Cable

Pair = tuple[str, str]

MOST_EXACT: Final = 8
"""Up to so many Macs every ring is tried; MLX's mesh takes as many at most."""


@dataclass(frozen=True, slots=True)
class Wiring:
    """The cables between the Macs that could be read."""

    nodes: tuple[str, ...]
    cables: tuple[Cable, ...]
    missing: tuple[Pair, ...]
    ring: tuple[str, ...] | None
    """An order in which each Mac is cabled to the next, and the last to the first."""
    for_a_ring: tuple[Pair, ...]
    """The fewest cables that would make a ring, where there is none."""

    @property
    def mesh(self) -> bool | None:
        return None if len(self.nodes) < 2 else not self.missing and not self._through_hubs

    @property
    def has_ring(self) -> bool | None:
        return None if len(self.nodes) < 2 else self.ring is not None and not self._through_hubs

    @property
    def _through_hubs(self) -> bool:
        return any(cable.hub for cable in self.cables)

    def doubled(self) -> tuple[Pair, ...]:
        """Pairs with more than one cable."""
        times = Counter(pair(cable.a, cable.b) for cable in self.cables)
        return tuple(sorted(two for two, n in times.items() if n > 1))


def pair(a: str, b: str) -> Pair:
    return (a, b) if a <= b else (b, a)


def join(macs: Sequence[Mac]) -> Wiring:
    """Macs whose Thunderbolt report could not be read are left out."""
    known = [mac for mac in macs if mac.ports is not None]
    nodes = tuple(sorted(mac.name for mac in known))
    owners = {port.domain: (mac, port) for mac in known for port in mac.ports or ()}
    hubs: dict[frozenset[str], bool] = {}
    for mac in known:
        for port in mac.ports or ():
            for peer in port.peers:
                other = owners.get(peer.domain)
                if other is not None and other[0] is not mac:
                    ends = frozenset((port.domain, peer.domain))
                    hubs[ends] = hubs.get(ends, False) or peer.behind is not None
    cables = sorted(
        (_cable(*(owners[end] for end in ends), hub=hub) for ends, hub in hubs.items()),
        key=lambda cable: (cable.a, cable.a_interface, cable.b, cable.b_interface),
    )
    joined = {pair(cable.a, cable.b) for cable in cables}
    missing = tuple(two for two in combinations(nodes, 2) if two not in joined)
    ring, lacking = _ring(nodes, joined)
    return Wiring(nodes, tuple(cables), missing, ring, lacking)


def _cable(one: tuple[Mac, Port], two: tuple[Mac, Port], *, hub: bool) -> Cable:
    (a, a_port), (b, b_port) = sorted((one, two), key=lambda end: (end[0].name, end[1].receptacle))
    states = [mac.verbs_port(mac.interface(port)) for mac, port in ((a, a_port), (b, b_port))]
    active: bool | None = None
    if any(state is not None and not state.is_active for state in states):
        active = False
    elif None not in states:
        active = True
    return Cable(
        a=a.name,
        a_interface=a.shown_interface(a_port),
        b=b.name,
        b_interface=b.shown_interface(b_port),
        hub=hub,
        active=active,
    )


def _ring(nodes: tuple[str, ...], joined: set[Pair]) -> tuple[tuple[str, ...] | None, tuple[Pair, ...]]:
    """A ring over all nodes, or the fewest pairs to join for one."""
    if len(nodes) < 2:
        return None, ()
    if len(nodes) > MOST_EXACT:
        return None, tuple(two for two in combinations(nodes, 2) if two not in joined)
    best: tuple[tuple[str, ...], tuple[Pair, ...]] | None = None
    first, *others = nodes
    for order in permutations(others):
        circle = (first, *order)
        lacking = tuple(two for two in _around(circle) if two not in joined)
        if best is None or len(lacking) < len(best[1]):
            best = circle, lacking
            if not lacking:
                return circle, ()
    assert best is not None
    return None, best[1]


def _around(circle: Sequence[str]) -> Iterable[Pair]:
    """The pairs of neighbours; two nodes are one pair."""
    pairs = [pair(a, b) for a, b in zip(circle, [*circle[1:], circle[0]], strict=True)]
    return dict.fromkeys(pairs)
