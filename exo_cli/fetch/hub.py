"""A model that is not here, brought from the hub into the hub's own cache.

Through the hub's own library, with its endpoint, token, offline switch and cache: what is brought here
is found by every other program. Configuration, tokenizer and safetensors only, refused before anything
is spent if the disk has no room. What was fetched whole stays if the rest fails; a file that was half
way is fetched again. Knows nothing of neighbours, of parts of a model, or of how it is shown.
"""

import asyncio
import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from logging import ERROR
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from exo_cli import atomic
from exo_cli.errors import (
    BadData,
    CannotCreate,
    ExoError,
    InputOutput,
    Internal,
    NotAuthorised,
    NotFound,
    TryAgain,
    Unavailable,
)
from exo_cli.fetch.names import INDEX, check_listing, is_small, is_weights
from exo_cli.fetch.seek import Sought, is_commit, repository_folder, seek
from exo_cli.models.directory import MAX_INDEX_BYTES
from exo_cli.models.safetensors import shown

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

_ASK_S: Final = 20.0
_LET_GO_S: Final = 1.0
"""How long an interrupted download may take to remove what it was writing."""


@dataclass(frozen=True, slots=True)
class Downloaded:
    """How far a download is; bytes that were here already count."""

    repository: str
    done_bytes: int
    total_bytes: int


OnProgress = Callable[[Downloaded], None]


def nobody(_: Downloaded) -> None:
    """Tells nobody."""


async def ensure(name: str, hub: Path, *, on_progress: OnProgress = nobody) -> Path:
    """The directory of the model that a person names, from the hub if it is not here whole.

    The download runs in a thread that a program which is interrupted does not wait for.
    """
    sought = await asyncio.to_thread(_seek_whole, name, hub)
    if sought.path is not None:
        return sought.path
    if sought.repository is None:
        raise sought.missing()
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[Path] = loop.create_future()
    stopped = threading.Event()

    def tell(progress: Downloaded) -> None:
        if stopped.is_set():
            raise _Stopped
        loop.call_soon_threadsafe(on_progress, progress)

    def settle(found: Path | ExoError) -> None:
        if outcome.cancelled():
            return
        if isinstance(found, Path):
            outcome.set_result(found)
        else:
            outcome.set_exception(found)

    def work() -> None:
        found: Path | ExoError = Internal(f"the download of {sought.repository} ended without a word")
        try:
            found = download(sought, hub, on_progress=tell)
        except ExoError as error:
            found = error
        except _Stopped:
            pass
        finally:
            # The loop may be gone: then nobody waits.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(settle, found)

    thread = threading.Thread(target=work, name="download", daemon=True)
    thread.start()
    try:
        return await outcome
    finally:
        stopped.set()
        thread.join(_LET_GO_S)


def _seek_whole(name: str, hub: Path) -> Sought:
    sought = seek(name, hub)
    if sought.path is None or sought.repository is None or is_whole(sought.path):
        return sought
    return replace(sought, path=None, tried=(*sought.tried, f"{sought.path} (weights are missing)"))


def is_whole(snapshot: Path) -> bool:
    """Whether a snapshot of the hub's cache has all weights that it should; an interrupted one has not."""
    try:
        with open(snapshot / INDEX, "rb") as file:
            index = msgspec.json.decode(file.read(MAX_INDEX_BYTES), type=_Index)
    except FileNotFoundError:
        return any(is_weights(each.name) and each.exists() for each in snapshot.iterdir())
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        # Whoever opens it says what is wrong.
        return True
    return all(os.path.exists(snapshot / name) for name in set(index.weight_map.values()) if is_weights(name))


def download(sought: Sought, hub: Path, *, on_progress: OnProgress = nobody) -> Path:
    """Brings a repository's files and gives their snapshot. Every failure is an ExoError."""
    from huggingface_hub import HfApi, hf_hub_download, logging

    assert sought.repository is not None
    # It would tell of tokens and retries on its own.
    logging.get_logger().setLevel(ERROR)
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
    folder = repository_folder(hub, sought.repository)
    with _explained(sought, api.endpoint):
        commit, sizes, blobs = _listing(api, sought)
        snapshot = folder / "snapshots" / commit
        lacking = [name for name in sizes if not (snapshot / name).exists()]
        to_write = [name for name in lacking if not (folder / "blobs" / blobs[name]).exists()]
        _check_room(sought.repository, sum(sizes[name] for name in to_write), hub)
        meter = _Meter(sought.repository, sum(sizes.values()), on_progress)
        meter.add(sum(size for name, size in sizes.items() if name not in to_write))
        for name in lacking:
            hf_hub_download(
                sought.repository,
                name,
                revision=commit,
                cache_dir=hub,
                endpoint=api.endpoint,
                tqdm_class=meter.bar() if name in to_write else None,
            )
        if not is_commit(sought.revision):
            reference = folder / "refs" / sought.revision
            # Last: until now the revision stood for what it stood for before.
            reference.parent.mkdir(parents=True, exist_ok=True)
            atomic.replace(reference, commit.encode())
    return snapshot


class _Index(msgspec.Struct, frozen=True):
    weight_map: dict[str, str]


class _Stopped(Exception):
    """Nobody waits for the download any more."""


def _nothing(*_: object, **__: object) -> None:
    pass


class _Meter:
    """Adds up the bytes of all files."""

    def __init__(self, repository: str, total_bytes: int, told: OnProgress) -> None:
        self._repository = repository
        self._total_bytes = total_bytes
        self._done_bytes = 0
        self._told = told

    def add(self, count: int) -> None:
        self._done_bytes += count
        self._told(Downloaded(self._repository, self._done_bytes, self._total_bytes))

    def bar(self) -> Any:
        """What the hub's library takes for a progress bar of one file."""
        add = self.add

        class Bar:
            def __init__(self, *_: object, initial: int = 0, **__: object) -> None:
                if initial:
                    add(initial)

            def __enter__(self) -> "Bar":
                return self

            def __exit__(self, *_: object) -> None:
                pass

            def close(self) -> None:
                pass

            def update(self, count: float | None = 1) -> None:
                add(int(count or 0))

            def update_transfer(self, _: float | None = 1) -> None:
                """The same bytes on their way, for those who draw two bars."""

            set_description_str = set_postfix_str = set_transfer_postfix_str = refresh = _nothing

        return Bar


def _listing(api: "HfApi", sought: Sought) -> tuple[str, dict[str, int], dict[str, str]]:
    """The commit, and of each file that is wanted its size and the name of its blob."""
    assert sought.repository is not None
    info = api.model_info(sought.repository, revision=sought.revision, files_metadata=True, timeout=_ASK_S)
    commit = info.sha or ""
    if not is_commit(commit):
        raise BadData(f"{api.endpoint} names no commit of {sought.repository}: {shown(commit)}")
    wanted, blobs = [], {}
    for file in info.siblings or []:
        name = file.rfilename
        if name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/"):
            raise BadData(f"{sought.repository} has a file called {shown(name)}; nothing of it was fetched")
        if is_small(name) or is_weights(name):
            wanted.append((name, file.size or 0))
            blobs[name] = file.lfs.sha256 if file.lfs is not None else file.blob_id or name
    sizes = check_listing((each for each in wanted if each[1] > 0), sought.repository)
    # The loader takes those called model…, where there are any; others are the same weights once more.
    if any(is_weights(name) and name.startswith("model") for name in sizes):
        sizes = {name: size for name, size in sizes.items() if is_small(name) or name.startswith("model")}
    # Weights last: what has all of them has everything.
    return commit, dict(sorted(sizes.items(), key=lambda each: (is_weights(each[0]), each[0]))), blobs


def _check_room(repository: str, needed: int, hub: Path) -> None:
    place = next(path for path in (hub, *hub.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise CannotCreate(
            f"{repository} needs {needed:,} bytes more in {hub}, and {free:,} are free",
            hint="Free some space there, or say another place by HF_HUB_CACHE.",
        )


@contextmanager
def _explained(sought: Sought, endpoint: str) -> Iterator[None]:
    """The library's exceptions as ours."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    repository = sought.repository
    # The base of all of its client's exceptions, whichever client that is.
    network = cast(type[Exception], HfHubHTTPError.__bases__[0])
    try:
        yield
    except OfflineModeIsEnabled as error:
        missing = sought.missing()
        raise NotFound(
            f"{missing.message}; HF_HUB_OFFLINE keeps the hub from being asked", hint=missing.hint
        ) from error
    except HfHubHTTPError as error:
        raise _by_status(error, sought, endpoint) from error
    except HFValidationError as error:
        raise sought.missing() from error
    except network as error:
        raise _no_answer(sought, endpoint, error) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CannotCreate(
                f"the disk is full; what was fetched of {repository} until now stays",
                hint="Free some space there, and run it again.",
            ) from error
        if error.errno is None:
            # The library's own: no answer about a file, or fewer bytes than there should be.
            raise _no_answer(sought, endpoint, error.__cause__ or error) from error
        raise InputOutput(f"{repository} cannot be kept: {(error.strerror or '').lower()}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise BadData(f"{endpoint} does not answer as a hub does: {error}"[:300]) from error


def _no_answer(sought: Sought, endpoint: str, error: BaseException) -> Unavailable:
    said = str(error).split("\n")[0][:200] or type(error).__name__
    return Unavailable(
        f"{endpoint} does not answer about {sought.repository}: {said}",
        hint="Is this machine on the internet? What is here already runs without.",
    )


def _by_status(error: "HfHubHTTPError", sought: Sought, endpoint: str) -> ExoError:
    status = error.response.status_code
    if status in (401, 403):
        return NotAuthorised(
            f"{endpoint} does not let you have {sought.repository} ({status})",
            hint=f"Accept its licence at {endpoint}/{sought.repository}, and set HF_TOKEN to your token. "
            "It says the same of names that do not exist.",
        )
    if status == 404:
        missing = sought.missing()
        at = f"{sought.repository}@{sought.revision}"
        return NotFound(f"{missing.message}, {endpoint} (it has no {at})", hint=missing.hint)
    if status == 429:
        return TryAgain(f"{endpoint} wants fewer requests", hint="Wait a minute. HF_TOKEN gives you more.")
    return Unavailable(f"{endpoint} answers {status} about {sought.repository}", hint="Try again later.")
