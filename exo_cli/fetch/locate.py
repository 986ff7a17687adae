"""Where a stage's weights are, for a node that was told to load them: here, or at somebody who has them.

The places in order: this machine's stores, the driver that serves its own directory, the neighbours, and
last the hub, if the model is called as one of its repositories is. Whatever is pulled lands in this
machine's partial store, or whole in the hub's cache. Knows nothing of engines.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from exo_cli.errors import BadData, ExoError, NotAuthorised, NotFound, TryAgain, Unavailable
from exo_cli.fetch.aside import in_thread, on_loop
from exo_cli.fetch.hub import HubModel
from exo_cli.fetch.limit import Limit
from exo_cli.fetch.meter import Moved
from exo_cli.fetch.places import place_of
from exo_cli.fetch.pull import Progress, Wanted, nothing, pull_stage, stage_here
from exo_cli.fetch.ranges import stage_ranges
from exo_cli.fetch.seek import is_offline, seek
from exo_cli.fetch.stores import Stores
from exo_cli.fetch.transfer import Pace
from exo_cli.models.directory import ModelDirectory
from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.channels import dial

DIAL_S: Final = 5.0

Neighbours = Callable[[], Sequence[tuple[str, str, int]]]
"""The nodes that are there now: (name, address, port)."""


def nobody() -> Sequence[tuple[str, str, int]]:
    """No neighbours."""
    return ()


class Locator:
    """Finds or fetches the weights of a Load."""

    def __init__(self, stores: Stores, source: KeyringSource, neighbours: Neighbours = nobody) -> None:
        self._stores = stores
        self._source = source
        self._neighbours = neighbours

    async def __call__(self, request: pb.LoadRequest, progress: Progress = nothing) -> Path:
        """A directory that holds at least the stage's tensors. Raises NotFound with the places tried."""
        model = request.model
        found = await asyncio.to_thread(self._stores.find, model.digest)
        if found is not None:
            return found

        def wanted(directory: ModelDirectory) -> Sequence[tuple[str, int, int]]:
            return stage_ranges(directory, request.first_layer, request.last_layer, request.layers_in_model)

        weights = self._stores.weights
        part = await asyncio.to_thread(stage_here, weights, model.digest, wanted)
        if part is not None:
            return part
        tried: list[ExoError] = []
        for who, host, port in self._places(request):
            try:
                return await self._pull(who, host, port, model, wanted, progress)
            except (NotFound, Unavailable, BadData) as error:
                # Another one may have it, or have it right.
                tried.append(error)
        try:
            found = await self._from_hub(request, progress)
            if found is not None:
                return found
        except (NotFound, NotAuthorised, Unavailable, TryAgain) as error:
            tried.append(error)
        wrong = next((error for error in tried if isinstance(error, BadData)), None)
        if wrong is not None:
            raise wrong
        raise NotFound(
            f"{model.name or 'the model'} ({model.digest[:16]}…) is not on this machine; looked in "
            + "; ".join(
                [f"{weights}, {self._stores.hub}", *(error.message for error in tried)],
            ),
            hint="Run exo where the model is, or copy its directory here.",
        )

    async def _from_hub(self, request: pb.LoadRequest, progress: Progress) -> Path | None:
        """What the stage needs, if the hub has the model of that digest under that name.

        Not where a driver serves its own files: what it has need not come over the internet.
        """
        model, hub = request.model, self._stores.hub
        sought = await asyncio.to_thread(seek, model.name, hub)
        if request.weights_from or sought.repository is None or is_offline():
            return None

        def moved(how: Moved) -> None:
            progress(how.done_bytes, how.total_bytes)

        told = on_loop(moved)
        layers = (request.first_layer, request.last_layer)

        def bring(stopped: threading.Event) -> Path | None:
            made = HubModel(sought, self._stores, Pace(stopped, Limit(None)), told)
            seen = made.look(layers)
            return made.bring(seen).path if seen.heads.digest == model.digest else None

        return await in_thread(bring)

    def _places(self, request: pb.LoadRequest) -> list[tuple[str, str, int]]:
        driver = [_driver(request.weights_from)] if request.weights_from else []
        return [*driver, *self._neighbours()]

    async def _pull(
        self, who: str, host: str, port: int, model: pb.ModelRef, wanted: Wanted, progress: Progress
    ) -> Path:
        channel = await dial(host, port, self._source.current(), timeout_s=DIAL_S)
        async with channel:
            return await pull_stage(channel, model, wanted, self._stores.weights, who=who, progress=progress)


def _driver(endpoint: str) -> tuple[str, str, int]:
    return (f"the driver at {endpoint}", *place_of(endpoint))
