"""What waits for one reader of a stream, within bounds: whoever does not read is cut off, not waited for.

Nothing here blocks the one who puts: the stage goes on for all others. Knows nothing of what the messages
mean, nor of streams.
"""

import asyncio
from collections import deque
from typing import Final, Generic, Protocol, TypeVar


class _Sized(Protocol):
    def ByteSize(self) -> int: ...  # noqa: N802 - protobuf calls it so


Message = TypeVar("Message", bound=_Sized)

MESSAGE_BYTES: Final = 200
"""What an object costs beside its contents; so a bound in bytes is one in messages, too."""


class Outbox(Generic[Message]):
    """A queue between the parts of one event loop."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._waiting: deque[tuple[Message, int]] = deque()
        self._closed = False
        self._news = asyncio.Event()
        self.bytes = 0
        self.overflowed = False

    def put(self, message: Message) -> bool:
        """False if the reader is gone, or cut off with this message."""
        if self._closed:
            return False
        size = MESSAGE_BYTES + message.ByteSize()
        if self._waiting and self.bytes + size > self._limit_bytes:
            self.overflowed = True
            self._waiting.clear()
            self.bytes = 0
            self.close()
            return False
        self._waiting.append((message, size))
        self.bytes += size
        self._news.set()
        return True

    def close(self) -> None:
        """Nothing more is taken; what waits is still given out."""
        self._closed = True
        self._news.set()

    async def get(self) -> Message | None:
        """The next message; None once it is closed and empty. For one reader."""
        while not self._waiting:
            if self._closed:
                return None
            self._news.clear()
            await self._news.wait()
        message, size = self._waiting.popleft()
        self.bytes -= size
        return message
