"""One tree of errors, and the one table of exit codes.

    ExoError
    ├── UsageProblem        2   the command line is wrong
    ├── BadData            65   a file or message does not say what it must
    ├── NotFound           66   what was asked for is not here
    ├── Unavailable        69   a peer or service does not answer
    ├── Internal           70   an invariant of ours broke
    ├── SystemFailure      71   the operating system said no
    ├── CannotCreate       73   an output cannot be written
    ├── InputOutput        74   reading or writing failed half way
    ├── TryAgain           75   timed out, busy, or a lock is held
    ├── VersionMismatch    76   the other side speaks another version
    ├── NotAuthorised      77   keys or certificates do not match
    ├── Misconfigured      78   a setting or file of ours is wrong
    ├── DoesNotFit         79   no plan fits the machines
    └── CheckFailed        80   the check says no

This module knows nothing of terminals, JSON or gRPC: `cli` and the service edges translate.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum


class Exit(IntEnum):
    """What a process says when it ends; `exo help exit-codes` prints this table."""

    OK = 0
    BUG = 1
    USAGE = 2
    BAD_DATA = 65
    NOT_FOUND = 66
    UNAVAILABLE = 69
    INTERNAL = 70
    SYSTEM = 71
    CANNOT_CREATE = 73
    INPUT_OUTPUT = 74
    TRY_AGAIN = 75
    VERSION = 76
    NOT_AUTHORISED = 77
    CONFIGURATION = 78
    DOES_NOT_FIT = 79
    CHECK_FAILED = 80
    INTERRUPTED = 130
    BROKEN_PIPE = 141
    TERMINATED = 143


MEANINGS: dict[Exit, str] = {
    Exit.OK: "it worked",
    Exit.BUG: "a bug in exo: run again with EXO_DEBUG=1 and report what it prints",
    Exit.USAGE: "the command line is wrong",
    Exit.BAD_DATA: "a file or message does not hold what it must",
    Exit.NOT_FOUND: "a model, file or node that was named is not there",
    Exit.UNAVAILABLE: "a node or service does not answer",
    Exit.INTERNAL: "an inner check failed; nothing was changed",
    Exit.SYSTEM: "the operating system refused (memory, devices, sockets)",
    Exit.CANNOT_CREATE: "an output cannot be created (disk full, permission, it exists)",
    Exit.INPUT_OUTPUT: "reading or writing failed half way",
    Exit.TRY_AGAIN: "not now: a timeout, a busy node or a held lock",
    Exit.VERSION: "the other side or file is of another version",
    Exit.NOT_AUTHORISED: "the cluster keys do not match, or a secret is exposed",
    Exit.CONFIGURATION: "a setting is wrong or a needed part is not installed",
    Exit.DOES_NOT_FIT: "no plan fits the machines",
    Exit.CHECK_FAILED: "the check that was asked for says no",
    Exit.INTERRUPTED: "stopped by Ctrl-C",
    Exit.BROKEN_PIPE: "the reader of the output went away",
    Exit.TERMINATED: "stopped by a second SIGTERM",
}


class ExoError(Exception):
    """Something to tell the user: one sentence, a hint with the next step, an exit code."""

    exit: Exit = Exit.BUG
    code: str = "bug"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@contextmanager
def hinting(hint: str) -> Iterator[None]:
    """Errors that say no next step say this one."""
    try:
        yield
    except ExoError as error:
        error.hint = error.hint or hint
        raise


class UsageProblem(ExoError):
    exit = Exit.USAGE
    code = "usage"


class BadData(ExoError):
    exit = Exit.BAD_DATA
    code = "bad-data"


class NotFound(ExoError):
    exit = Exit.NOT_FOUND
    code = "not-found"


class Unavailable(ExoError):
    exit = Exit.UNAVAILABLE
    code = "unavailable"


class Internal(ExoError):
    exit = Exit.INTERNAL
    code = "internal"


class SystemFailure(ExoError):
    exit = Exit.SYSTEM
    code = "system"


class CannotCreate(ExoError):
    exit = Exit.CANNOT_CREATE
    code = "cannot-create"


class InputOutput(ExoError):
    exit = Exit.INPUT_OUTPUT
    code = "input-output"


class TryAgain(ExoError):
    exit = Exit.TRY_AGAIN
    code = "try-again"


class VersionMismatch(ExoError):
    exit = Exit.VERSION
    code = "version"


class NotAuthorised(ExoError):
    exit = Exit.NOT_AUTHORISED
    code = "not-authorised"


class Misconfigured(ExoError):
    exit = Exit.CONFIGURATION
    code = "configuration"


class DoesNotFit(ExoError):
    exit = Exit.DOES_NOT_FIT
    code = "does-not-fit"


class CheckFailed(ExoError):
    exit = Exit.CHECK_FAILED
    code = "check-failed"
