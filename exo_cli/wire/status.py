"""Our errors as gRPC statuses and back, so that an exit code survives the wire.

Knows nothing of which call failed; the caller says who was asked.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import grpc.aio

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

_PAIRS: tuple[tuple[type[ExoError], grpc.StatusCode], ...] = (
    (VersionMismatch, grpc.StatusCode.FAILED_PRECONDITION),
    (NotFound, grpc.StatusCode.NOT_FOUND),
    (NotAuthorised, grpc.StatusCode.PERMISSION_DENIED),
    (TryAgain, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (DoesNotFit, grpc.StatusCode.OUT_OF_RANGE),
    (BadData, grpc.StatusCode.INVALID_ARGUMENT),
    (Unavailable, grpc.StatusCode.UNAVAILABLE),
    (InputOutput, grpc.StatusCode.DATA_LOSS),
    (UsageProblem, grpc.StatusCode.INVALID_ARGUMENT),
)


def code_of(error: ExoError) -> grpc.StatusCode:
    """The status that a service answers with."""
    return next((code for kind, code in _PAIRS if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


def error_of(status: grpc.aio.AioRpcError, who: str) -> ExoError:
    """The error that a status stands for, with the name of whoever was asked."""
    code, details = status.code(), status.details() or "no reason given"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return TryAgain(f"{who} did not answer in time", hint="exo discover shows whether it is still there.")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return VersionMismatch(
            f"{who} does not know this request", hint="Install the same version of exo on every machine."
        )
    kind = next((kind for kind, known in _PAIRS if known is code), Internal)
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
