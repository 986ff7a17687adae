"""From voices to records: describe every node that is heard, measure the links, write the file.

Runs in `discover` and inside every node. Knows nothing of terminals; whoever wants to show what
happens gives `on_change`.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial

import msgspec

from exo_cli.cluster import asked
from exo_cli.cluster.membership import Change, Peer
from exo_cli.cluster.merge import merge
from exo_cli.cluster.pairs import (
    Pair,
    join_endpoint,
    limited_by_transport,
    split_endpoint,
    wanted,
)
from exo_cli.cluster.station import Station
from exo_cli.cluster.topology_file import TopologyFile
from exo_cli.cluster.turns import in_turns
from exo_cli.errors import BadData, ExoError, Unavailable
from exo_cli.schemas.decode import decode_node
from exo_cli.schemas.topology import Link, Node, NodeState, Topology
from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.channels import dial
from exo_cli.wire.hello import check_hello, hello
from exo_cli.wire.status import translated
from exo_cli.wire.stubs import control

DESCRIBE_TIMEOUT_S = 3.0
BETTER_ADDRESS_S = 0.25
RETRY_S = 2.0
REFRESH_S = 10.0
WRITE_PAUSE_S = 0.1
DESCRIBE_ADDRESSES = 4
LINK_RETRY_S = 30.0


@dataclass(frozen=True, slots=True)
class Unreached:
    """A node that was heard and could not be described, and why."""

    peer: Peer
    failure: ExoError


class Survey:
    """What this process knows of the cluster, kept in step with the topology file."""

    def __init__(
        self,
        station: Station,
        source: KeyringSource,
        file: TopologyFile,
        *,
        on_change: Callable[[Change], None] = lambda change: None,
        on_topology: Callable[[Topology], None] = lambda topology: None,
        describe_self: Callable[[], Node] | None = None,
    ) -> None:
        self.station = station
        self.unreached: dict[str, Unreached] = {}
        self.described: dict[str, Node] = {}
        self.topology = Topology()
        self.problem: ExoError | None = None
        self._source = source
        self._file = file
        self._on_change = on_change
        self._on_topology = on_topology
        self._describe_self = describe_self
        self._gone: set[str] = set()
        self._verdicts: dict[str, NodeState] = {}
        """Nodes that we hold for silent: our observation, not a part of the record's version."""
        self._links: dict[tuple[str, str], Link] = {}
        self._failed_s: dict[tuple[str, int, str, int], float] = {}
        self._touched: set[str] = set()
        self._knocked: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._describing: set[str] = set()
        self._again: set[str] = set()
        self._dirty = asyncio.Event()
        self._writing = asyncio.Lock()
        self._keeper: list[asyncio.Task[None]] = []

    # -- life ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Read the file, and keep it up to date from now on."""
        self.topology = await asyncio.to_thread(self._file.read)
        for node in self.topology.nodes:
            if not _is_endpoint(node.endpoint):
                raise BadData(
                    f"{self._file.path}: the endpoint of {node.name} is no address with a port",
                    hint=f"Remove it (rm {self._file.path}); exo discover writes a new one.",
                )
        self.knock_on_silent()
        self._keeper = [asyncio.create_task(self._write_loop()), asyncio.create_task(self._refresh_loop())]
        if self._describe_self is not None:
            self._touch_self()

    async def stop(self) -> None:
        """Write what is not written yet, and stop."""
        for task in (*self._keeper, *self._tasks):
            task.cancel()
        for task in (*self._keeper, *self._tasks):
            with contextlib.suppress(asyncio.CancelledError):
                await task
        if self._dirty.is_set():
            await self._write()

    def knock_on_silent(self) -> None:
        """Ask the nodes of the file that were not heard, each where it was last."""
        for node in self._silent():
            host, port = _parts(node)
            if not self.station.loopback_only or host == "::1" or host.startswith("127."):
                self._knocked.add(node.id)
                self.station.knock(host, port)

    def _silent(self) -> list[Node]:
        heard = self.station.membership.peers
        return [
            node for node in self.topology.nodes if node.id not in self.described and node.id not in heard
        ]

    def heard(self, change: Change) -> None:
        """The station's news."""
        peer = change.peer
        if change.what == "left":
            self._gone.add(peer.node_id)
            self.described.pop(peer.node_id, None)
            self.unreached.pop(peer.node_id, None)
            self._dirty.set()
        elif change.what in ("suspect", "dead"):
            self._judge(peer.node_id, "suspect" if change.what == "suspect" else "dead")
        if change.what in ("joined", "changed", "refuted"):
            self._gone.discard(peer.node_id)
            self._verdicts.pop(peer.node_id, None)
            if peer.node_id in self._describing:
                self._again.add(peer.node_id)
            else:
                self._spawn(self._describe(peer))
        self._on_change(change)

    def _judge(self, node_id: str, verdict: NodeState) -> None:
        in_file = next((node for node in self.topology.nodes if node.id == node_id), None)
        known = self.described.get(node_id, in_file)
        if known is not None:
            self._verdicts[node_id] = verdict
            self.described[node_id] = msgspec.structs.replace(known, state=verdict)
            self._touch(node_id)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- describing ------------------------------------------------------------------------------

    async def _describe(self, peer: Peer) -> None:
        self._describing.add(peer.node_id)
        try:
            await self._describe_once(peer)
            while peer.node_id in self._again:
                # What was just told may be from before the change.
                self._again.discard(peer.node_id)
                await self._describe_once(peer)
        finally:
            self._describing.discard(peer.node_id)

    async def _describe_once(self, peer: Peer) -> None:
        try:
            if all("%" in ip for ip in peer.ips()):
                # An address of this link only: one that means something elsewhere may be on its way.
                await asyncio.sleep(BETTER_ADDRESS_S)
            node = await describe(peer, self._source)
        except ExoError as failure:
            if peer.node_id not in self._gone:
                self.unreached[peer.node_id] = Unreached(peer, failure)
            return
        self.unreached.pop(peer.node_id, None)
        if peer.node_id not in self._gone:
            self.described[peer.node_id] = _with_status(node, peer)
            self._touch(peer.node_id)

    async def _refresh_loop(self) -> None:
        """Look again at those that could not be reached, and now and then at everybody."""
        refreshed_s = time.monotonic()
        while True:
            await asyncio.sleep(RETRY_S)
            everybody = time.monotonic() - refreshed_s >= REFRESH_S
            if everybody:
                refreshed_s = time.monotonic()
                if self._describe_self is not None:
                    self._touch_self()
            for peer in self.station.membership.alive():
                wanted_now = everybody or peer.node_id in self.unreached
                if peer.status == "alive" and wanted_now and peer.node_id not in self._describing:
                    self._spawn(self._describe(peer))

    def touch_self(self) -> None:
        """Our own record changed."""
        if self._describe_self is not None:
            self._touch_self()

    def _touch_self(self) -> None:
        assert self._describe_self is not None
        record = self._describe_self()
        self.described[record.id] = record
        self._touch(record.id)

    def mark_silent(self) -> None:
        """Nodes of the file that were asked and did not answer in all this time do not live."""
        for node in self._silent():
            if node.id in self._knocked and node.state != "dead":
                self.described[node.id] = msgspec.structs.replace(node, state="dead")
                self._touch(node.id)

    def forget_self(self, node_id: str) -> None:
        """We leave: our record goes with us."""
        self.described.pop(node_id, None)
        self._gone.add(node_id)
        self._dirty.set()

    # -- measuring -------------------------------------------------------------------------------

    async def measure(
        self, *, fresh: bool = False, on_progress: Callable[[int, int], None] = lambda done, total: None
    ) -> None:
        """Measure every ordered pair that has no young figure."""
        await self.settle()
        nodes = [node for node in self.described.values() if node.state in ("ready", "draining")]
        seen = msgspec.structs.replace(self.topology, nodes=tuple(nodes))
        waiting = [pair for pair in wanted(seen, _now_ms(), fresh=fresh) if not self._failed_lately(pair)]
        involved = {node.id for pair in waiting for node in (pair.source, pair.target)}
        for node in nodes:
            if node.id in involved and node.loopback_bytes_per_s is None:
                await self._measure_loopback(node)
        total, done = len(waiting), 0
        on_progress(0, total)
        measured = in_turns(waiting, partial(self._measure_pair, fresh=fresh))
        async with contextlib.aclosing(measured) as links:
            async for pair, link in links:
                self._links[link.from_, link.to] = link
                if link.error is not None:
                    self._failed_s[_ends(pair)] = time.monotonic()
                done += 1
                on_progress(done, total)
                self._dirty.set()
        await self.settle()

    def _failed_lately(self, pair: Pair) -> bool:
        failed_s = self._failed_s.get(_ends(pair))
        return failed_s is not None and time.monotonic() - failed_s < LINK_RETRY_S

    async def _measure_loopback(self, node: Node) -> None:
        rate = await asked.loopback_rate(node, self._source)
        current = self.described.get(node.id)
        if rate is not None and current is not None:
            self.described[node.id] = msgspec.structs.replace(current, loopback_bytes_per_s=rate)
            self._touch(node.id)

    async def _measure_pair(self, pair: Pair, *, fresh: bool) -> Link:
        link = await asked.link(pair, self._source, fresh=fresh)
        if limited_by_transport(link, self.described):
            link = msgspec.structs.replace(link, limited_by="transport")
        return link

    # -- the file --------------------------------------------------------------------------------

    def _touch(self, node_id: str) -> None:
        self._touched.add(node_id)
        self._dirty.set()

    async def settle(self) -> None:
        """Wait until the questions of this moment are answered, and what is known is written."""
        if self._tasks:
            await asyncio.wait(tuple(self._tasks))
        await self._write()

    async def _write_loop(self) -> None:
        while True:
            await self._dirty.wait()
            await asyncio.sleep(WRITE_PAUSE_S)
            await self._write()

    async def _write(self) -> None:
        async with self._writing:
            self._dirty.clear()
            touched, self._touched = self._touched, set()
            nodes = [self.described[node_id] for node_id in touched if node_id in self.described]
            links, gone, verdicts = list(self._links.values()), frozenset(self._gone), dict(self._verdicts)

            def change(old: Topology) -> Topology:
                known = {node.id: node for node in old.nodes}
                news = [_judged(node, known.get(node.id), verdicts.get(node.id)) for node in nodes]
                return merge(old, news, links, gone=gone, now_unix_ms=_now_ms())

            try:
                self.topology = await asyncio.to_thread(self._file.update, change)
                self.problem = None
            except asyncio.CancelledError:
                self._touched |= touched
                self._dirty.set()
                raise
            except ExoError as problem:
                # What is known is shown all the same; whoever runs us says that it could not be kept.
                self.problem = problem
                self._touched |= touched
                self.topology = change(self.topology)
        self._on_topology(self.topology)


async def describe(peer: Peer, source: KeyringSource) -> Node:
    """Ask a node for its record, over mutual TLS, at one address after the other."""
    failures: list[ExoError] = []
    for ip in peer.ips()[:DESCRIBE_ADDRESSES]:
        try:
            node = await describe_at(ip, peer.port, source, fingerprint=peer.fingerprint)
        except ExoError as failure:
            failures.append(failure)
            continue
        if node.id != peer.node_id:
            failures.append(BadData(f"{join_endpoint(ip, peer.port)} is another node than its beacon says"))
            continue
        return node
    raise failures[0] if failures else Unavailable(f"no address of {peer.name} is known")


async def describe_at(host: str, port: int, source: KeyringSource, *, fingerprint: str | None = None) -> Node:
    """The record of the node that listens there; its endpoint is what we dialled."""
    endpoint = join_endpoint(host, port)
    channel = await dial(host, port, source.current(), fingerprint=fingerprint, timeout_s=DESCRIBE_TIMEOUT_S)
    async with channel:
        with translated(endpoint):
            reply: pb.DescribeReply = await control(channel).Describe(
                pb.DescribeRequest(hello=hello()), timeout=DESCRIBE_TIMEOUT_S
            )
    check_hello(reply.hello, endpoint)
    node = decode_node(reply.node, where=f"what {endpoint} says of itself")
    return msgspec.structs.replace(node, endpoint=endpoint, seen_unix_ms=_now_ms())


def _judged(node: Node, in_file: Node | None, verdict: NodeState | None) -> Node:
    """Silence speaks about a node, whichever of its records is the newest one."""
    if verdict is None:
        return node
    newer = in_file is not None and in_file.boot == node.boot and in_file.seq > node.seq
    return msgspec.structs.replace(in_file if in_file is not None and newer else node, state=verdict)


def _with_status(node: Node, peer: Peer) -> Node:
    return node if peer.status == "alive" else msgspec.structs.replace(node, state=peer.status)


def _ends(pair: Pair) -> tuple[str, int, str, int]:
    return pair.source.id, pair.source.boot, pair.target.id, pair.target.boot


def _is_endpoint(text: str) -> bool:
    try:
        host, port = split_endpoint(text)
    except ValueError:
        return False
    return bool(host) and 0 < port < 65536


def _parts(node: Node) -> tuple[str, int]:
    return split_endpoint(node.endpoint)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
