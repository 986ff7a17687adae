"""Our own model directory, offered to the nodes that may lack it on the addresses by which they reach us.

Knows nothing of what the nodes do with it.
"""

import socket
from collections.abc import Iterable, Iterator
from contextlib import AsyncExitStack

from exo_cli.cluster.pairs import is_unix, join_endpoint, split_endpoint
from exo_cli.cluster.ports import is_free
from exo_cli.errors import SystemFailure
from exo_cli.fetch.serve_weights import Shelf
from exo_cli.fetch.share import LocalShare
from exo_cli.models.directory import ModelDirectory
from exo_cli.schemas.topology import Node
from exo_cli.trust.keyring import KeyringSource


class Shares:
    """One little server for each of our addresses that a node needs; an asynchronous context manager."""

    def __init__(self, source: KeyringSource, what: ModelDirectory | Shelf, ports: tuple[int, int]) -> None:
        self._source = source
        self._what = what
        self._ports = ports
        self._by_host: dict[str, LocalShare] = {}
        self._undo = AsyncExitStack()

    async def __aenter__(self) -> "Shares":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._undo.aclose()

    async def offer(self, nodes: Iterable[Node]) -> None:
        """See to it that these nodes can ask us."""
        for host in sorted({our_address(node) for node in nodes} - {"", *self._by_host}):
            self._by_host[host] = await self._started(host)

    def address(self, node: Node) -> str:
        """Where a node finds our files; empty if it cannot reach us."""
        host = our_address(node)
        share = self._by_host.get(host)
        return "" if share is None else join_endpoint(host, share.port)

    async def _started(self, host: str) -> LocalShare:
        taken: SystemFailure | None = None
        for port in self._candidates(host):
            share = LocalShare(self._source, self._what, hosts=(host,), port=port)
            try:
                return await self._undo.enter_async_context(share)
            except SystemFailure as error:
                taken = error  # somebody was faster
        low, high = self._ports
        raise taken or SystemFailure(
            f"no port between {low} and {high} is free on {host} to share the model",
            hint="Give a wider range: EXO_DATA_PORTS.",
        )

    def _candidates(self, host: str) -> Iterator[int]:
        low, high = self._ports
        if not low:
            yield 0
            return
        yield from (port for port in range(low, high + 1) if is_free(host, port))


def our_address(node: Node) -> str:
    """The address of this machine on the way to a node; nothing is sent."""
    host, port = split_endpoint(node.endpoint)
    if is_unix(host):
        return "127.0.0.1"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, port))
            return str(probe.getsockname()[0])
        except OSError:
            return ""
