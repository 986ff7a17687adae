"""The Fetch call: a node gets the bytes that it is told to get, and says how far it is.

The driver's list of files is checked like anybody's; headers must be those of the digest. The pieces that
are this node's to bring come from the hub, all others from the neighbours that are named, while this node
offers on what it has. Knows nothing of who needs which layers and why.
"""

import asyncio
import shutil
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack
from typing import Final

from exo_cli.errors import BadData, ExoError, NotFound
from exo_cli.fetch.aside import in_thread
from exo_cli.fetch.hub_client import HubClient, HubFile, Repository, hub_names
from exo_cli.fetch.keeping import adopt, finished, opened, wanted_of
from exo_cli.fetch.limit import Limit
from exo_cli.fetch.meter import Meter, Moved
from exo_cli.fetch.names import check_listing, is_digest, is_small, is_weights
from exo_cli.fetch.partial import PartialWriter
from exo_cli.fetch.places import place_of
from exo_cli.fetch.pull import STALL_S, Source, check_space, from_disk, write_small
from exo_cli.fetch.ranges import layers_in_model
from exo_cli.fetch.seek import MAIN, Sought, is_commit, is_repository
from exo_cli.fetch.stores import Stores
from exo_cli.fetch.swarm import DIAL_S, Peer, spans_held
from exo_cli.fetch.together import Sources, complete
from exo_cli.fetch.transfer import Pace
from exo_cli.fetch.verify import is_content
from exo_cli.models.directory import ModelDirectory
from exo_cli.models.safetensors import shown
from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.channels import dial
from exo_cli.wire.hello import hello

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
        free = await asyncio.to_thread(self._free_bytes)
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
        free = await asyncio.to_thread(self._free_bytes)
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
            directory = await self._headers(writer, model, repository, peers)
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
            if request.hub:
                sought = Sought(repository.name, None, repository.name, repository.commit)
                client = HubClient(sought).pinned(repository.commit)
            limit = Limit(request.limit_bytes_per_s or None)
            sources = Sources(peers, self._keyring, client, lambda stopped: Pace(stopped, limit))
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

    async def _headers(
        self, writer: PartialWriter, model: pb.ModelRef, repository: Repository, peers: Sequence[Peer]
    ) -> ModelDirectory:
        """What must be known before a byte of the weights: from the store, else from the first who has it."""
        directory = await asyncio.to_thread(from_disk, writer)
        tried: list[ExoError] = []
        for peer in peers if directory is None else ():
            try:
                channel = await dial(peer.host, peer.port, self._keyring.current(), timeout_s=DIAL_S)
                async with channel:
                    source = Source(channel, model, peer.name, hello(), STALL_S)
                    listing = await source.listing()
                    _check_sizes(listing.sizes, repository, peer.name)
                    await write_small(source, listing, writer)
                directory = await asyncio.to_thread(ModelDirectory.open, writer.path)
                break
            except ExoError as error:
                tried.append(error)
        if directory is None:
            said = "; ".join(error.message for error in tried) or "no neighbour was named"
            raise NotFound(f"nobody gives the headers of {repository.name}: {said}")
        await asyncio.to_thread(_name_contents, writer, repository)
        return directory

    def _free_bytes(self) -> int:
        hub = self._stores.hub
        place = next(path for path in (hub, *hub.absolute().parents) if path.is_dir())
        return shutil.disk_usage(place).free


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


def _check_sizes(sizes: dict[str, int], repository: Repository, who: str) -> None:
    theirs = {name: size for name, size in sizes.items() if is_weights(name)}
    ours = {name: size for name, size in repository.sizes.items() if is_weights(name)}
    if theirs != ours:
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
