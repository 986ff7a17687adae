"""The ways between the nodes, measured now, several times each, through the transport that tokens take.

Every node measures its own ways, as for `discover`; this machine is one of them, with or without a node.
The topology file is read, never written. Knows nothing of terminals.
"""

import asyncio
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

from exo_cli import __version__
from exo_cli.bench.confidence import interval
from exo_cli.bench.here import this_machine
from exo_cli.cluster import asked
from exo_cli.cluster.facts import host_id
from exo_cli.cluster.lookout import Lookout, LookoutOptions
from exo_cli.cluster.pairs import Pair, wanted
from exo_cli.cluster.survey import Unreached
from exo_cli.cluster.turns import in_turns
from exo_cli.errors import Unavailable
from exo_cli.schemas.bench import LinkFigure, Links
from exo_cli.schemas.topology import Link, Node, Topology
from exo_cli.trust.keyring import KeyringSource

LISTEN_S: Final = 3.0
FAILURES: Final = 2
"""In a row; then a pair is not tried again."""


@dataclass(frozen=True, slots=True)
class Found:
    """Who answers, and who was heard and does not."""

    nodes: tuple[Node, ...]
    unreached: tuple[Unreached, ...]


@dataclass(slots=True)
class _Rounds:
    """What one pair gave."""

    good: list[Link] = field(default_factory=list)
    failed: int = 0
    in_a_row: int = 0
    error: str | None = None

    def take(self, link: Link) -> None:
        if link.error is None:
            self.good.append(link)
            self.in_a_row = 0
        else:
            self.failed += 1
            self.in_a_row += 1
            self.error = link.error


@asynccontextmanager
async def found(
    options: LookoutOptions, source: KeyringSource, *, listen_s: float = LISTEN_S
) -> AsyncIterator[Found]:
    """The nodes that answer, and this machine while the block runs."""
    with tempfile.TemporaryDirectory(prefix="exo-bench-") as directory:
        known = Path(directory) / "topology.json"
        if options.topology.exists():
            known.write_bytes(options.topology.read_bytes())
        lookout = Lookout(replace(options, topology=known), source)
        async with lookout.running():
            await lookout.look(listen_s)
        survey = lookout.survey
        nodes = tuple(node for node in survey.described.values() if node.state in ("ready", "draining"))
        unreached = tuple(survey.unreached.values())
    if any(node.host == host_id() for node in nodes) or not nodes:
        yield Found(nodes, unreached)
        return
    async with this_machine(source, options.choice) as here:
        yield Found((*nodes, here), unreached)


async def measure_links(
    nodes: Sequence[Node],
    source: KeyringSource,
    *,
    rounds: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Links:
    """Every ordered pair, once in each round."""
    ordered = tuple(sorted(nodes, key=lambda node: (node.name, node.id)))
    pairs = wanted(Topology(nodes=ordered), 0, fresh=True)
    if not pairs:
        many = "one node has no link" if nodes else "no node answers"
        raise Unavailable(many, hint="Start nodes with exo serve-shard; exo discover shows who is there.")
    took = {(pair.source.id, pair.target.id): _Rounds() for pair in pairs}
    done, total = 0, len(pairs) * rounds
    for _ in range(rounds):
        left = [pair for pair in pairs if _of(took, pair).in_a_row < FAILURES]
        done += len(pairs) - len(left)
        on_progress(done, total)
        async with aclosing(in_turns(left, partial(asked.link, source=source, fresh=True))) as measured:
            async for pair, link in measured:
                _of(took, pair).take(link)
                done += 1
                on_progress(done, total)
    figures = tuple(_figure(pair, _of(took, pair)) for pair in pairs)
    return Links(version=__version__, unix_ms=time.time_ns() // 1_000_000, links=figures)


def run(
    options: LookoutOptions,
    source: KeyringSource,
    *,
    rounds: int,
    on_found: Callable[[Found], None] = lambda found: None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Links:
    """Look who is there, measure, and give the whole result."""

    async def main() -> Links:
        async with found(options, source) as who:
            on_found(who)
            return await measure_links(who.nodes, source, rounds=rounds, on_progress=on_progress)

    return asyncio.run(main())


def _of(took: dict[tuple[str, str], _Rounds], pair: Pair) -> _Rounds:
    return took[pair.source.id, pair.target.id]


def _figure(pair: Pair, took: _Rounds) -> LinkFigure:
    good = took.good
    rtt, rtt_low, rtt_high = _known([each.rtt_us_p50 for each in good if each.rtt_us_p50 is not None], 1)
    rate, rate_low, rate_high = _known([each.bytes_per_s for each in good if each.bytes_per_s is not None], 0)
    p99 = [each.rtt_us_p99 for each in good if each.rtt_us_p99 is not None]
    # A way may change between rounds: the one most of them took.
    ways = Counter((each.interface, each.kind, each.address) for each in good).most_common(1)
    interface, kind, address = ways[0][0] if ways else (None, None, None)
    return LinkFigure(
        from_node=pair.source.name,
        to_node=pair.target.name,
        from_id=pair.source.id,
        to_id=pair.target.id,
        interface=interface,
        kind=kind,
        address=address,
        rounds=len(good),
        failed=took.failed,
        rtt_us_p50=rtt,
        rtt_us_low=rtt_low,
        rtt_us_high=rtt_high,
        rtt_us_p99=round(statistics.median(p99), 1) if p99 else None,
        bytes_per_s=rate,
        bytes_per_s_low=rate_low,
        bytes_per_s_high=rate_high,
        error=took.error,
    )


def _known(values: Sequence[float], digits: int) -> tuple[float | None, float | None, float | None]:
    """The median, and where another run should find it; one value says nothing of its noise."""
    if not values:
        return None, None, None
    middle = round(statistics.median(values), digits)
    around = interval(values)
    if around is None:
        return middle, None, None
    # The interval is the mean's: a stray round may pull it past the median.
    return middle, min(round(around.low, digits), middle), max(round(around.high, digits), middle)
