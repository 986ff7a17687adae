"""A model that a person names, on this machine: found, or brought from the hub.

Here first: a second fetch asks nobody. The work runs in a thread that a program which is interrupted
does not wait for. Knows nothing of which neighbours there are, nor of how it is shown.
"""

import asyncio
import os
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import msgspec

from exo_cli.errors import ExoError
from exo_cli.fetch import meter
from exo_cli.fetch.aside import in_thread, on_loop
from exo_cli.fetch.bundle import FolderClient, read_contents
from exo_cli.fetch.hub import Brought, HubModel
from exo_cli.fetch.hub_errors import offline
from exo_cli.fetch.keeping import wanted_of
from exo_cli.fetch.meter import OnMoved
from exo_cli.fetch.names import INDEX, is_weights
from exo_cli.fetch.order import Order
from exo_cli.fetch.partial import Partial
from exo_cli.fetch.ranges import layers_in_model
from exo_cli.fetch.seek import MAIN, Sought, is_commit, is_offline, repository_folder, seek
from exo_cli.fetch.stores import Stores
from exo_cli.models.directory import MAX_INDEX_BYTES, ModelDirectory
from exo_cli.schemas.first_use import shared


async def ensure(name: str, stores: Stores, *, on_progress: OnMoved = meter.nobody) -> Path:
    """The directory of the whole model that a person names, from the hub if it is not here."""
    return (await fetch(name, stores, Order(), on_progress=on_progress)).path


async def fetch(name: str, stores: Stores, order: Order, *, on_progress: OnMoved = meter.nobody) -> Brought:
    """What is wanted of a model; nobody is asked if it is here."""
    sought = await asyncio.to_thread(seek_whole, name, stores.hub)
    here = await asyncio.to_thread(found_here, sought, stores, order)
    if here is not None:
        return here
    if sought.repository is None:
        raise sought.missing()
    told = on_loop(on_progress)
    if asks_no_hub(order):
        if order.peers:
            from exo_cli.fetch.offline import from_neighbours

            brought = await from_neighbours(sought, stores, order, told)
            if brought is not None:
                return brought
        raise offline(sought, asked=[peer.name for peer in order.peers])
    if order.peers and order.keyring is not None:
        # Only now: what speaks to neighbours takes as long to start as all the rest.
        from exo_cli.fetch.several import from_several

        brought = await from_several(sought, stores, order, told)
        if brought is not None:
            return brought

    def bring(stopped: threading.Event) -> Brought:
        model = HubModel(sought, stores, order.pace(stopped), told)
        return model.bring(model.look(order.layers))

    return await in_thread(bring)


def asks_no_hub(order: Order) -> bool:
    """Whether the caller, or this user's settings, keep the hub from being asked."""
    return order.offline or is_offline()


async def take_in(
    folder: Path, stores: Stores, order: Order, *, on_progress: OnMoved = meter.nobody
) -> tuple[str, Brought]:
    """What `bundle.export` wrote, into this machine's hub cache; every file is compared on its way."""
    told = on_loop(on_progress)
    contents = await asyncio.to_thread(read_contents, folder)
    there = repository_folder(stores.hub, contents.name) / "snapshots" / contents.commit

    def bring(stopped: threading.Event) -> Brought:
        revision = MAIN if not (there.parent.parent / "refs" / MAIN).exists() else contents.commit
        sought = Sought(contents.name, None, contents.name, revision)
        client = FolderClient(folder)
        model = HubModel(sought, stores, order.pace(stopped), told, client=client, source=str(folder))
        return model.bring(model.look())

    return contents.name, await in_thread(bring)


def found_here(sought: Sought, stores: Stores, order: Order) -> Brought | None:
    """What is wanted, if this machine has it; asks nobody."""
    if sought.path is not None:
        directory = stores.open(sought.path)
        if order.layers is not None:
            # To say that there are no such layers.
            wanted_of(directory, order.layers, layers_in_model(directory.config))
        commit = sought.path.name if is_commit(sought.path.name) else ""
        total = directory.weights_bytes
        return Brought(sought.path, directory.digest, commit, total, {})
    for store in stores.partials():
        if _stands_for(store, sought):
            with suppress(ExoError):
                directory = ModelDirectory.open(store.path)
                spans = wanted_of(directory, order.layers, layers_in_model(directory.config))
                if not store.missing(spans) and (order.layers is not None or not store.map.repository):
                    total = sum(span.size for span in spans)
                    return Brought(store.path, store.map.digest, store.map.revision, total, {})
    return None


def seek_whole(name: str, hub: Path) -> Sought:
    """Like `seek`, but what an interrupted download of another program left is no model."""
    sought = seek(name, hub)
    if sought.path is None or sought.repository is None or is_whole(sought.path):
        return sought
    return replace(sought, path=None, tried=(*sought.tried, f"{sought.path} (weights are missing)"))


def is_whole(snapshot: Path) -> bool:
    """Whether a snapshot of the hub's cache has all weights that it should; an interrupted one has not."""
    try:
        with open(snapshot / INDEX, "rb") as file:
            index = msgspec.json.decode(file.read(MAX_INDEX_BYTES), type=shared(_Index))
    except FileNotFoundError:
        return any(is_weights(each.name) and each.exists() for each in snapshot.iterdir())
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        # Whoever opens it says what is wrong.
        return True
    return all(os.path.exists(snapshot / name) for name in set(index.weight_map.values()) if is_weights(name))


def _stands_for(store: Partial, sought: Sought) -> bool:
    """Whether a store is of that repository and revision, as far as this machine can know."""
    if sought.repository is None or sought.repository not in (store.map.repository, store.map.name):
        return False
    return not is_commit(sought.revision) or store.map.revision == sought.revision


class _Index(msgspec.Struct, frozen=True):
    weight_map: dict[str, str]
