"""One TLS connection that carries messages: each with its length before it, whole or not at all.

Encrypting, decrypting and receiving belong to one thread at a time, which is never made to wait; what the
other side does not take at once goes out by `flush`, from any thread, and while that one thread is busy any
other may `soak` up what arrives. The socket and the TLS are apart, so that no lock is held while bytes are
sealed or opened. Knows nothing of what the messages mean.
"""

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from exo_cli.errors import BadData, Unavailable
from exo_cli.wire.channels import MAX_MESSAGE_BYTES

HANDSHAKE_S: Final = 10.0
_LENGTH: Final = struct.Struct("!I")
_CHUNK_BYTES: Final = 256 * 1024
_TURN_BYTES: Final = 32 << 20
"""The most that is read in one go: there are others who wait. So much may be soaked up, too."""
_TURN_MESSAGES: Final = 1024
"""The same in messages: no more is read once so many are there."""
# A machine that lost its power says no goodbye: 12 s, as gRPC's connections are given.
_KEEPALIVE: Final = (
    ("SO_KEEPALIVE", socket.SOL_SOCKET, 1),
    ("TCP_NODELAY", socket.IPPROTO_TCP, 1),
    ("TCP_KEEPIDLE", socket.IPPROTO_TCP, 10),
    ("TCP_KEEPALIVE", socket.IPPROTO_TCP, 10),  # what macOS calls it
    ("TCP_KEEPINTVL", socket.IPPROTO_TCP, 1),
    ("TCP_KEEPCNT", socket.IPPROTO_TCP, 2),
    ("TCP_USER_TIMEOUT", socket.IPPROTO_TCP, 12_000),
)


class PipeEnded(Unavailable):
    """The other side is gone, or said something that is no message."""


class Stranger(PipeEnded):
    """The other side is of another cluster, or of this one under another key."""


class Pipe:
    """One connection, after its handshake."""

    def __init__(
        self, sock: socket.socket, tls: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO
    ) -> None:
        self._sock = sock
        self._tls = tls
        self._incoming = incoming
        self._outgoing = outgoing
        self._read = bytearray()
        self._whole: deque[bytes] = deque()
        self._reading = threading.Lock()
        self._soaked: deque[bytes | OSError] = deque()
        self._soaked_bytes = 0
        self._soaking = False
        self._lock = threading.Lock()
        self._waiting: deque[memoryview] = deque()
        self._ended: str | None = None
        self.waiting_bytes = 0
        """Of what was sent and the other side did not take yet."""
        self.on_waiting: Callable[[Pipe], object] = lambda pipe: None
        """Called when something begins to wait: somebody should `flush` when the socket can be written."""

    def fileno(self) -> int:
        return self._sock.fileno()

    @property
    def has_more(self) -> bool:
        """Whether there is something to `receive`, maybe the end, of which the socket will not tell."""
        return self._ended is not None or bool(self._soaked)

    # -- out -------------------------------------------------------------------------------------

    def send(self, message: bytes) -> None:
        """Send as much as can be sent now; the rest waits for `flush`."""
        try:
            self._tls.write(_LENGTH.pack(len(message)) + message)
        except ssl.SSLError:
            return  # what came was no TLS and ended it: who reads hears it, as below
        self._give(self._outgoing.read())

    def _give(self, data: bytes) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.append(memoryview(data))
                self.waiting_bytes += len(data)
                return
            sent = self._push(data)
            if sent == len(data):
                return
            self._waiting.append(memoryview(data)[sent:])
            self.waiting_bytes += len(data) - sent
        self.on_waiting(self)

    def flush(self) -> bool:
        """Send what waits, as far as it goes; True if nothing waits any more."""
        with self._lock:
            while self._waiting:
                data = self._waiting[0]
                sent = self._push(data)
                self.waiting_bytes -= sent
                if sent < len(data):
                    self._waiting[0] = data[sent:]
                    return False
                self._waiting.popleft()
            return True

    def _push(self, data: bytes | memoryview) -> int:
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            # Who reads hears it, and says why; until then it all goes nowhere.
            return len(data)

    # -- in --------------------------------------------------------------------------------------

    def receive(self) -> list[bytes]:
        """The messages that are here; raises PipeEnded once there are none and will be none."""
        if self._ended is None:
            self._fill()
        found = list(self._whole)
        self._whole.clear()
        if self._ended is not None and not found:
            raise PipeEnded(self._ended)
        return found

    def _fill(self) -> None:
        taken = 0
        while taken < _TURN_BYTES and len(self._whole) < _TURN_MESSAGES:
            try:
                data, was_soaked = self._pull()
            except BlockingIOError:
                return
            except OSError as error:
                self._ended = f"the connection broke: {error.strerror or error}"
                return
            self._feed(data)
            taken += len(data)
            if self._ended is not None or (len(data) < _CHUNK_BYTES and not was_soaked):
                return

    def _pull(self) -> tuple[bytes, bool]:
        """What came next, and whether it was soaked up before."""
        with self._reading:
            if not self._soaked:
                return self._sock.recv(_CHUNK_BYTES), False
            data = self._soaked.popleft()
            if isinstance(data, OSError):
                raise data
            self._soaked_bytes -= len(data)
            return data, True

    def let_soak(self, on: bool) -> None:
        """Whether others may `soak`; whoever ends it must `receive` then: the socket tells of none of it."""
        with self._reading:
            self._soaking = on

    def soak(self) -> bool:
        """Take what has arrived off the socket and keep it for `receive`; False: no more is to be kept."""
        with self._reading:
            while self._soaking and self._soaked_bytes < _TURN_BYTES:
                try:
                    data = self._sock.recv(_CHUNK_BYTES)
                except BlockingIOError:
                    return True
                except OSError as error:
                    self._soaked.append(error)
                    return False
                if not data:
                    return False  # the socket says so again
                self._soaked.append(data)
                self._soaked_bytes += len(data)
            return False

    def _feed(self, data: bytes) -> None:
        """Take what came from the socket."""
        if not data:
            self._ended = "it ended the stream"
            return
        self._incoming.write(data)
        self.decrypt()

    def decrypt(self) -> None:
        """Look at what TLS holds already: the first words may come with the end of the handshake."""
        try:
            while True:
                plain = self._tls.read(_CHUNK_BYTES)
                if not plain:
                    self._ended = "it ended the stream"
                    break
                self._take(plain)
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLError, BadData) as error:
            self._ended = f"it said what is no message: {error}"
        if self._outgoing.pending:
            self._give(self._outgoing.read())  # what TLS itself answers

    def _take(self, plain: bytes) -> None:
        """Cut messages out of what was said so far; memory follows what came, never what was claimed."""
        read = self._read
        if not read and len(plain) >= 4 and len(plain) == 4 + _length(plain):
            self._whole.append(plain[4:])
            return
        read += plain
        at = 0
        while len(read) - at >= 4 and len(read) - at - 4 >= (size := _length(read, at)):
            self._whole.append(bytes(read[at + 4 : at + 4 + size]))
            at += 4 + size
        del read[:at]

    # -- both ------------------------------------------------------------------------------------

    def close(self) -> None:
        with self._lock, contextlib.suppress(OSError):
            self._waiting.clear()
            self.waiting_bytes = 0
            self._sock.close()

    async def next(self) -> bytes:
        """The next message, while nobody else reads: for the greeting."""
        loop = asyncio.get_running_loop()
        while not self._whole:
            if self._ended is not None:
                raise PipeEnded(self._ended)
            try:
                data = await loop.sock_recv(self._sock, _CHUNK_BYTES)
            except OSError as error:
                raise PipeEnded(f"the connection broke: {error.strerror or error}") from error
            self._feed(data)
        return self._whole.popleft()


def _length(data: bytes | bytearray, at: int = 0) -> int:
    size: int = _LENGTH.unpack_from(data, at)[0]
    if size > MAX_MESSAGE_BYTES:
        raise BadData(f"a message of {size} bytes; at most {MAX_MESSAGE_BYTES} are allowed")
    return size


async def secured(sock: socket.socket, context: ssl.SSLContext, *, name: str | None = None) -> Pipe:
    """A non-blocking socket's connection, after the handshake: a client's if there is a `name` to ask for."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_side=name is None, server_hostname=name)
    pipe = Pipe(sock, tls, incoming, outgoing)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(HANDSHAKE_S):
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    pass
                if outgoing.pending:
                    await loop.sock_sendall(sock, outgoing.read())
                data = await loop.sock_recv(sock, _CHUNK_BYTES)
                if not data:
                    raise PipeEnded("it ended the connection before it was greeted")
                incoming.write(data)
            if outgoing.pending:
                await loop.sock_sendall(sock, outgoing.read())
    except TimeoutError:
        raise PipeEnded(f"it did not greet within {HANDSHAKE_S:g} s") from None
    except ssl.SSLError as error:
        with contextlib.suppress(OSError):
            sock.send(outgoing.read())  # why, in TLS's own words: the other side need not wait
        raise Stranger(f"it is not of this cluster: {error.reason or error}") from error
    except OSError as error:
        raise PipeEnded(f"the connection broke: {error.strerror or error}") from error
    pipe.decrypt()
    return pipe


def tuned(sock: socket.socket) -> socket.socket:
    """Ready for frames: never blocking, nothing held back, and a peer that is gone is noticed."""
    sock.setblocking(False)
    if sock.family != socket.AF_UNIX:
        for option, level, value in _KEEPALIVE:
            if hasattr(socket, option):
                sock.setsockopt(level, getattr(socket, option), value)
    return sock
