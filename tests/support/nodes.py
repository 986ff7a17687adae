"""Nodes inside the test's own process: the real control service on a real TLS port of loopback."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import grpc.aio

from exo_cli.cluster.beacon import Role
from exo_cli.cluster.describe import Self
from exo_cli.cluster.facts import Accelerator, Machine
from exo_cli.cluster.identity import claim
from exo_cli.cluster.measure import Turnstile
from exo_cli.cluster.membership import Peer
from exo_cli.cluster.service import ControlServer, NodeService
from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire.channels import dial
from exo_cli.wire.exo_pb2_grpc import ControlServicer

Maker = Callable[[Self, KeyringSource, Turnstile], ControlServicer]


@dataclass
class Here:
    """One such node."""

    me: Self
    turnstile: Turnstile
    server: ControlServer
    service: ControlServicer

    @property
    def id(self) -> str:
        return self.me.identity.node_id

    @property
    def port(self) -> int:
        return self.me.port

    def peer(self, *ips: str) -> Peer:
        """As membership knows it."""
        peer = Peer(
            node_id=self.id,
            instance=b"i" * 8,
            boot=self.me.identity.boot,
            seq=1,
            name=self.me.identity.name,
            port=self.port,
            role=Role.SHARD,
            fingerprint="",
            draining=False,
            heard_s=0.0,
            proven=True,
        )
        peer.addresses.update(dict.fromkeys(ips or ("127.0.0.1",), 0.0))
        return peer


@asynccontextmanager
async def serving(
    source: KeyringSource,
    name: str,
    *,
    make: Maker = NodeService,
    host: str = "127.0.0.1",
    requests_run: Callable[[], bool] = lambda: False,
) -> AsyncIterator[Here]:
    """A node called `name`; `make` gives another service for it, one that lies for example."""
    server = ControlServer(source)
    identity = claim(Path.home() / "nodes", name)
    numbers = count(1)
    try:
        me = Self(
            identity=identity,
            machine=Machine(
                host="m" * 16, os="Linux", chip="chip", cores=2, accelerator=Accelerator(backend="none")
            ),
            role="shard",
            host=host,
            port=server.bind([host], 0),
            interfaces=list,
            next_seq=lambda: next(numbers),
        )
        turnstile = Turnstile(requests_run)
        service = make(me, source, turnstile)
        server.add(service)
        await server.start()
        yield Here(me, turnstile, server, service)
    finally:
        await server.stop(0)
        identity.release()


async def eventually(
    true: Callable[[], bool], why: Callable[[], str] = lambda: "it did not happen", *, seconds: float = 15
) -> None:
    """Wait for something that another task or process does."""
    for _ in range(int(seconds * 100)):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"after {seconds:g} s: {why()}")


@asynccontextmanager
async def channel(
    source: KeyringSource, port: int, *, host: str = "127.0.0.1"
) -> AsyncIterator[grpc.aio.Channel]:
    made = await dial(host, port, source.current(), timeout_s=5)
    async with made:
        yield made
