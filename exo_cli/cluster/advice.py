"""What is slow in a cluster, why, and what would help: from a topology to a few lines, worst first.

Pure: the same topology gives the same lines. A gain is a typical figure with its source, never a
promise. Nothing here is ever run, and a port that carries no address is not known to exist. Knows
nothing of how figures were measured or how lines are shown.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from exo_cli.schemas.topology import Link, Node, Topology

MOST_LINES = 6
GIB = 2**30
MIB = 2**20

# One direction is "much slower" from this ratio on; below it, shared cables and timing explain it.
_LOPSIDED = 3.0
_JITTER_RATIO = 5.0
_JITTER_US = 5_000.0
# What a TCP stream gets of an Ethernet line: at most 0.95 of it after headers.
_LINE_RATES = ((12.5e6, "100 Mbit/s"), (125e6, "1 Gbit/s"))
_LINE_SHARE = (0.75, 1.05)

_THUNDERBOLT_GAIN = "typically 1 to 2 GB/s and 0.4 to 0.9 ms (field reports of TCP over Thunderbolt)"
_GIGABIT_GAIN = "typically 0.11 GB/s and under 1 ms (line rate of 1 Gbit/s)"
_FASTER_LINE_GAIN = "2.5 Gbit/s gives about 0.29 GB/s, 10 Gbit/s about 1.17 GB/s (line rates)"


@dataclass(frozen=True, slots=True)
class Advice:
    """One thing that is slow or wrong: what it is about, what was seen, what to do."""

    about: str
    seen: str
    do: str


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two nodes on two machines, and the ways between them that are a cable's business."""

    a: Node
    b: Node
    there: Link | None
    back: Link | None

    @property
    def nodes(self) -> tuple[Node, Node]:
        return self.a, self.b

    @property
    def links(self) -> tuple[Link, ...]:
        """The measured directions which the transport does not limit."""
        both = (self.there, self.back)
        return tuple(link for link in both if link and _measured(link) and link.limited_by != "transport")

    @property
    def slowest_bytes_per_s(self) -> float:
        return min((link.bytes_per_s or 0.0 for link in self.links), default=float("inf"))

    @property
    def slowest_us(self) -> float:
        return max((link.rtt_us_p99 or link.rtt_us_p50 or 0.0 for link in self.links), default=0.0)


def names(topology: Topology) -> dict[str, str]:
    """What to call each node: its name, with the start of its id where two share a name."""
    named = {node.id: node.name or node.id[:8] for node in topology.nodes}
    times = Counter(named.values())
    return {id_: name if times[name] == 1 else f"{name} ({id_[:8]})" for id_, name in named.items()}


def advise(topology: Topology) -> tuple[Advice, ...]:
    """At most six lines, worst first: ways that are closed, slow links, unsteady links, memory."""
    called = names(topology)
    memory = list(_memory(topology, called))
    links = list(_links(list(_pairs(topology)), called))
    room = MOST_LINES - min(len(memory), 2)
    return tuple([*links[:room], *memory][:MOST_LINES])


def _pairs(topology: Topology) -> Iterator[_Pair]:
    links = {(link.from_, link.to): link for link in topology.links}
    # Who is silent has another trouble than a cable.
    alive = {node.id: node for node in topology.nodes if node.state in ("ready", "draining")}
    for a, b in combinations(sorted(alive.values(), key=lambda node: (node.name, node.id)), 2):
        if not a.host or a.host != b.host:
            yield _Pair(a, b, links.get((a.id, b.id)), links.get((b.id, a.id)))


def _measured(link: Link) -> bool:
    return link.error is None and link.bytes_per_s is not None and link.bytes_per_s > 0


# -- links -----------------------------------------------------------------------------------------


def _links(pairs: Sequence[_Pair], called: dict[str, str]) -> Iterator[Advice]:
    """Each pair is named once, by the first reason that holds."""
    left = list(pairs)
    for reason in (_closed, _one_way, _wifi, _lopsided, _line_rate, _unsteady):
        told: set[int] = set()
        for advice, of in reason(left, called):
            told.update(map(id, of))
            yield advice
        left = [pair for pair in left if id(pair) not in told]


def _closed(pairs: Sequence[_Pair], called: dict[str, str]) -> Iterator[tuple[Advice, Sequence[_Pair]]]:
    closed = [pair for pair in pairs if pair.there and pair.back and pair.there.error and pair.back.error]
    for subject, group in _by_node(closed, called):
        about, to = _subject(subject, group, called)
        error = group[0].there.error if group[0].there else None
        seen = f"no way in either direction{to}: {error}"
        yield Advice(about, seen, f"`exo discover --explain` on {called[subject]} says more."), group


def _one_way(pairs: Sequence[_Pair], called: dict[str, str]) -> Iterator[tuple[Advice, Sequence[_Pair]]]:
    """One line for each end that many cannot reach, or from which many cannot be reached."""
    left = [
        (closed, other, pair)
        for pair in pairs
        for closed, other in ((pair.there, pair.back), (pair.back, pair.there))
        if closed and closed.error and other and _measured(other)
    ]
    while left:
        ends = Counter(closed.to for closed, _, _ in left)
        starts = Counter(closed.from_ for closed, _, _ in left)
        end = min(ends, key=lambda id_: (-ends[id_], called[id_], id_))
        start = min(starts, key=lambda id_: (-starts[id_], called[id_], id_))
        into = ends[end] >= starts[start]
        ours = [entry[0].to == end if into else entry[0].from_ == start for entry in left]
        group = [entry for entry, our in zip(left, ours, strict=True) if our]
        left = [entry for entry, our in zip(left, ours, strict=True) if not our]
        closed, other, pair = group[0]
        a, b = _list(dict.fromkeys(called[entry[0].from_] for entry in group)), called[closed.to]
        if not into:
            a, b = called[start], _list(dict.fromkeys(called[entry[0].to] for entry in group))
        works = f"works at {_rate(other)}" if len(group) == 1 else "works"
        seen = f"this direction is missing ({closed.error}); {b} -> {a} {works}"
        if into:
            where = next(node.endpoint for node in pair.nodes if node.id == end)
            do = f"Let {b} be reached at {where}: a firewall there, or an address without a route."
        else:
            do = f"Let {a} reach {b}: a firewall on the way out, or addresses {a} has no route to."
        yield Advice(f"{a} -> {b}", seen, do), [entry[2] for entry in group]


def _wifi(pairs: Sequence[_Pair], called: dict[str, str]) -> Iterator[tuple[Advice, Sequence[_Pair]]]:
    """One line for a node whose links all go over Wi-Fi, rather than one a link."""
    radio = [pair for pair in pairs if any(link.kind == "wifi" for link in pair.links)]
    groups = _by_node(radio, called)
    for subject, group in sorted(
        groups, key=lambda entry: min(pair.slowest_bytes_per_s for pair in entry[1])
    ):
        about, to = _subject(subject, group, called)
        best = max(group, key=lambda pair: (_best_gain(pair), -pair.slowest_bytes_per_s))
        worst_us = max(pair.slowest_us for pair in group)
        jumps = f", round trips up to {_ms(worst_us)}" if worst_us >= _JITTER_US else ""
        yield Advice(about, f"Wi-Fi{to} at {_span(group)}{jumps}", _cable(best, called)), group


def _lopsided(pairs: Sequence[_Pair], called: dict[str, str]) -> Iterator[tuple[Advice, Sequence[_Pair]]]:
    found = []
    for pair in pairs:
        if not (pair.there and pair.back and _measured(pair.there) and _measured(pair.back)):
            continue
        slow, fast = sorted((pair.there, pair.back), key=lambda link: link.bytes_per_s or 0.0)
        if slow.limited_by == "transport" or (fast.bytes_per_s or 0.0) < _LOPSIDED * (
            slow.bytes_per_s or 0.0
        ):
            continue
        a, b = called[slow.from_], called[slow.to]
        seen = f"{_rate(slow)}, but {_rate(fast)} in the other direction"
        do = (
            f"Look for other traffic out of {a}, then try another cable or port at either end; "
            "`exo discover` measures again."
        )
        found.append((slow.bytes_per_s or 0.0, Advice(f"{a} -> {b}", seen, do), [pair]))
    yield from ((advice, of) for _, advice, of in sorted(found, key=lambda entry: (entry[0], entry[1].about)))


def _line_rate(pairs: Sequence[_Pair], called: dict[str, str]) -> Iterator[tuple[Advice, Sequence[_Pair]]]:
    """All pairs on Ethernet of one speed in one line: they mostly share a switch."""
    for line_bytes_per_s, line in _LINE_RATES:
        low, high = (share * line_bytes_per_s for share in _LINE_SHARE)
        group = [
            pair
            for pair in pairs
            if any(link.kind == "ethernet" for link in pair.links) and low <= pair.slowest_bytes_per_s <= high
        ]
        if not group:
            continue
        subject, common = _by_node(group, called)[0]
        about, to = _subject(subject, common, called)
        if len(common) < len(group):
            about = _list(dict.fromkeys(called[node.id] for pair in group for node in pair.nodes))
            to = f" between {len(group)} pairs of them"
        seen = f"Ethernet{to} at {_span(group)}: a {line} line"
        if line_bytes_per_s < 100e6:
            do = f"A damaged cable or an old port: with a good one, {_GIGABIT_GAIN}."
        else:
            direct = next((pair for pair in group if _both(pair, "thunderbolt")), None)
            faster = f"Faster ports, cable and switch: {_FASTER_LINE_GAIN}."
            do = _cable(direct, called) if direct else faster
        yield Advice(about, seen, do), group


def _unsteady(pairs: Sequence[_Pair], called: dict[str, str]) -> Iterator[tuple[Advice, Sequence[_Pair]]]:
    found = []
    for pair in pairs:
        jumping = [link for link in pair.links if _jumps(link)]
        if jumping:
            worst = max(jumping, key=lambda link: link.rtt_us_p99 or 0.0)
            a, b = called[worst.from_], called[worst.to]
            seen = f"round trips of {_ms(worst.rtt_us_p50)} jump to {_ms(worst.rtt_us_p99)}"
            do = f"Wi-Fi power saving or a busy network: a cable between {a} and {b} ends both."
            found.append((-(worst.rtt_us_p99 or 0.0), Advice(f"{a} -> {b}", seen, do), [pair]))
    yield from ((advice, of) for _, advice, of in sorted(found, key=lambda entry: (entry[0], entry[1].about)))


def _jumps(link: Link) -> bool:
    p50, p99 = link.rtt_us_p50, link.rtt_us_p99
    return p50 is not None and p99 is not None and p99 >= _JITTER_US and p99 >= _JITTER_RATIO * p50


def _by_node(pairs: Sequence[_Pair], called: dict[str, str]) -> list[tuple[str, list[_Pair]]]:
    """Pairs grouped around as few nodes as a greedy choice finds, with the id of each."""
    left, groups = list(pairs), []
    while left:
        times = Counter(node.id for pair in left for node in pair.nodes)
        # Of two in equally many pairs, the one whose own interface is the radio.
        radio = Counter(link.from_ for pair in left for link in pair.links if link.kind == "wifi")
        subject = min(times, key=lambda id_: (-times[id_], -radio[id_], called[id_], id_))
        group = [pair for pair in left if subject in (pair.a.id, pair.b.id)]
        left = [pair for pair in left if subject not in (pair.a.id, pair.b.id)]
        groups.append((subject, group))
    return groups


def _subject(subject: str, group: Sequence[_Pair], called: dict[str, str]) -> tuple[str, str]:
    """What a group is about, and ` to 3 nodes` where it is more than one pair."""
    if len(group) == 1:
        return " <-> ".join(called[node.id] for node in group[0].nodes), ""
    return called[subject], f" to {len(group)} nodes"


# -- cables ----------------------------------------------------------------------------------------


def _ports(node: Node) -> set[str]:
    return {address.kind for address in node.addresses if address.kind in ("ethernet", "thunderbolt")}


def _both(pair: _Pair, kind: str) -> bool:
    return kind in _ports(pair.a) and kind in _ports(pair.b)


def _best_gain(pair: _Pair) -> int:
    """Which cable is possible between two nodes: 3 Thunderbolt, 2 Ethernet, 1 with an adapter, 0 none."""
    if _both(pair, "thunderbolt"):
        return 3
    if _both(pair, "ethernet"):
        return 2
    return 1 if _ports(pair.a) and _ports(pair.b) else 0


def _cable(pair: _Pair, called: dict[str, str]) -> str:
    a, b = (called[node.id] for node in pair.nodes)
    gain = _best_gain(pair)
    if gain == 3:
        return f"A Thunderbolt cable between {a} and {b}: {_THUNDERBOLT_GAIN}."
    if gain == 2:
        return f"An Ethernet cable between {a} and {b}, or both on one switch: {_GIGABIT_GAIN}."
    lacking = [called[node.id] for node in pair.nodes if "ethernet" not in _ports(node)]
    adapter = f"an adapter on {_list(lacking)} if no port is free"
    return f"An Ethernet cable between {a} and {b} ({adapter}): {_GIGABIT_GAIN}."


# -- memory ----------------------------------------------------------------------------------------


def _memory(topology: Topology, called: dict[str, str]) -> Iterator[Advice]:
    """Macs whose accelerator may use clearly less than what is there; equal machines in one line."""
    groups: dict[tuple[int, int], list[Node]] = {}
    for node in topology.nodes:
        memory = node.memory
        reserve_bytes = max(8 * GIB, memory.ram_bytes // 10)
        raised_bytes = (memory.ram_bytes - reserve_bytes) // MIB * MIB
        gain_bytes = min(memory.free_bytes, raised_bytes) - memory.limit_bytes
        worth_it = gain_bytes >= max(GIB, memory.ram_bytes // 20)
        if node.backend == "metal" and node.role == "shard" and node.state != "dead" and worth_it:
            groups.setdefault((raised_bytes, memory.limit_bytes), []).append(node)
    for (raised_bytes, limit_bytes), nodes in sorted(
        groups.items(), key=lambda item: (item[0][1] - item[0][0], item[0])
    ):
        who = _list(sorted(called[node.id] for node in nodes))
        free_bytes = min(node.memory.free_bytes for node in nodes)
        seen = f"models may use {_gib(limit_bytes)} GiB although {_gib(free_bytes)} GiB are free"
        command = f"`sudo sysctl iogpu.wired_limit_mb={raised_bytes // MIB}`"
        do = f"On {who}: {command} raises that to {_gib(raised_bytes)} GiB until the machine restarts."
        yield Advice(who, seen, do)


# -- words -----------------------------------------------------------------------------------------


def _list(items: Iterable[str]) -> str:
    """`a, b and c`; from five on, only the first three and a count."""
    words = list(items)
    if len(words) > 4:
        words = [*words[:3], f"{len(words) - 3} more"]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _span(pairs: Sequence[_Pair]) -> str:
    rates = sorted(pair.slowest_bytes_per_s for pair in pairs)
    low, high = _bytes_per_s(rates[0]), _bytes_per_s(rates[-1])
    return low if low == high else f"{low} to {high}"


def _rate(link: Link) -> str:
    return _bytes_per_s(link.bytes_per_s or 0.0)


def _bytes_per_s(rate: float) -> str:
    return f"{rate / 1e9:.2f} GB/s" if rate >= 99.5e6 else f"{rate / 1e6:.1f} MB/s"


def _ms(us: float | None) -> str:
    ms = (us or 0.0) / 1000
    return f"{ms:.0f} ms" if ms >= 10 else f"{ms:.2f} ms"


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.1f}"
