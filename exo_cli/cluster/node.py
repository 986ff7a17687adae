"""A node: identity, control server, voice and survey, started and stopped together.

`serve-shard` and `discover --announce` are both one of these. Knows nothing of signals, terminals
or models.
"""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from exo_cli.cluster import facts, ports
from exo_cli.cluster.beacon import PORT, Role
from exo_cli.cluster.describe import Self
from exo_cli.cluster.identity import Identity, claim
from exo_cli.cluster.interfaces import EVERY_INTERFACE, Choice, list_interfaces
from exo_cli.cluster.measure import Turnstile
from exo_cli.cluster.membership import Change
from exo_cli.cluster.pairs import is_unix, join_endpoint
from exo_cli.cluster.service import ControlServer, NodeService
from exo_cli.cluster.station import Station, Voice
from exo_cli.cluster.survey import Survey
from exo_cli.cluster.topology_file import TopologyFile
from exo_cli.errors import NotAuthorised, SystemFailure
from exo_cli.schemas.topology import NodeRole
from exo_cli.trust.keyring import KeyringSource
from exo_cli.trust.private import is_private, refuse_public


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """What a person may say about a node."""

    role: NodeRole
    nodes_dir: Path
    topology: Path
    name: str | None = None
    listen: str | None = None
    choice: Choice = EVERY_INTERFACE
    peers: tuple[tuple[str, int], ...] = ()


class NodeHost:
    """One running node."""

    def __init__(
        self,
        options: NodeOptions,
        source: KeyringSource,
        *,
        on_change: Callable[[Change], None] = lambda change: None,
        make_service: Callable[["NodeHost"], NodeService] | None = None,
    ) -> None:
        self._options = options
        self._source = source
        self._on_change = on_change
        self._make_service = make_service or (lambda host: NodeService(host.me, source, Turnstile()))
        self._survey: Survey | None = None
        self.identity: Identity
        self.port = 0
        self.hosts: list[str] = []
        self._grace_s = 0.0
        self._undo = AsyncExitStack()

    @property
    def survey(self) -> Survey:
        assert self._survey is not None
        return self._survey

    @property
    def endpoint(self) -> str:
        """Where it listens, for people: the wildcard is said as such."""
        return join_endpoint(self.hosts[0], self.port)

    async def start(self) -> None:
        """Claim the identity, listen, and announce; what was started is undone on failure."""
        options = self._options
        self.hosts, wanted, fixed = listen_on(options.listen, self._source, options.choice)
        async with AsyncExitStack() as undo:
            self.identity = claim(options.nodes_dir, options.name)
            undo.callback(self.identity.release)
            # What cannot be read ends us before anybody hears of us.
            await asyncio.to_thread(TopologyFile(options.topology).read)
            self._server = self._bind(wanted, fixed=fixed)
            undo.push_async_callback(self._stop_server)
            await self._start(undo)
            self._undo = undo.pop_all()

    def _bind(self, wanted: int, *, fixed: bool) -> ControlServer:
        """A server on the port, or on the next free one; another node may take one while we look."""
        last = wanted + ports.TRIES - 1
        unix = is_unix(self.hosts[0])
        while True:
            port = wanted if unix else ports.choose(self.hosts, wanted, fixed=fixed)
            server = ControlServer(self._source)
            try:
                self.port = server.bind(self.hosts, port)
            except SystemFailure:
                if fixed or port >= last:
                    raise
                wanted = port + 1
            else:
                return server

    async def _start(self, undo: AsyncExitStack) -> None:
        options = self._options
        accelerator = await asyncio.to_thread(facts.probe_accelerator)
        voice = Voice(
            node_id=bytes.fromhex(self.identity.node_id),
            boot=self.identity.boot,
            name=self.identity.name,
            role=Role.SHARD if options.role == "shard" else Role.ANNOUNCE,
            port=self.port,
        )
        self.station = Station(
            voice,
            self._source,
            nodes_dir=options.nodes_dir,
            choice=options.choice,
            peers=options.peers,
            on_change=lambda change: self.survey.heard(change),
            # Who listens where only its maker looks is announced to nobody, and asks nobody.
            silent=is_unix(self.hosts[0]),
        )
        self.me = Self(
            identity=self.identity,
            machine=await asyncio.to_thread(facts.machine, accelerator),
            role=options.role,
            host=local_host(self.hosts[0]),
            port=self.port,
            interfaces=lambda: self.station.radio.interfaces,
            next_seq=self.station.next_seq,
        )
        self._survey = Survey(
            self.station,
            self._source,
            TopologyFile(options.topology),
            on_change=self._on_change,
            describe_self=self.me.record,
        )
        self._server.add(self._make_service(self))
        await self._server.start()
        await self.station.start()
        undo.push_async_callback(self._leave)
        self.identity.publish(port=self.port, voice_port=self.station.radio.own_port)
        await self._survey.start()

    async def drain(self) -> None:
        """Tell everybody that no new work is taken."""
        self.me.draining = True
        self.station.drain()
        self.survey.touch_self()
        await self._server.set_serving(False)

    async def stop(self, grace_s: float = 1.0) -> None:
        """Say goodbye, leave the topology, finish what runs."""
        self._grace_s = grace_s
        await self._undo.aclose()

    async def _leave(self) -> None:
        await self.station.stop()
        self.survey.forget_self(self.identity.node_id)
        await self.survey.stop()

    async def _stop_server(self) -> None:
        await self._server.stop(self._grace_s)


def local_host(host: str) -> str:
    """Where processes of this machine reach a server that listens on `host`."""
    return "127.0.0.1" if host in ("0.0.0.0", "::", "localhost") else host


def is_loopback(host: str) -> bool:
    return host == "localhost" or host == "::1" or host.startswith("127.")


UNIX_PORT = 1
"""What stands for the port in the name of a node's own socket."""


def listen_on(listen: str | None, source: KeyringSource, choice: Choice) -> tuple[list[str], int, bool]:
    """Hosts, port and whether the port was asked for: loopback unless there is a key.

    `unix:/path` is for a process that starts a node of its own: what stands there is its alone.
    """
    if listen is not None and is_unix(listen):
        return [listen], UNIX_PORT, True
    host, port = ports.parse_listen(listen) if listen is not None else (None, PORT)
    kind = source.current().kind
    if kind == "insecure" and host is not None:
        refuse_public(host)
    if kind == "local" and host is not None and not is_loopback(host):
        raise NotAuthorised(
            "without a cluster key a node listens on this machine only",
            hint="Make a key with exo key new, and give it to the other machines with exo key export.",
        )
    if host is not None:
        return [host], port, True
    fixed = listen is not None
    if kind == "local":
        return ["127.0.0.1"], port, fixed
    if kind == "insecure":
        private = [
            ip for each in list_interfaces(choice) for ip in each.ips if is_private(ip) and "%" not in ip
        ]
        return ["127.0.0.1", *private], port, fixed
    return ["::"] if ports.has_ipv6() else ["0.0.0.0"], port, fixed
