"""Key files: text with a version line and one or two secrets, readable by their owner alone.

    exo.key/1
    # comments start with a hash
    <the key>             43 characters of base64url
    <the previous key>    during a rotation only

Checked the way ssh checks its keys: a regular file, owned by this user, closed to everybody else,
no symbolic link. No message ever holds a part of the content. Knows nothing of what a key is for,
nor which file is meant for what.
"""

import base64
import errno
import fcntl
import os
import re
import secrets as randomness
import shlex
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from exo_cli.errors import (
    BadData,
    CannotCreate,
    ExoError,
    InputOutput,
    NotAuthorised,
    NotFound,
    VersionMismatch,
)
from exo_cli.trust.derive import SECRET_BYTES

HEADER: Final = "exo.key/1"
MAX_BYTES: Final = 4096
MAX_KEYS: Final = 2

_COMMENT: Final = "# Secret: whoever holds this file can run, stop and read everything in the cluster."
_VERSION: Final = re.compile(r"exo\.key/([1-9][0-9]{0,5})")
_SECRET: Final = re.compile(r"[A-Za-z0-9_-]{43}")
_GET_IT_AGAIN: Final = "Get it again from a machine of the cluster: exo key export"


def new_secret() -> bytes:
    return randomness.token_bytes(SECRET_BYTES)


def encode(secrets: Sequence[bytes]) -> bytes:
    """The content of a key file; the first secret is the primary."""
    lines = (HEADER, _COMMENT, *(_text_of(secret) for secret in secrets))
    return "".join(f"{line}\n" for line in lines).encode("ascii")


def decode(data: bytes, where: str) -> tuple[bytes, ...]:
    """The secrets in the content of a key file; `where` names its origin in errors."""
    if len(data) > MAX_BYTES:
        raise BadData(f"{where} is larger than {MAX_BYTES} bytes: it is not a key file", hint=_GET_IT_AGAIN)
    # The errors below are raised `from None`: what they replace may quote the content.
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError:
        raise BadData(f"{where} is not a key file: it is not text", hint=_GET_IT_AGAIN) from None
    numbered = [(number, line.strip(" \t\r")) for number, line in enumerate(text.split("\n"), 1)]
    lines = [(number, line) for number, line in numbered if line and not line.startswith("#")]
    if not lines:
        raise BadData(f"{where} is empty", hint=_GET_IT_AGAIN)
    _check_version(lines[0][1], where)
    if not 1 <= len(lines) - 1 <= MAX_KEYS:
        raise BadData(f"{where} holds {len(lines) - 1} keys; one or two were expected", hint=_GET_IT_AGAIN)
    found = tuple(_secret_in(line, where, number) for number, line in lines[1:])
    if len(set(found)) != len(found):
        raise BadData(f"{where} holds the same key twice", hint=_GET_IT_AGAIN)
    return found


def read(path: Path) -> tuple[bytes, ...]:
    """The secrets in the file; NotFound where there is none, NotAuthorised where others can read it."""
    try:
        # O_NONBLOCK: opening a named pipe must not wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            _check(path, os.fstat(descriptor))
            data = os.read(descriptor, MAX_BYTES + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _cannot_read(path, error) from error
    return decode(data, str(path))


def create(path: Path, secrets: Sequence[bytes]) -> None:
    """A new file, whole from its first moment; CannotCreate where there is one already."""
    try:
        _make_directory(path.parent)
        temporary = _write_beside(path, encode(secrets))
        try:
            os.link(temporary, path)
        finally:
            temporary.unlink()
        _sync_directory(path.parent)
    except FileExistsError:
        raise CannotCreate(f"{path} exists already", hint="Name another file, or remove it first.") from None
    except OSError as error:
        raise _cannot_write(path, error) from error


def replace(path: Path, secrets: Sequence[bytes]) -> None:
    """The file with other secrets: a reader sees the old ones or the new ones."""
    try:
        _make_directory(path.parent)
        temporary = _write_beside(path, encode(secrets))
        try:
            os.replace(temporary, path)
        except OSError:
            temporary.unlink()
            raise
        _sync_directory(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Read, decide and write undisturbed: a second change of a key in this directory waits."""
    try:
        _make_directory(path.parent)
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        # Some network file systems cannot lock a directory; a replace is atomic there all the same.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _text_of(secret: bytes) -> str:
    return base64.urlsafe_b64encode(secret).decode("ascii").rstrip("=")


def _check_version(line: str, where: str) -> None:
    if line == HEADER:
        return
    if _VERSION.fullmatch(line):
        raise VersionMismatch(
            f"{where} is of another version of the key format; this exo reads {HEADER}",
            hint="Install the same version of exo on every machine.",
        )
    raise BadData(f"{where} is not a key file: it does not start with {HEADER}", hint=_GET_IT_AGAIN)


def _secret_in(line: str, where: str, number: int) -> bytes:
    if _SECRET.fullmatch(line):
        secret = base64.urlsafe_b64decode(line + "=")
        # 43 characters carry two bits too many: only one spelling of each secret is accepted.
        if _text_of(secret) == line:
            return secret
    raise BadData(f"{where}: line {number} is not a key", hint=_GET_IT_AGAIN)


def _check(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise BadData(f"{path} is not a regular file", hint=_GET_IT_AGAIN)
    quoted = shlex.quote(str(path))
    if found.st_uid != os.geteuid():
        raise NotAuthorised(
            f"{path} belongs to another user of this machine (uid {found.st_uid})",
            hint=f"sudo chown {os.geteuid()} {quoted}, or run exo as the user it belongs to.",
        )
    if found.st_mode & 0o077:
        mode = stat.S_IMODE(found.st_mode)
        raise NotAuthorised(f"{path} is open to other users (mode {mode:04o})", hint=f"chmod 600 {quoted}")


def _cannot_read(path: Path, error: OSError) -> ExoError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return NotFound(
            f"there is no key file {path}", hint="Make a key (exo key new) or get one (exo key join)."
        )
    # What O_NOFOLLOW says of a link: ELOOP, and EMLINK on some BSDs.
    if error.errno in (errno.ELOOP, errno.EMLINK):
        return NotAuthorised(
            f"{path} is a symbolic link, which may point to anybody's file",
            hint="Put the key file itself there.",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return NotAuthorised(
            f"{path} is closed to this user", hint=f"See who owns it: ls -l {shlex.quote(str(path))}"
        )
    return InputOutput(
        f"cannot read {path}: {_reason(error)}", hint="Run it again; check the disk if it repeats."
    )


def _cannot_write(path: Path, error: OSError) -> CannotCreate:
    return CannotCreate(
        f"cannot write {path}: {_reason(error)}",
        hint=f"See who may write there: ls -ld {shlex.quote(str(path.parent))}",
    )


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _make_directory(directory: Path) -> None:
    if directory.is_dir():
        return
    directory.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        directory.mkdir(mode=0o700)
        # The umask may have taken more away than it should.
        directory.chmod(0o700)


def _write_beside(path: Path, data: bytes) -> Path:
    """`data` on the disk, in a new file of mode 0600 in the directory of `path`."""
    temporary = path.parent / f".{path.name}.{randomness.token_hex(6)}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    except OSError:
        temporary.unlink()
        raise
    finally:
        os.close(descriptor)
    return temporary


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # Not every file system can; the file itself is on the disk.
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
