"""Work that blocks, beside a loop: it ends soon after nobody waits for it any more.

The thread is one that the end of the program does not wait for. Knows nothing of the work.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeVar

from exo_cli.errors import ExoError, Internal
from exo_cli.fetch.patience import Stopped

T = TypeVar("T")

_LET_GO_S: Final = 1.0
"""How long interrupted work may take to keep what it has."""


async def in_thread(work: Callable[[threading.Event], T]) -> T:
    """`work`, which ends soon once the event is set; a task that is cancelled sets it."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()
    stopped = threading.Event()

    def settle(found: T | ExoError) -> None:
        if outcome.done():
            return
        if isinstance(found, ExoError):
            outcome.set_exception(found)
        else:
            outcome.set_result(found)

    def run() -> None:
        found: T | ExoError = Internal("a fetch ended without a word")
        try:
            found = work(stopped)
        except ExoError as error:
            found = error
        except Stopped:
            pass
        finally:
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(settle, found)

    thread = threading.Thread(target=run, name="fetch", daemon=True)
    thread.start()
    try:
        return await outcome
    finally:
        stopped.set()
        thread.join(_LET_GO_S)


def on_loop(told: Callable[[T], None]) -> Callable[[T], None]:
    """The same, for threads: heard on the loop that runs now."""
    loop = asyncio.get_running_loop()

    def tell(what: T) -> None:
        # The loop may be gone: then nobody looks.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(told, what)

    return tell
