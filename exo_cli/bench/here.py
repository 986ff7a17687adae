"""This machine as an end of links, while it runs no node: it answers measurements and nothing else.

It announces itself to nobody, leaves no state, and is gone with the block. Knows nothing of who asks.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

from exo_cli.cluster import facts
from exo_cli.cluster.describe import Self
from exo_cli.cluster.facts import Accelerator
from exo_cli.cluster.identity import claim
from exo_cli.cluster.interfaces import EVERY_INTERFACE, Choice, list_interfaces
from exo_cli.cluster.measure import Turnstile
from exo_cli.cluster.node import listen_on, local_host
from exo_cli.cluster.service import ControlServer, NodeService
from exo_cli.schemas.topology import Node
from exo_cli.trust.keyring import KeyringSource


@asynccontextmanager
async def this_machine(source: KeyringSource, choice: Choice = EVERY_INTERFACE) -> AsyncIterator[Node]:
    """Its record, with the port where it answers; where it listens is as for any node with that key."""
    hosts, _, _ = listen_on(None, source, choice)
    with tempfile.TemporaryDirectory(prefix="exo-bench-") as directory:
        identity = claim(Path(directory), None)
        server = ControlServer(source)
        numbers = count(1)
        try:
            me = Self(
                identity=identity,
                machine=await asyncio.to_thread(facts.machine, Accelerator(backend="none")),
                role="announce",
                host=local_host(hosts[0]),
                port=server.bind(hosts, 0),
                interfaces=lambda: list_interfaces(choice),
                next_seq=lambda: next(numbers),
            )
            server.add(NodeService(me, source, Turnstile()))
            await server.start()
            yield me.record()
        finally:
            await server.stop(0)
            identity.release()
