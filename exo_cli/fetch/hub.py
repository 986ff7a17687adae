"""A model of the hub: looked at, what of it is here, and the rest brought.

A look costs the listing and the files' headers. What is wanted then goes into the partial store, byte
range by byte range; once a model is there whole, and every file is what the hub says that it is, it
moves into the hub's own cache, where every other program finds it. Knows nothing of neighbours, nor of
how it is shown. Everything here blocks.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from exo_cli.errors import BadData, CannotCreate
from exo_cli.fetch import pieces
from exo_cli.fetch.heads import Heads, HeadShelf, bring_heads
from exo_cli.fetch.hub_client import Client, HubClient, Repository
from exo_cli.fetch.keeping import adopt, finished, opened, prepare, size_of, wanted_of
from exo_cli.fetch.meter import HUB, Meter, OnMoved, nobody
from exo_cli.fetch.partial import Partial
from exo_cli.fetch.partial_writer import PartialWriter
from exo_cli.fetch.pieces import Span
from exo_cli.fetch.ranges import layers_in_model
from exo_cli.fetch.room import free_bytes
from exo_cli.fetch.seek import Sought, repository_folder
from exo_cli.fetch.stores import Stores
from exo_cli.fetch.transfer import Pace, Transfer
from exo_cli.fetch.verify import Follower, to_be_whole

LISTING_TRIES: Final = 3
"""Who is not on the internet hears of it soon."""
_ROUNDS: Final = 2
"""How often a file is fetched whose bytes are not right."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a model of the hub is, and which bytes of it are wanted."""

    repository: Repository
    heads: Heads
    layers_in_model: int
    layers: tuple[int, int] | None
    """None: the whole model."""
    wanted: list[Span]
    """Of the weights."""

    @property
    def small_bytes(self) -> int:
        return sum(map(len, self.heads.small.values()))

    @property
    def total_bytes(self) -> int:
        return self.small_bytes + sum(span.size for span in self.wanted)


@dataclass(frozen=True, slots=True)
class Brought:
    """The end of a fetch."""

    path: Path
    digest: str
    commit: str
    total_bytes: int
    by_source: dict[str, int]
    """Bytes that were not here before."""


class HubModel:
    """One model of the hub, for one fetch."""

    def __init__(
        self,
        sought: Sought,
        stores: Stores,
        pace: Pace,
        told: OnMoved = nobody,
        *,
        client: Client | None = None,
        source: str = HUB,
    ) -> None:
        self._sought = sought
        self._stores = stores
        self._pace = pace
        self._told = told
        self._client: Client = client if client is not None else HubClient(sought)
        self._source = source
        self.endpoint = self._client.endpoint

    def look(self, layers: tuple[int, int] | None = None) -> Look:
        """Metadata only; refused at once where the disk has no room for the whole."""
        repository = self._client.listing(self._pace.patience(LISTING_TRIES))
        if layers is None:
            self._check_room(repository, self._lacking_bytes(repository))
        heads = bring_heads(self._client, repository, self._stores.hub, self._stores.weights, self._pace)
        directory = heads.directory(Path(repository.name))
        count = layers_in_model(directory.config)
        return Look(repository, heads, count, layers, wanted_of(directory, layers, count))

    def missing(self, look: Look) -> list[Span]:
        """What of the wanted bytes is neither in our store nor in the hub's cache; changes nothing."""
        blobs = repository_folder(self._stores.hub, look.repository.name) / "blobs"
        part = Partial.read(self._stores.root_for_hub() / look.heads.digest)
        gaps: list[Span] = []
        for span in look.wanted:
            etag = look.repository.files[span.path].etag
            if size_of(blobs / etag) == look.repository.files[span.path].size:
                continue
            file = part.file(span.path) if part is not None else None
            ranges = file.ranges if file is not None and file.etag in ("", etag) else []
            gaps += [Span(span.path, *each) for each in pieces.missing(ranges, span.start, span.end)]
        return gaps

    @contextmanager
    def store(self, look: Look) -> Iterator[PartialWriter]:
        """The partial store of the model, with its headers, its small files, and all that lies elsewhere."""
        digest, repository, stopped = look.heads.digest, look.repository, self._pace.stopped
        with opened(self._stores, digest, repository, stopped) as writer:
            prepare(writer, repository, look.heads)
            adopt(writer, repository, digest, look.wanted, self._stores, stopped)
            yield writer

    def bring(self, look: Look) -> Brought:
        """The wanted bytes; a model that is whole then goes into the hub's cache."""
        repository = look.repository
        folder = repository_folder(self._stores.hub, repository.name)
        with self.store(look) as writer:
            gaps = writer.view.missing(look.wanted)
            self._check_room(repository, sum(gap.size for gap in gaps))
            meter = Meter(repository.name, look.heads.small, look.wanted, writer, self._told)
            meter.count(self._source, look.heads.fetched_bytes)
            self.transfer(look, writer, meter)
            path, digest = finished(writer, self._stores.hub, self._sought.revision)
        if path.parent.parent == folder:
            HeadShelf(self._stores.weights).drop(list(repository.etags.values()))
        return Brought(path, digest, repository.commit, look.total_bytes, meter.by_source)

    def transfer(self, look: Look, writer: PartialWriter, meter: Meter) -> None:
        """What is missing, from the hub; files that become whole are compared with the hub's sha256."""
        for _ in range(_ROUNDS):
            follower = Follower(writer, to_be_whole(writer, look.wanted), self._pace.stopped)
            follower.start()

            def arrived(span: Span, follower: Follower = follower) -> None:
                meter.arrived(span, self._source)
                follower.news()

            try:
                gaps = writer.view.missing(look.wanted)
                Transfer(self._client, look.repository, writer, self._pace, arrived).run(gaps)
            finally:
                bad = follower.finish()
            if not bad:
                return
            for name in bad:
                writer.drop(name)
                meter.lost(name)
        raise BadData(
            f"{self.endpoint} sent {bad[0]} again with other bytes than its sha256 says",
            hint="Nothing of it was kept. Is there a proxy on the way, or is this disk failing?",
        )

    def _lacking_bytes(self, repository: Repository) -> int:
        """What of the whole model is neither in the hub's cache nor in a store of ours."""
        blobs = repository_folder(self._stores.hub, repository.name) / "blobs"
        here: dict[str, int] = {}
        for part in self._stores.partials():
            for file in part.map.files:
                held = sum(high - low for low, high in file.ranges)
                here[file.etag] = max(here.get(file.etag, 0), held)
        return sum(
            max(0, file.size - here.get(file.etag, 0))
            for file in repository.files.values()
            if not (blobs / file.etag).exists()
        )

    def _check_room(self, repository: Repository, needed: int) -> None:
        hub = self._stores.hub
        free = free_bytes(hub)
        if needed > free:
            raise CannotCreate(
                f"{repository.name} needs {needed:,} bytes more in {hub}, and {free:,} are free",
                hint="Free some space there, or say another place by HF_HUB_CACHE.",
            )
