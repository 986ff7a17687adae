"""Server-sent events, as far as streams of tokens use them: the `data` of each event, as bytes.

Pure. Names, ids and retry times of events are passed over, comments too. Knows nothing of what the data
mean.
"""

from typing import Final

from exo_cli.errors import BadData

MAX_EVENT_BYTES: Final = 4 << 20


class Events:
    """Takes a stream apart, whatever pieces it comes in."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of every event that `piece` ends."""
        lines = (self._rest + piece).split(b"\n")
        self._rest = lines.pop()
        found: list[bytes] = []
        for line in lines:
            if line.endswith(b"\r"):
                line = line[:-1]
            if not line:
                if self._data:
                    found.append(b"\n".join(self._data))
                    self._data, self._size = [], 0
            elif line.startswith(b"data:"):
                data = line[6:] if line.startswith(b"data: ") else line[5:]
                self._data.append(data)
                self._size += len(data)
        if self._size + len(self._rest) > MAX_EVENT_BYTES:
            raise BadData("an event of the stream does not end")
        return found
