"""Our errors as gRPC statuses and back, so that an exit code survives the wire.

The status code is for everybody's eyes; which of our errors it was, and its hint, travel beside it.
Knows nothing of which call failed; the caller says who was asked.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NoReturn

import grpc
import grpc.aio

from exo_cli import errors
from exo_cli.errors import (
    BadData,
    DoesNotFit,
    ExoError,
    InputOutput,
    Internal,
    NotAuthorised,
    NotFound,
    TryAgain,
    Unavailable,
    UsageProblem,
    VersionMismatch,
)

MAX_TEXT_BYTES: Final = 1000
"""Of a message or a hint: together they must fit into the headers of an answer."""

_CODE: Final = "exo-error"
_HINT: Final = "exo-hint-bin"
# gRPC's words for a write that came too late.
_BROKE: Final = "Internal error from Core"

# In this order: an answer of a program that does not say more stands for the first.
_PAIRS: Final[tuple[tuple[type[ExoError], grpc.StatusCode], ...]] = (
    (VersionMismatch, grpc.StatusCode.FAILED_PRECONDITION),
    (NotFound, grpc.StatusCode.NOT_FOUND),
    (NotAuthorised, grpc.StatusCode.PERMISSION_DENIED),
    (NotAuthorised, grpc.StatusCode.UNAUTHENTICATED),
    (TryAgain, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (DoesNotFit, grpc.StatusCode.OUT_OF_RANGE),
    (BadData, grpc.StatusCode.INVALID_ARGUMENT),
    (Unavailable, grpc.StatusCode.UNAVAILABLE),
    # What a server that stops does to the calls it still has.
    (Unavailable, grpc.StatusCode.CANCELLED),
    (InputOutput, grpc.StatusCode.DATA_LOSS),
    (UsageProblem, grpc.StatusCode.INVALID_ARGUMENT),
)
_KINDS: Final[dict[str, type[ExoError]]] = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, ExoError) and kind is not ExoError
}


def code_of(error: ExoError) -> grpc.StatusCode:
    """The status that a service answers with."""
    return next((code for kind, code in _PAIRS if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


async def abort(context: Any, error: ExoError) -> NoReturn:
    """End a call with one of our errors; for services."""
    beside: list[tuple[str, str | bytes]] = [(_CODE, error.code)]
    if error.hint:
        beside.append((_HINT, _bounded(error.hint)))
    await context.abort(code_of(error), _bounded(error.message).decode(), tuple(beside))
    raise AssertionError("abort returns never")


def error_of(status: grpc.aio.AioRpcError, who: str) -> ExoError:
    """The error that a status stands for, with the name of whoever was asked."""
    code, details = status.code(), status.details() or "no reason given"
    beside = dict(status.trailing_metadata() or ())
    said = _KINDS.get(str(beside.get(_CODE)))
    if said is not None:
        hint = beside.get(_HINT)
        text = hint.decode(errors="replace") if isinstance(hint, bytes) else None
        return said(f"{who}: {details}", hint=text)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return TryAgain(f"{who} did not answer in time", hint="exo discover shows whether it is still there.")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return VersionMismatch(
            f"{who} does not know this request", hint="Install the same version of exo on every machine."
        )
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        return BadData(f"{who} sent a message that is too large")
    kind = next((kind for kind, known in _PAIRS if known is code), Internal)
    if details == _BROKE:
        kind, details = Unavailable, "the connection broke"
    if kind is Unavailable:
        return Unavailable(f"{who} cannot be reached: {details}", hint="exo discover --explain says why.")
    return kind(f"{who}: {details}")


@contextmanager
def translated(who: str) -> Iterator[None]:
    """Turn a failed call into one of our errors."""
    try:
        yield
    except grpc.aio.AioRpcError as status:
        raise error_of(status, who) from status


def _bounded(text: str) -> bytes:
    return text.encode(errors="replace")[:MAX_TEXT_BYTES].decode(errors="ignore").encode()
