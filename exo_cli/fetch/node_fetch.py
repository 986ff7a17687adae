"""The Fetch call: a node gets the bytes that it is told to get, and says how far it is.

The driver's list of files is checked like anybody's; headers must be those of the digest. The pieces that
are this node's to bring come from the hub, all others from the neighbours that are named, while this node
offers on what it has. Knows nothing of who needs which layers and why.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack
from typing import Final

from exo_cli.errors import BadData
from exo_cli.fetch.aside import in_thread
from exo_cli.fetch.hub_client import HubClient, HubFile, Repository, hub_names
from exo_cli.fetch.keeping import adopt, finished, opened, wanted_of
from exo_cli.fetch.limit import Limit
from exo_cli.fetch.meter import Meter, Moved
from exo_cli.fetch.names import check_listing, is_digest, is_small, is_weights
from exo_cli.fetch.outline import outlined
from exo_cli.fetch.partial_writer import PartialWriter
from exo_cli.fetch.places import place_of
from exo_cli.fetch.ranges import layers_in_model
from exo_cli.fetch.room import check_space, free_bytes
from exo_cli.fetch.seek import MAIN, Sought, is_commit, is_offline, is_repository
from exo_cli.fetch.source import Listing
from exo_cli.fetch.stores import Stores
from exo_cli.fetch.swarm import Peer, spans_held
from exo_cli.fetch.together import Sources, complete
from exo_cli.fetch.transfer import Pace
from exo_cli.fetch.verify import is_content
from exo_cli.models.safetensors import shown
from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire import exo_pb2 as pb

MAX_NEIGHBOURS: Final = 64


class NodeFetch:
    """Does what one FetchRequest says, into this node's stores."""

    def __init__(self, stores: Stores, keyring: KeyringSource) -> None:
        self._stores = stores
        self._keyring = keyring

    async def __call__(self, request: pb.FetchRequest) -> AsyncGenerator[pb.FetchEvent, None]:
        """Events until the last one, which is `finished`; raises why it cannot be."""
        repository = _checked(request)
        peers = _peers(request.neighbours)
        free = await asyncio.to_thread(free_bytes, self._stores.hub)
        if request.dry_run:
            yield pb.FetchEvent(finished=True, free_bytes=free)
            return
        whole = await asyncio.to_thread(self._stores.find, request.model.digest)
        if whole is not None:
            yield pb.FetchEvent(finished=True, path=str(whole), free_bytes=free)
            return
        events: asyncio.Queue[pb.FetchEvent] = asyncio.Queue()
        working = asyncio.ensure_future(self._work(request, repository, peers, events))
        try:
            while not working.done() or not events.empty():
                try:
                    yield await asyncio.wait_for(events.get(), 0.2)
                except TimeoutError:
                    continue
            path = await working
        finally:
            # Nobody fetches for a caller that has gone.
            working.cancel()
        free = await asyncio.to_thread(free_bytes, self._stores.hub)
        yield pb.FetchEvent(finished=True, path=path, free_bytes=free)

    async def _work(
        self,
        request: pb.FetchRequest,
        repository: Repository,
        peers: Sequence[Peer],
        events: "asyncio.Queue[pb.FetchEvent]",
    ) -> str:
        loop = asyncio.get_running_loop()
        model = request.model
        with ExitStack() as stack:
            # The lock may be held by another fetch of this machine for long.
            writer = await in_thread(
                lambda stopped: stack.enter_context(opened(self._stores, model.digest, repository, stopped))
            )

            def check(listing: Listing, who: str) -> None:
                _check_files(listing, repository, who)

            directory = await outlined(writer, model, peers, self._keyring, check)
            await asyncio.to_thread(_name_contents, writer, repository)
            layers = (request.first_layer, request.last_layer) if request.last_layer else None
            wanted = wanted_of(directory, layers, layers_in_model(directory.config))
            await in_thread(
                lambda stopped: adopt(writer, repository, model.digest, wanted, self._stores, stopped)
            )
            todo = sum(gap.size for gap in writer.view.missing(wanted))
            await asyncio.to_thread(check_space, writer.path, todo)

            def told(moved: Moved) -> None:
                loop.call_soon_threadsafe(events.put_nowait, _event(moved))

            small = {file.path: b"" for file in writer.view.map.files if is_small(file.path)}
            meter = Meter(repository.name, small, wanted, writer, told)
            client: HubClient | None = None
            if request.hub and not is_offline():
                sought = Sought(repository.name, None, repository.name, repository.commit)
                client = HubClient(sought).pinned(repository.commit)
            limit = Limit(request.limit_bytes_per_s or None)
            sources = Sources(peers, self._keyring, client, lambda stopped: Pace(stopped, limit), limit)
            own = [span for file in request.wanted for span in spans_held(file)]
            await complete(
                writer,
                model,
                repository,
                wanted,
                sources,
                meter,
                note=lambda text: events.put_nowait(pb.FetchEvent(error=text[:1000])),
                own=own,
            )
            for source, moved in meter.by_source.items():
                events.put_nowait(pb.FetchEvent(source=source, moved=moved))
            path, _ = await asyncio.to_thread(finished, writer, self._stores.hub, model.revision or MAIN)
            return str(path)


def _checked(request: pb.FetchRequest) -> Repository:
    """The files as the driver lists them."""
    model = request.model
    if not is_digest(model.digest):
        raise BadData(f"{shown(model.digest)} is no digest of a model")
    if not is_repository(model.name) or not is_commit(model.revision):
        raise BadData("a fetch names a repository and a commit")
    if request.last_layer and not request.first_layer < request.last_layer:
        raise BadData(f"layers {request.first_layer} to {request.last_layer} are no stage")
    if request.dry_run and not request.wanted:
        return Repository(model.name, model.revision, {})
    sizes = check_listing(((file.path, file.size) for file in request.wanted), "the caller")
    files = {file.path: HubFile(file.path, file.size, file.sha256) for file in request.wanted}
    if not all(hub_names(file.etag) for file in files.values()):
        raise BadData("a fetch says what the hub calls every file")
    return Repository(model.name, model.revision, {name: files[name] for name in sizes})


def _peers(endpoints: Sequence[str]) -> list[Peer]:
    if len(endpoints) > MAX_NEIGHBOURS:
        raise BadData(f"a fetch names at most {MAX_NEIGHBOURS} neighbours")
    found = []
    for each in endpoints:
        name, _, endpoint = each.rpartition("=")
        host, port = place_of(endpoint)
        found.append(Peer(name if name.isprintable() and name else endpoint, host, port))
    return found


def _check_files(listing: Listing, repository: Repository, who: str) -> None:
    theirs = {name: size for name, size in listing.sizes.items() if is_weights(name)}
    ours = {name: size for name, size in repository.sizes.items() if is_weights(name)}
    sums = {name: file.etag for name, file in repository.files.items() if is_weights(name)}
    said = {name: listing.sums.get(name, "") for name in sums}
    # Not every file is in LFS, and not everybody knows what the hub calls it.
    wrong = [name for name, etag in sums.items() if is_digest(etag) and said[name] not in ("", etag)]
    if theirs != ours or wrong:
        raise BadData(f"{who} has other files of {repository.name} than the hub lists")


def _name_contents(writer: PartialWriter, repository: Repository) -> None:
    """The hub's names go beside what is there; small files are compared with theirs at once."""
    weights = {name: size for name, size in repository.sizes.items() if is_weights(name)}
    writer.add(weights, repository.etags)
    small = {}
    for name, file in repository.files.items():
        there = writer.file(name)
        if not is_small(name) or there is None or not there.is_whole or there.verified:
            continue
        data = (writer.path / name).read_bytes()
        if is_content(data, file.etag):
            small[name] = data
    writer.put_all(small, repository.etags)


def _event(moved: Moved) -> pb.FetchEvent:
    return pb.FetchEvent(
        path=moved.file,
        done=moved.file_done_bytes,
        total=moved.file_total_bytes,
        source=moved.source,
        all_done=moved.done_bytes,
        all_total=moved.total_bytes,
    )
