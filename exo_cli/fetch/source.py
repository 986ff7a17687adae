"""One neighbour, asked for one model: what it holds, its headers, and bytes that come with a digest.

Headers are compared with the model's digest. Each piece of 4 MiB, or what of it was asked for, is compared
with the digest that comes with it before anybody gets to see it. Knows nothing of what is done with them.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import grpc.aio

from exo_cli.errors import BadData, NotFound, TryAgain, Unavailable
from exo_cli.fetch import pieces
from exo_cli.fetch.names import CONFIG, check_listing, is_digest, is_small, is_weights
from exo_cli.fetch.pieces import MESSAGE_BYTES
from exo_cli.models.digest import model_digest
from exo_cli.models.safetensors import MAX_HEADER_BYTES, Header, header_length, parse_header
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.status import translated
from exo_cli.wire.stubs import control

T = TypeVar("T")

HEADERS_AT_ONCE: Final = 8
MAX_HEADERS_BYTES: Final = 4 * MAX_HEADER_BYTES


@dataclass(frozen=True, slots=True)
class Listing:
    """What a peer holds, once its headers agree with the digest."""

    sizes: dict[str, int]
    sha256: dict[str, str]
    """Of small files as they lie there, and of weights as the hub told; empty where the peer does not say."""
    config: bytes
    headers: dict[str, tuple[Header, bytes]]
    """By the peer's name of the file: the checked header, and its bytes as they stand."""

    @property
    def sums(self) -> dict[str, str]:
        """The hub's names for the weights, as far as the peer knows them."""
        return {name: self.sha256[name] for name in self.headers if self.sha256.get(name)}


class Source:
    """One peer, asked for one model."""

    def __init__(
        self, channel: grpc.aio.Channel, model: pb.ModelRef, who: str, me: pb.Hello, stall_s: float
    ) -> None:
        self.who = who
        self._stub = control(channel)
        self._model = model
        self._me = me
        self._stall_s = stall_s

    async def everything(self) -> list[pb.HeldModel]:
        """What the peer has now, by its own word: of the model, or of every one if it has no digest."""
        with translated(self.who):
            reply: pb.HaveReply = await self._stub.Have(
                pb.HaveRequest(hello=self._me, model=self._model), timeout=self._stall_s
            )
        return list(reply.models)

    async def held(self) -> pb.HeldModel:
        """What the peer has of the model now."""
        models = await self.everything()
        held = next((each for each in models if each.model.digest == self._model.digest), None)
        if held is None:
            raise NotFound(f"{self.who} does not have {self._model.name or 'this model'}")
        return held

    async def listing(self) -> Listing:
        """The peer's files and headers; refused unless they are those of the model's digest."""
        held = await self.held()
        sizes = check_listing(((file.path, file.size) for file in held.files), self.who)
        config = await self.read(CONFIG, 0, sizes[CONFIG], sizes[CONFIG])
        names = [name for name in sizes if is_weights(name)]
        room = _Room(MAX_HEADERS_BYTES, self.who)
        slots = asyncio.Semaphore(HEADERS_AT_ONCE)

        async def one(name: str) -> tuple[Header, bytes]:
            async with slots:
                return await self._header(name, sizes[name], room)

        headers = await together([one(name) for name in names])
        digest = model_digest(config, (header.sha256 for header, _ in headers))
        if digest != self._model.digest:
            raise BadData(
                f"{self.who} sent config.json and headers of another model: their digest is {digest[:16]}…, "
                f"not {self._model.digest[:16]}…",
                hint="Make the plan again, or look at the files there.",
            )
        sha256 = {
            file.path: file.sha256 for file in held.files if is_small(file.path) or is_digest(file.sha256)
        }
        return Listing(sizes, sha256, config, dict(zip(names, headers, strict=True)))

    async def read(self, name: str, start: int, end: int, size: int) -> bytes:
        """A few bytes, into memory."""
        found = bytearray()
        async with aclosing(self.stream(name, start, end, size)) as stream:
            async for _, data in stream:
                found += data
        return bytes(found)

    async def stream(
        self, name: str, start: int, end: int, size: int
    ) -> AsyncGenerator[tuple[int, bytearray], None]:
        """Bytes `start` to `end` of a file of `size` bytes: (place, bytes) by piece, each one checked."""
        call = self._stub.Weights(
            pb.WeightsRequest(hello=self._me, model=self._model, path=name, offset=start, size=end - start)
        )
        at, begun, data = start, start, bytearray()
        try:
            while at < end:
                message = await self._next(call, name, at)
                piece = pieces.piece_of(at + 1, size)
                stop = at + len(message.data)
                if message.offset != at or not at < stop <= min(end, piece[1]) or stop - at > MESSAGE_BYTES:
                    raise BadData(
                        f"{self.who} sent bytes of {name} that were not asked for "
                        f"({message.offset} to {message.offset + len(message.data)} at {at})"
                    )
                data += message.data
                at = stop
                if at == piece[1] or at == end:
                    await asyncio.to_thread(self._check, name, begun, data, message.sha256)
                    yield begun, data
                    begun, data = at, bytearray()
        finally:
            call.cancel()

    async def _next(self, call: Any, name: str, at: int) -> pb.WeightsPiece:
        try:
            async with asyncio.timeout(self._stall_s):
                with translated(self.who):
                    message = await call.read()
        except TimeoutError as error:
            raise TryAgain(
                f"{self.who} has sent nothing of {name} for {self._stall_s:g} s",
                hint="Try again: what came is kept.",
            ) from error
        if message is grpc.aio.EOF:
            raise Unavailable(
                f"{self.who} stopped sending {name} at byte {at}", hint="Try again: what came is kept."
            )
        assert isinstance(message, pb.WeightsPiece)
        return message

    def _check(self, name: str, start: int, data: bytearray, said: bytes) -> None:
        if hashlib.sha256(data).digest() != said:
            raise BadData(
                f"{self.who} sent a bad piece of {name}: bytes {start} to {start + len(data)} are not what "
                "their digest says",
                hint="Nothing of it was kept. Try again, or fetch from elsewhere.",
            )

    async def _header(self, name: str, size: int, room: "_Room") -> tuple[Header, bytes]:
        prefix = await self.read(name, 0, min(8, size), size)
        try:
            length = header_length(prefix, file=name, size=size)
            room.take(length)
            data = prefix + (await self.read(name, 8, 8 + length, size) if length else b"")
            return await asyncio.to_thread(parse_header, data, file=name, size=size), data
        except BadData as error:
            if self.who in error.message:
                raise
            raise BadData(f"{self.who}: {error.message}", hint=error.hint) from error


class _Room:
    """How much of one peer's headers is taken into memory."""

    def __init__(self, left_bytes: int, who: str) -> None:
        self._left_bytes = left_bytes
        self._who = who

    def take(self, size: int) -> None:
        self._left_bytes -= size
        if self._left_bytes < 0:
            raise BadData(f"the headers that {self._who} announces have more than {MAX_HEADERS_BYTES} bytes")


async def together(jobs: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All of them side by side; the first failure ends the others, and is the one that is raised."""
    tasks = [asyncio.create_task(job) for job in jobs]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
