"""This machine alone: a serve-shard of the driver's own, which nobody is told of and which dies with it.

It listens on sockets in a directory that only this user may enter, and has none of any other kind. Knows
nothing of models.
"""

import asyncio
import contextlib
import fcntl
import os
import re
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec

from exo_cli.cluster.pairs import split_endpoint
from exo_cli.cluster.survey import describe_at
from exo_cli.errors import Unavailable
from exo_cli.schemas.events import ReadyLine
from exo_cli.schemas.first_use import shared
from exo_cli.schemas.topology import Node
from exo_cli.trust.keyring import KeyringSource

START_TIMEOUT_S: Final = 90.0
STOP_TIMEOUT_S: Final = 3.0
_LOOK_S: Final = 0.02
_ABOUT_OTHERS: Final = frozenset(("EXO_PEER", "EXO_INTERFACE", "EXO_NO_INTERFACE"))
_PREFIX: Final = "exo-run-"
_SOCKET: Final = "node"
_LONGEST: Final = 100
"""What the name of a socket may have, in bytes; some systems allow no more than 103."""
_PLAIN: Final = re.compile(r"[A-Za-z0-9/._ +-]+")
_SHORT: Final = "/tmp"  # noqa: S108 - only for a directory that is made there under a new name


def command(directory: Path, *, insecure: bool, options: Sequence[str] = ()) -> list[str]:
    """What is run: a node on a socket of its own, with its files in `directory`, and further options."""
    words = ["serve-shard", "--name", "private", "--listen", f"unix:{directory / _SOCKET}"]
    files = ["--ready-file", str(directory / "ready"), "--topology", str(directory / "topology.json")]
    return [sys.executable, "-m", "exo_cli", *words, *files, *options, *(["--insecure"] if insecure else [])]


@asynccontextmanager
async def private_node(
    source: KeyringSource, *, options: Sequence[str] = (), run: Sequence[str] | None = None
) -> AsyncIterator[Node]:
    """A node of our own; `run` is another command to start it, which writes the same ready file."""
    _sweep()
    directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_base()))
    held = _hold(directory)
    try:
        words = run or command(directory, insecure=source.current().kind == "insecure", options=options)
        errors = os.open(directory / "errors", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "exo_cli.drive.tether", str(os.getpid()), *words),
                # The pipe tells it that we are gone, where the kernel does not.
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=errors,
                # Its name is not to be another node's, and Ctrl-C is ours to understand.
                env={**_surroundings(), "XDG_STATE_HOME": str(directory)},
                start_new_session=True,
            )
        finally:
            os.close(errors)
        try:
            yield await _described(child, directory, source)
        finally:
            await _stopped(child)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(held)


def _surroundings() -> dict[str, str]:
    """Our own, without what says whom a node is to talk to."""
    return {name: value for name, value in os.environ.items() if name not in _ABOUT_OTHERS}


def _base() -> str:
    """Where temporary directories are; elsewhere if that place's name is nothing for a socket's."""
    usual = tempfile.gettempdir()
    longest = f"{usual}/{_PREFIX}12345678/{_SOCKET}:4194304"
    # gRPC takes the name for a part of an address, in which some characters mean something.
    return usual if len(longest) <= _LONGEST and _PLAIN.fullmatch(usual) else _SHORT


def _hold(directory: Path) -> int:
    """A lock that says that the directory is in use; it ends with us."""
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def _sweep() -> None:
    """Remove what drivers left that were killed."""
    for directory in Path(_base()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory, ignore_errors=True)
            finally:
                os.close(descriptor)


async def _described(child: asyncio.subprocess.Process, directory: Path, source: KeyringSource) -> Node:
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            while not (directory / "ready").exists():
                if child.returncode is not None:
                    raise Unavailable(
                        f"this machine's own node did not start: {_last_words(directory)}",
                        hint="exo serve-shard shows more.",
                    )
                await asyncio.sleep(_LOOK_S)
    except TimeoutError:
        raise Unavailable(
            f"this machine's own node did not start within {START_TIMEOUT_S:g} s",
            hint="exo serve-shard shows what it does.",
        ) from None
    ready = msgspec.json.decode((directory / "ready").read_bytes(), type=shared(ReadyLine))
    return await describe_at(*split_endpoint(ready.endpoint), source)


def _last_words(directory: Path) -> str:
    lines = (directory / "errors").read_bytes()[-4096:].decode(errors="replace").splitlines()
    said = [line for line in lines if line.strip() and not line.startswith("hint: ")]
    return said[-1].removeprefix("error: ")[:300] if said else "it said nothing"


async def _stopped(child: asyncio.subprocess.Process) -> None:
    """At once: nobody knew of it, so nobody needs a goodbye. Its engines end with it."""
    if child.stdin is not None:
        child.stdin.close()  # the guard, where there is one, ends what it guards
    if sys.platform == "linux":
        with contextlib.suppress(ProcessLookupError):
            child.kill()
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await child.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()
