"""A model over several nodes: who needs what, who asks the hub for which piece, and the fetches themselves.

What a node holds already is asked of no hub. Everything else that nodes need is cut at the ends of pieces
and where their needs begin and end; each part is one node's to bring, as evenly as can be, and the others
get it from there. Pure but for what asks nodes; knows nothing of plans or of how it is shown.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from exo_cli.errors import ExoError
from exo_cli.fetch import pieces
from exo_cli.fetch.around import shared_out
from exo_cli.fetch.hub_client import Repository
from exo_cli.fetch.meter import HUB
from exo_cli.fetch.names import is_weights
from exo_cli.fetch.pieces import PIECE_BYTES, Span
from exo_cli.fetch.swarm import spans_held, without
from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.channels import dial
from exo_cli.wire.hello import hello
from exo_cli.wire.status import translated
from exo_cli.wire.stubs import control

DIAL_S: Final = 5.0
ASK_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Target:
    """A node that is to have a part of the model."""

    name: str
    host: str
    port: int
    layers: tuple[int, int] | None
    needs: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Assignment:
    """What one node has, gets from neighbours, and brings from the hub."""

    target: Target
    here_bytes: int
    hub: tuple[Span, ...]
    neighbour_bytes: int

    @property
    def hub_bytes(self) -> int:
        return sum(span.size for span in self.hub)


def assign(
    targets: Sequence[Target], held: Mapping[str, Sequence[Span]], others: Sequence[Span] = ()
) -> list[Assignment]:
    """`held` is what each target has, by name; `others`, what somebody else has that they can reach."""
    needed = {each.name: without(each.needs, held.get(each.name, ())) for each in targets}
    somebody = pieces.merged([*others, *(span for spans in held.values() for span in spans)])
    wanting: dict[Span, list[str]] = defaultdict(list)
    nobodys = {name: without(spans, somebody) for name, spans in needed.items()}
    cuts: dict[str, set[int]] = defaultdict(set)
    for span in (span for spans in nobodys.values() for span in spans):
        cuts[span.path] |= {span.start, span.end}
    for name, spans in nobodys.items():
        for span in spans:
            for unit in _units(span, cuts[span.path]):
                wanting[unit].append(name)
    mine: dict[str, list[Span]] = defaultdict(list)
    load = dict.fromkeys(needed, 0)
    # What one node alone needs comes first: the rest is to make it even.
    for unit, names in sorted(wanting.items(), key=lambda each: (len(each[1]) > 1, each[0])):
        name = min(names, key=lambda each: (load[each], each))
        mine[name].append(unit)
        load[name] += unit.size
    made = []
    for target in targets:
        todo = sum(span.size for span in needed[target.name])
        total = sum(span.size for span in target.needs)
        hub = tuple(pieces.merged(mine[target.name]))
        made.append(Assignment(target, total - todo, hub, todo - load[target.name]))
    return made


def sources_of(
    assignments: Sequence[Assignment],
    held: Mapping[str, Sequence[Span]],
    others: Mapping[str, Sequence[Span]],
    *,
    hub: bool,
) -> dict[str, tuple[dict[str, int], int]]:
    """By target: the bytes from each source by its name, and those that nobody has.

    `others` is what those have that are no targets.
    """
    brings: dict[str, tuple[Span, ...]] = {each.target.name: each.hub if hub else () for each in assignments}
    found = {}
    for each in assignments:
        name = each.target.name
        gaps = without(without(each.target.needs, held.get(name, ())), brings[name])
        holders = {
            other: [*held.get(other, ()), *brings.get(other, ()), *others.get(other, ())]
            for other in sorted({*held, *brings, *others} - {name})
        }
        from_each, nobodys = shared_out(gaps, holders)
        brought = sum(span.size for span in brings[name])
        found[name] = ({HUB: brought, **from_each} if brought else from_each, nobodys)
    return found


def request_of(
    assignment: Assignment,
    repository: Repository,
    digest: str,
    neighbours: Sequence[str],
    *,
    hub: bool,
    limit_bytes_per_s: int | None,
) -> pb.FetchRequest:
    """What the node is asked for."""
    edges: dict[str, list[int]] = defaultdict(list)
    for span in assignment.hub:
        edges[span.path] += (span.start, span.end)
    first, last = assignment.target.layers or (0, 0)
    return pb.FetchRequest(
        hello=hello(),
        model=pb.ModelRef(name=repository.name, revision=repository.commit, digest=digest),
        wanted=[
            pb.FilePieces(
                path=file.name,
                size=file.size,
                sha256=file.etag,
                edges=edges[file.name],
            )
            for file in repository.files.values()
        ],
        neighbours=neighbours,
        hub=hub,
        limit_bytes_per_s=limit_bytes_per_s or 0,
        first_layer=first,
        last_layer=last,
    )


async def have(target: Target, digest: str, keyring: KeyringSource) -> list[Span]:
    """What a node holds now."""
    async with _asking(target, keyring) as stub:
        model = pb.ModelRef(digest=digest)
        reply = await stub.Have(pb.HaveRequest(hello=hello(), model=model), timeout=ASK_S)
    return [
        span
        for held in reply.models
        if held.model.digest == digest
        for file in held.files
        if is_weights(file.path)
        for span in spans_held(file)
    ]


async def free_bytes(target: Target, request: pb.FetchRequest, keyring: KeyringSource) -> int:
    """What is free on a node's disk."""
    dry = pb.FetchRequest()
    dry.CopyFrom(request)
    dry.dry_run = True
    async with _asking(target, keyring) as stub:
        async for event in stub.Fetch(dry, timeout=ASK_S):
            if event.finished:
                return int(event.free_bytes)
    return 0


async def ask(
    target: Target,
    request: pb.FetchRequest,
    keyring: KeyringSource,
    told: Callable[[Target, pb.FetchEvent], None],
) -> pb.FetchEvent | ExoError:
    """One node's fetch, to its end; why it failed is an answer, too, so that the others go on."""
    last = pb.FetchEvent()
    try:
        async with _asking(target, keyring) as stub:
            async for event in stub.Fetch(request):
                last = event
                told(target, event)
    except ExoError as error:
        return error
    return last


async def ask_all(
    jobs: Sequence[tuple[Target, pb.FetchRequest]],
    keyring: KeyringSource,
    told: Callable[[Target, pb.FetchEvent], None],
) -> list[pb.FetchEvent | ExoError]:
    """All nodes at once."""
    return list(await asyncio.gather(*(ask(target, request, keyring, told) for target, request in jobs)))


@asynccontextmanager
async def _asking(target: Target, keyring: KeyringSource) -> AsyncIterator[Any]:
    channel = await dial(target.host, target.port, keyring.current(), timeout_s=DIAL_S)
    async with channel:
        with translated(target.name):
            yield control(channel)


def _units(span: Span, cuts: Iterable[int]) -> list[Span]:
    """A span, cut at the ends of pieces and at `cuts`."""
    inside = sorted({span.start, span.end, *(at for at in cuts if span.start < at < span.end)})
    return [
        Span(span.path, *share)
        for low, high in pairwise(inside)
        for share in pieces.cut(low, high, PIECE_BYTES)
    ]
