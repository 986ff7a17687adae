"""Have and Weights: what this machine holds of a model, and bytes of it, for a neighbour.

A file is opened only if Have listed it under that very name, never as the wire spells it. Bytes go in
messages of 1 MiB that end where pieces end; the message that ends a piece, or all that was asked for,
carries the digest of what of this piece was sent. Knows nothing of who may ask: the channel has seen to that.
"""

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final, Protocol

from exo_cli.errors import BadData, ExoError, InputOutput, NotFound, TryAgain
from exo_cli.fetch import pieces
from exo_cli.fetch.held import Held, HeldFile
from exo_cli.fetch.names import is_digest, is_small
from exo_cli.fetch.pieces import MESSAGE_BYTES, PIECE_BYTES
from exo_cli.models.safetensors import shown
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.exo_pb2_grpc import ControlServicer
from exo_cli.wire.hello import check_hello
from exo_cli.wire.status import abort

MAX_STREAMS: Final = 64
"""At once, of all neighbours together; each holds one message in memory."""
STALL_S: Final = 60.0
"""A neighbour that takes nothing for so long loses its stream."""


class Shelf(Protocol):
    """What is here; `stores.Stores` is one, `OneModel` another. Both may read a disk."""

    def held(self, digest: str) -> Held | None: ...

    def everything(self) -> list[Held]: ...


class OneModel:
    """A shelf with one model on it."""

    def __init__(self, held: Held) -> None:
        self._held = held

    def held(self, digest: str) -> Held | None:
        return self._held if digest == self._held.digest else None

    def everything(self) -> list[Held]:
        return [self._held]


class WeightsServicer(ControlServicer):
    """The two calls; whoever inherits them sets `shelf`."""

    shelf: Shelf
    _streams = 0

    async def Have(self, request: pb.HaveRequest, context: Any) -> pb.HaveReply:  # noqa: N802
        try:
            check_hello(request.hello, "the caller")
            return await asyncio.to_thread(have, self.shelf, request.model.digest)
        except ExoError as error:
            await abort(context, error)

    async def Weights(self, request: pb.WeightsRequest, context: Any) -> None:  # noqa: N802
        try:
            check_hello(request.hello, "the caller")
            if self._streams >= MAX_STREAMS:
                raise TryAgain(f"{MAX_STREAMS} neighbours are fetching from here", hint="Try again later.")
            self._streams += 1
            try:
                async with aclosing(weights(self.shelf, request)) as messages:
                    async for message in messages:
                        async with asyncio.timeout(STALL_S):
                            await context.write(message)
            finally:
                self._streams -= 1
        except TimeoutError:
            await abort(context, TryAgain(f"nothing was taken for {STALL_S:g} s"))
        except ExoError as error:
            await abort(context, error)


def have(shelf: Shelf, digest: str) -> pb.HaveReply:
    """What the shelf holds of one model, or of all of them without a digest."""
    if digest and not is_digest(digest):
        raise BadData(f"{shown(digest)} is no digest of a model")
    if not digest:
        return pb.HaveReply(models=[_listed(held, hashed=False) for held in shelf.everything()])
    one = shelf.held(digest)
    return pb.HaveReply(models=[_listed(one, hashed=True)] if one is not None else [])


async def weights(shelf: Shelf, request: pb.WeightsRequest) -> AsyncGenerator[pb.WeightsPiece, None]:
    """The bytes that a request asks for."""
    held, file = await asyncio.to_thread(_asked_for, shelf, request)
    descriptor = await asyncio.to_thread(held.open, file)
    try:
        digest = hashlib.sha256()
        at, end = request.offset, request.offset + request.size
        for _, stop in pieces.cut(at, end, MESSAGE_BYTES):
            data = await asyncio.to_thread(_read, descriptor, file, at, stop, digest)
            over = stop in (end, pieces.piece_of(stop, file.size)[1])
            yield pb.WeightsPiece(offset=at, data=data, sha256=digest.digest() if over else b"")
            if over:
                digest = hashlib.sha256()
            at = stop
    finally:
        os.close(descriptor)


def _asked_for(shelf: Shelf, request: pb.WeightsRequest) -> tuple[Held, HeldFile]:
    if not is_digest(request.model.digest):
        raise BadData(f"{shown(request.model.digest)} is no digest of a model")
    held = shelf.held(request.model.digest)
    if held is None:
        raise NotFound(
            "this model is not here", hint="exo discover lists the nodes; another one may have it."
        )
    file = held.files.get(request.path)
    if file is None:
        raise NotFound(f"this model has no file {shown(request.path)} here")
    end = request.offset + request.size
    if request.size == 0 or end > file.size:
        raise BadData(f"{file.name} has {file.size} bytes; bytes {request.offset} to {end} were asked for")
    if not pieces.covers(file.ranges, request.offset, end):
        raise NotFound(f"bytes {request.offset} to {end} of {file.name} are not here")
    return held, file


def _read(descriptor: int, file: HeldFile, start: int, end: int, digest: Any) -> bytes:
    try:
        data = os.pread(descriptor, end - start, start)
    except OSError as error:
        raise InputOutput(f"{file.name} cannot be read: {(error.strerror or '').lower()}") from error
    if len(data) < end - start:
        raise InputOutput(f"{file.name} became shorter while it was being read")
    if digest is not None:
        digest.update(data)
    return data


def _listed(held: Held, *, hashed: bool) -> pb.HeldModel:
    return pb.HeldModel(
        model=pb.ModelRef(name=held.name, revision=held.revision, digest=held.digest),
        files=[
            pb.FilePieces(
                path=file.name,
                size=file.size,
                sha256=_named(held, file) if hashed else "",
                map=pieces.bitmap(file.ranges, file.size),
                edges=[edge for each in file.ranges for edge in each],
            )
            for file in held.files.values()
        ],
    )


def _named(held: Held, file: HeldFile) -> str:
    """The sha256 of a file: of a small one as it lies here, of weights as the hub told."""
    if is_small(file.name):
        return _sha256(held, file)
    return file.etag if is_digest(file.etag) else ""


def _sha256(held: Held, file: HeldFile) -> str:
    """Of a small file that is here whole."""
    if not pieces.covers(file.ranges, 0, file.size):
        return ""
    descriptor = held.open(file)
    try:
        digest = hashlib.sha256()
        for start, end in pieces.cut(0, file.size, PIECE_BYTES):
            _read(descriptor, file, start, end, digest)
        return digest.hexdigest()
    finally:
        os.close(descriptor)
