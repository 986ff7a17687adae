"""A node: identity, control server, voice and survey, started and stopped together.

`serve-shard` and `discover --announce` are both one of these. Knows nothing of signals, terminals
or models.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from exo_cli.cluster import facts, ports
from exo_cli.cluster.beacon import PORT, Role
from exo_cli.cluster.describe import Self
from exo_cli.cluster.identity import Identity, claim
from exo_cli.cluster.interfaces import EVERY_INTERFACE, Choice, list_interfaces
from exo_cli.cluster.measure import Turnstile
from exo_cli.cluster.membership import Change
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
        requests_run: Callable[[], bool] = lambda: False,
    ) -> None:
        self._options = options
        self._source = source
        self._on_change = on_change
        self._requests_run = requests_run
        self._survey: Survey | None = None
        self.identity: Identity
        self.port = 0
        self.hosts: list[str] = []

    @property
    def survey(self) -> Survey:
        assert self._survey is not None
        return self._survey

    @property
    def endpoint(self) -> str:
        """Where it listens, for people: the wildcard is said as such."""
        host = self.hosts[0]
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    async def start(self) -> None:
        """Claim the identity, listen, and announce; what was started is undone on failure."""
        options = self._options
        self.hosts, wanted_port, fixed = listen_on(options.listen, self._source, options.choice)
        self.port = ports.choose(self.hosts, wanted_port, fixed=fixed)
        self._port_is_fixed = fixed
        self.identity = claim(options.nodes_dir, options.name)
        try:
            await self._start()
        except BaseException:
            self.identity.release()
            raise

    async def _start(self) -> None:
        options = self._options
        accelerator = await asyncio.to_thread(facts.probe_accelerator)
        self._bind()
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
        )
        self.me = Self(
            identity=self.identity,
            machine=await asyncio.to_thread(facts.machine, accelerator),
            role=options.role,
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
        self._server.add(NodeService(self.me, self._source, Turnstile(self._requests_run)))
        await self._server.start()
        await self.station.start()
        self.identity.publish(port=self.port, voice_port=self.station.radio.own_port)
        await self._survey.start()

    def _bind(self) -> None:
        """Listen; where another node took the port since it was chosen, on the next free one."""
        while True:
            self._server = ControlServer(self._source)
            try:
                self.port = self._server.bind(self.hosts, self.port)
            except SystemFailure:
                if self._port_is_fixed or self.port == 0:
                    raise
                self.port = ports.choose(self.hosts, self.port + 1, fixed=False)
            else:
                return

    async def drain(self) -> None:
        """Tell everybody that no new work is taken."""
        self.me.draining = self.station.draining = True
        await self._server.set_serving(False)

    async def stop(self, grace_s: float = 1.0) -> None:
        """Say goodbye, finish what runs, leave the topology."""
        await self.station.stop()
        self.survey.forget_self(self.identity.node_id)
        await self.survey.stop()
        await self._server.stop(grace_s)
        self.identity.release()


def is_loopback(host: str) -> bool:
    return host == "localhost" or host == "::1" or host.startswith("127.")


def listen_on(listen: str | None, source: KeyringSource, choice: Choice) -> tuple[list[str], int, bool]:
    """Hosts, port and whether the port was asked for: loopback unless there is a key."""
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
