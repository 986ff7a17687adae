"""What Ctrl-C means in a chat: at the prompt it is an exception, in an answer it ends the answer.

One handler for the whole chat, since a handler that changes hands has moments in which Ctrl-C would end
the program instead. Knows nothing of what an answer is.
"""

import asyncio
import signal
from collections.abc import Callable, Coroutine
from types import FrameType


class Interrupts:
    """`with` it around the chat, inside its event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._at_prompt = False
        self._turn: asyncio.Task[None] | None = None
        self._stop: Callable[[], None] | None = None
        self._before: object = None

    def __enter__(self) -> "Interrupts":
        self._before = signal.signal(signal.SIGINT, self._hit)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)  # type: ignore[arg-type]

    def typed(self, prompt: str) -> str:
        """A line from the terminal; Ctrl-C raises KeyboardInterrupt here and nowhere else."""
        try:
            self._at_prompt = True
            return input(prompt)
        finally:
            self._at_prompt = False

    async def turn(self, work: Coroutine[None, None, None]) -> bool:
        """Do it; Ctrl-C ends it. Whether it came to its own end."""
        self._turn = asyncio.ensure_future(work)
        try:
            await self._turn
        except asyncio.CancelledError:
            us = asyncio.current_task()
            if us is not None and us.cancelling():
                self._turn.cancel()
                raise
            return False
        finally:
            self._turn = self._stop = None
        return True

    def gently(self, stop: Callable[[], None]) -> None:
        """How this turn is ended by the first Ctrl-C from now on; a second one cancels it."""
        self._stop = stop

    def _hit(self, _number: int, _frame: FrameType | None) -> None:
        if self._at_prompt:
            raise KeyboardInterrupt
        if self._turn is not None:
            self._loop.call_soon_threadsafe(self._end, self._turn)

    def _end(self, turn: asyncio.Task[None]) -> None:
        if turn is not self._turn:
            return  # the loop stood still at the prompt: this was for the turn before
        stop, self._stop = self._stop, None
        if stop is not None:
            stop()
        else:
            turn.cancel()
