"""One store completed from several sources: neighbours, the hub, or both at once; verified at the end.

What a file whose bytes are not right was made of is thrown away; whoever served a part of it is named,
and it is fetched once more from elsewhere. Knows nothing of who asked for it.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from exo_cli.errors import BadData, Internal
from exo_cli.fetch import pieces
from exo_cli.fetch.aside import in_thread
from exo_cli.fetch.hub_client import Client, Repository
from exo_cli.fetch.limit import Limit
from exo_cli.fetch.meter import HUB, Meter
from exo_cli.fetch.partial_writer import PartialWriter
from exo_cli.fetch.pieces import Span
from exo_cli.fetch.swarm import Peer, Swarm
from exo_cli.fetch.transfer import Pace, Transfer
from exo_cli.fetch.verify import Follower
from exo_cli.models.directory import ModelDirectory
from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire import exo_pb2 as pb

_ROUNDS: Final = 2

PaceOf = Callable[[threading.Event], Pace]


@dataclass(frozen=True, slots=True)
class Sources:
    """Where bytes may come from."""

    peers: Sequence[Peer]
    keyring: KeyringSource
    client: Client | None
    """The hub; None: nobody asks it."""
    pace: PaceOf
    limit: Limit
    """For what comes from neighbours; the pace has it for the hub."""


async def complete(
    writer: PartialWriter,
    model: pb.ModelRef,
    repository: Repository,
    wanted: Sequence[Span],
    sources: Sources,
    meter: Meter,
    *,
    note: Callable[[str], None],
    own: Sequence[Span],
) -> None:
    """Everything wanted; what is in `own` comes from the hub, the rest from neighbours if they have it."""
    loop = asyncio.get_running_loop()
    client = sources.client

    def kept(span: Span) -> None:
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(meter.arrived, span, HUB)

    async def from_hub(spans: Sequence[Span]) -> None:
        assert client is not None
        hub = client
        gaps = await asyncio.to_thread(writer.view.missing, spans)
        await in_thread(lambda stop: Transfer(hub, repository, writer, sources.pace(stop), kept).run(gaps))

    directory = await asyncio.to_thread(ModelDirectory.open, writer.path)
    edges = {(each.file, edge) for each in directory.tensors.values() for edge in (each.start, each.end)}
    peers = list(sources.peers)
    mine = pieces.merged(own)
    for _ in range(_ROUNDS):
        swarm = Swarm(
            writer,
            model,
            sources.keyring,
            told=meter.arrived,
            note=note,
            from_hub=from_hub if client is not None else None,
            tensor_edges=edges,
            limit=sources.limit,
        )
        await swarm.run(writer.view.missing(wanted), peers, mine)
        await asyncio.to_thread(writer.settle)
        if gaps := writer.view.missing(wanted):
            raise Internal(f"{len(gaps)} ranges of {repository.name} were not brought")
        bad = await in_thread(lambda stop: _verified(writer, wanted, stop))
        if not bad:
            return
        suspects = {name for file in bad for name in swarm.served.get(file, ())}
        for file in bad:
            by = ", ".join(sorted(swarm.served.get(file, ()))) or HUB
            note(f"{file} is not what its sha256 says; it came from {by} and is fetched again")
            await asyncio.to_thread(writer.drop, file)
            meter.lost(file)
        peers = [peer for peer in peers if peer.name not in suspects]
        if client is not None:
            mine = pieces.merged(span for span in wanted if span.path in bad)
    raise BadData(
        f"{bad[0]} came again with other bytes than its sha256 says",
        hint="Nothing of it was kept. Is there a proxy on the way, or is this disk failing?",
    )


def _verified(writer: PartialWriter, wanted: Sequence[Span], stopped: threading.Event) -> list[str]:
    follower = Follower(writer, dict.fromkeys(span.path for span in wanted), stopped)
    follower.start()
    return follower.finish()
