"""A lean HTTP client for answers that come in many small pieces, each with the time it arrived.

A general client costs several times as much per piece, on a machine whose cores the measured server may
need. It keeps connections open, follows no redirect, uses no proxy and keeps no cookies. Knows nothing of
what is asked or answered.
"""

import asyncio
import contextlib
import os
import socket
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from exo_cli.bench.http1 import ResponseReader, Url
from exo_cli.errors import BadData, InputOutput, NotAuthorised, TryAgain, Unavailable
from exo_cli.trust.private import is_private

CONNECT_S: Final = 10.0
MAX_WAITING_BYTES: Final = 1 << 20
"""What may wait for whoever reads; then the server has to."""
_HINT: Final = "Does the server run there? Look with curl."


@dataclass(slots=True)
class _Line(asyncio.Protocol):
    """One connection. What arrives is read and timed here, before whoever waits for it is woken."""

    reader: ResponseReader = field(default_factory=ResponseReader)
    pieces: deque[tuple[float, bytes]] = field(default_factory=deque)
    waiting_bytes: int = 0
    closed: bool = False
    used: bool = False
    problem: Exception | None = None
    transport: asyncio.Transport | None = None
    waiter: asyncio.Future[None] | None = None
    watch: asyncio.TimerHandle | None = None
    silent_from_s: float = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        at_s = time.perf_counter()
        if self.reader.done or not self.used:
            # Words that nobody asked for.
            self.close()
            return
        try:
            body = self.reader.feed(data)
        except BadData as problem:
            self.problem = problem
            self.close()
        else:
            if body:
                self.pieces.append((at_s, body))
                self.waiting_bytes += len(body)
                if self.waiting_bytes > MAX_WAITING_BYTES and self.transport is not None:
                    self.transport.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self.problem is None and not self.reader.done and (exc is not None or not self.reader.end()):
            self.problem = exc or ConnectionResetError("the connection was closed")
        self._wake()

    def _wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    async def until_news(self, silence_s: float) -> None:
        """Until something arrived or ended; raises TimeoutError. Asks the clock as rarely as possible."""
        loop = asyncio.get_running_loop()
        self.waiter = loop.create_future()
        self.silent_from_s = loop.time()
        if self.watch is None:
            self.watch = loop.call_later(silence_s, self._look, silence_s)
        await self.waiter

    def _look(self, silence_s: float) -> None:
        loop = asyncio.get_running_loop()
        left_s = self.silent_from_s + silence_s - loop.time()
        self.watch = None
        if self.waiter is None or self.waiter.done() or left_s > 0:
            self.watch = loop.call_later(max(left_s, 0.05), self._look, silence_s)
        else:
            self.waiter.set_exception(TimeoutError())

    def take(self) -> tuple[float, bytes] | None:
        if not self.pieces:
            return None
        piece = self.pieces.popleft()
        before, self.waiting_bytes = self.waiting_bytes, self.waiting_bytes - len(piece[1])
        if before > MAX_WAITING_BYTES >= self.waiting_bytes and self.transport is not None:
            with contextlib.suppress(RuntimeError):
                self.transport.resume_reading()
        return piece

    def begin(self, request: bytes) -> None:
        self.reader, self.used = ResponseReader(), True
        assert self.transport is not None
        self.transport.write(request)

    def rest(self) -> None:
        """Nothing is waited for."""
        if self.watch is not None:
            self.watch.cancel()
            self.watch = None

    def close(self) -> None:
        self.rest()
        self.closed = True
        if self.transport is not None:
            self.transport.abort()


class Response:
    """An answer whose head was read."""

    def __init__(self, line: _Line, silence_s: float, who: str) -> None:
        self._line = line
        self._silence_s = silence_s
        self._who = who

    @property
    def status(self) -> int:
        return self._line.reader.status

    def header(self, name: str) -> str:
        return self._line.reader.headers.get(name, "")

    async def piece(self) -> tuple[float, bytes] | None:
        """The next one and the time of its arrival (perf_counter), or None at the end.

        Raises where the answer is cut off.
        """
        line = self._line
        while (piece := line.take()) is None:
            if line.problem is not None:
                raise _broken(line.problem, self._who)
            if line.reader.done:
                return None
            try:
                await line.until_news(self._silence_s)
            except TimeoutError as error:
                raise _silent(self._who, self._silence_s) from error
        return piece

    async def text(self, most_bytes: int) -> bytes:
        """The body, or its beginning where it is longer."""
        found = b""
        while len(found) < most_bytes and (piece := await self.piece()) is not None:
            found += piece[1]
        return found[:most_bytes]


class Client:
    """Asks one server; as many connections as there are questions at a time."""

    def __init__(self, url: Url, headers: Mapping[str, str], *, secret: bool, silence_s: float) -> None:
        self._url = url
        self._headers = dict(headers)
        self._secret = secret
        self._silence_s = silence_s
        self._idle: list[_Line] = []
        self._tls = ssl.create_default_context() if url.tls else None

    @contextlib.asynccontextmanager
    async def ask(self, method: str, path: str, body: bytes = b"") -> AsyncIterator[Response]:
        """A question; leaving the block before the answer ended hangs up."""
        request = self._request(method, path, body)
        line = await self._asked(request)
        try:
            yield Response(line, self._silence_s, str(self._url))
        finally:
            line.rest()
            if line.reader.done and line.reader.keeps_open and not line.closed:
                self._idle.append(line)
            else:
                line.close()

    async def close(self) -> None:
        for line in self._idle:
            line.close()
        self._idle.clear()
        # The sockets close in the loop's next turn.
        await asyncio.sleep(0)

    async def _asked(self, request: bytes) -> _Line:
        """The line on which the head of the answer has come."""
        while self._idle:
            line = self._idle.pop()
            # One that is closed just as we write has nobody who reads the question.
            if not line.closed and await self._answered(line, request):
                return line
        line = await self._connect()
        if not await self._answered(line, request):
            assert line.problem is not None
            raise _broken(line.problem, str(self._url))
        return line

    async def _answered(self, line: _Line, request: bytes) -> bool:
        """Whether an answer began; False where the connection was lost before."""
        line.begin(request)
        try:
            while not line.reader.head_read:
                if isinstance(line.problem, BadData):
                    raise _broken(line.problem, str(self._url))
                if line.problem is not None:
                    return False
                await line.until_news(self._silence_s)
        except TimeoutError as error:
            line.close()
            raise _silent(str(self._url), self._silence_s) from error
        except BaseException:
            line.close()
            raise
        return True

    async def _connect(self) -> _Line:
        url = self._url
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_S):
                transport, line = await loop.create_connection(_Line, url.host, url.port, ssl=self._tls)
        except TimeoutError as error:
            raise Unavailable(f"{url} does not answer within {CONNECT_S:g} s", hint=_HINT) from error
        except ssl.SSLCertVerificationError as error:
            reason = error.verify_message or "unknown"
            raise NotAuthorised(
                f"the certificate of {url} is not to be trusted: {reason}",
                hint="SSL_CERT_FILE names a file of certificates to trust.",
            ) from error
        except OSError as error:
            raise Unavailable(f"nobody answers at {url}{_reason(error)}", hint=_HINT) from error
        peer = transport.get_extra_info("peername") or ("",)
        if self._secret and not url.tls and not is_private(str(peer[0])):
            line.close()
            raise NotAuthorised(
                f"the API key would go to {url} in the clear, over the Internet",
                hint="Use https://, or a tunnel.",
            )
        return line

    def _request(self, method: str, path: str, body: bytes) -> bytes:
        url = self._url
        host = f"[{url.host}]" if ":" in url.host else url.host
        lines = [f"{method} {path} HTTP/1.1", f"host: {host}:{url.port}"]
        lines += [f"{name}: {value}" for name, value in self._headers.items()]
        if body:
            lines += ["content-type: application/json", f"content-length: {len(body)}"]
        return "\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + body


def _reason(error: OSError) -> str:
    """In the system's words; asyncio's own name addresses, and several attempts have no one reason."""
    if isinstance(error, socket.gaierror):
        return f": {(error.strerror or '').lower()}"
    if isinstance(error, ssl.SSLError):
        return " with TLS"
    return f": {os.strerror(error.errno).lower()}" if error.errno else ""


def _broken(problem: Exception, who: str) -> BadData | InputOutput:
    if isinstance(problem, BadData):
        return BadData(f"{who} does not speak HTTP: {problem.message}", hint=_HINT)
    return InputOutput(f"{who} cut its answer off", hint="Its own log says why.")


def _silent(who: str, silence_s: float) -> TryAgain:
    return TryAgain(f"{who} sent nothing for {silence_s:g} s", hint="Its own log says why.")
