"""A few threads that do pieces of work side by side, and nobody has to wait for at the end of the program.

The first failure ends the others. Knows nothing of the work.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from exo_cli.errors import ExoError, Internal
from exo_cli.fetch.patience import Stopped

T = TypeVar("T")


def side_by_side(
    work: Callable[[T], None], things: Iterable[T], *, most: int, stopped: threading.Event
) -> None:
    """`work` on each of the things, at most so many at once. Raises the first failure; Stopped if stopped."""
    queue: Iterator[T] = iter(things)
    guard = threading.Lock()
    failures: list[Exception] = []
    ended = threading.Semaphore(0)

    def member() -> None:
        whole = False
        try:
            while not stopped.is_set() and not failures:
                with guard:
                    thing = next(queue, None)
                if thing is None:
                    break
                work(thing)
            whole = True
        except (ExoError, Stopped, OSError) as error:
            failures.append(error)
            whole = True
        finally:
            if not whole:
                failures.append(Internal("a part of the fetch ended without a word"))
            ended.release()

    for number in range(most):
        threading.Thread(target=member, name=f"crew-{number}", daemon=True).start()
    for _ in range(most):
        ended.acquire()
    if failures:
        raise next((each for each in failures if not isinstance(each, Stopped)), failures[0])
    if stopped.is_set():
        raise Stopped
