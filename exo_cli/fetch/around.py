"""What neighbours hold of a model, by their own word now.

One that does not answer soon, or has nothing of it, is none to fetch from. Knows nothing of the hub, nor of
how a machine came by its neighbours.
"""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final

from exo_cli.errors import ExoError
from exo_cli.fetch import pieces
from exo_cli.fetch.names import is_digest, is_weights
from exo_cli.fetch.pieces import PIECE_BYTES, Span
from exo_cli.fetch.seek import Sought, is_commit
from exo_cli.fetch.source import Source
from exo_cli.fetch.swarm import DIAL_S, Peer, spans_held
from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.channels import dial
from exo_cli.wire.hello import hello

LOOK_AROUND_S: Final = 3.0

Holders = Mapping[str, Sequence[Span]]
"""What each one has, by its name."""


async def held_by(
    peers: Sequence[Peer], model: pb.ModelRef, keyring: KeyringSource, sums: Mapping[str, str]
) -> dict[Peer, list[Span]]:
    """The weights' bytes that each of the peers has; a file that the hub calls otherwise is another one."""
    asked = await asyncio.gather(*(_held(peer, model, keyring) for peer in peers))
    found = {}
    for peer, models in zip(peers, asked, strict=True):
        spans = [
            span
            for held in models
            for file in held.files
            if is_weights(file.path) and _may_be(file.sha256, sums.get(file.path, ""))
            for span in spans_held(file)
        ]
        if spans:
            found[peer] = spans
    return found


async def find(sought: Sought, peers: Sequence[Peer], keyring: KeyringSource) -> pb.ModelRef | None:
    """The model that the peers know under this name; of several, the one of which they hold most."""
    asked = await asyncio.gather(*(_held(peer, pb.ModelRef(), keyring) for peer in peers))
    held_bytes: dict[tuple[str, str], int] = defaultdict(int)
    for model in (each for models in asked for each in models):
        ref = model.model
        right = not is_commit(sought.revision) or ref.revision == sought.revision
        if sought.repository and ref.name == sought.repository and right and is_digest(ref.digest):
            spans = [span for file in model.files for span in spans_held(file)]
            held_bytes[ref.digest, ref.revision] += sum(span.size for span in spans)
    if not held_bytes:
        return None
    digest, revision = max(held_bytes, key=lambda each: (held_bytes[each], each))
    return pb.ModelRef(name=sought.repository, revision=revision, digest=digest)


def shared_out(gaps: Sequence[Span], holders: Holders) -> tuple[dict[str, int], int]:
    """How many bytes would come from each of them, as evenly as can be; and how many nobody has."""
    edges: dict[str, set[int]] = defaultdict(set)
    ranges: dict[str, dict[str, list[pieces.Range]]] = {name: defaultdict(list) for name in holders}
    for name, spans in holders.items():
        for span in pieces.merged(spans):
            edges[span.path] |= {span.start, span.end}
            ranges[name][span.path].append((span.start, span.end))
    from_each = dict.fromkeys(holders, 0)
    nobodys = 0
    for gap in gaps:
        cuts = sorted({gap.start, gap.end, *(at for at in edges[gap.path] if gap.start < at < gap.end)})
        for low, high in pairwise(cuts):
            for start, end in pieces.cut(low, high, PIECE_BYTES):
                having = [name for name in holders if pieces.covers(ranges[name][gap.path], start, end)]
                if having:
                    from_each[min(having, key=lambda name: (from_each[name], name))] += end - start
                else:
                    nobodys += end - start
    return {name: size for name, size in from_each.items() if size}, nobodys


async def _held(peer: Peer, model: pb.ModelRef, keyring: KeyringSource) -> list[pb.HeldModel]:
    """Of one model, or of all that it has without a digest."""
    try:
        async with asyncio.timeout(LOOK_AROUND_S):
            channel = await dial(peer.host, peer.port, keyring.current(), timeout_s=DIAL_S)
            async with channel:
                source = Source(channel, model, peer.name, hello(), LOOK_AROUND_S)
                return [await source.held()] if model.digest else await source.everything()
    except (ExoError, TimeoutError):
        return []


def _may_be(said: str, ours: str) -> bool:
    return not (is_digest(said) and is_digest(ours)) or said == ours
