"""What this node's engine can run, learned from a throw-away process after the node is ready.

Nobody waits for it, and until it is known nothing is said. A trial that ends the process is what cannot be
run; the ones after it are tried in another one. Knows nothing of MLX.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from exo_cli.cluster.describe import Self
from exo_cli.schemas.first_use import shared

TIMEOUT_S: Final = 120.0
"""A backend that compiles its kernels at first use takes its time."""
MAX_TRIES: Final = 8
"""Processes; each ends at one format at most."""
_NICE: Final = 19
_COMMAND: Final = (sys.executable, "-m", "exo_cli.engine.abilities")


class _Said(msgspec.Struct, frozen=True):
    """A line of it."""

    trying: str | None = None
    format: str | None = None
    family: str | None = None
    trouble: str | None = None


@dataclass(slots=True)
class _Found:
    formats: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    tried: list[str] = field(default_factory=list)


async def learn(me: Self, command: Sequence[str] = _COMMAND) -> None:
    """Tell `me`; what cannot be learned here stays unsaid."""
    found = _Found()
    for _ in range(MAX_TRIES):
        try:
            async with asyncio.timeout(TIMEOUT_S):
                unfinished, code = await _ask((*command, *found.tried), found)
        except (TimeoutError, OSError, msgspec.MsgspecError):
            return
        if unfinished is not None:
            found.tried.append(unfinished)
            found.refused.append(f"{unfinished}: MLX ended when it was tried")
        elif code == 0:
            me.formats, me.refused = tuple(found.formats), tuple(found.refused)
            return
        else:
            return


async def _ask(command: Sequence[str], found: _Found) -> tuple[str | None, int]:
    """One process: what it was trying when it ended, and how it ended."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,  # with it the process ends
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        # Whoever is served comes first.
        with contextlib.suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, process.pid, _NICE)
        trying: str | None = None
        async for line in process.stdout:
            said = msgspec.json.decode(line, type=shared(_Said))
            trying = said.trying
            _note(said, found)
        return trying, await process.wait()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            # To the end, or a pipe that is full would never be seen to close.
            while await process.stdout.read(1 << 16):
                pass
            await process.wait()


def _note(said: _Said, found: _Found) -> None:
    if said.family is not None:
        line = f"{said.family}: {said.trouble}"
        if line not in found.refused:
            found.refused.append(line)
    elif said.format is not None:
        found.tried.append(said.format)
        if said.trouble is None:
            found.formats.append(said.format)
        else:
            found.refused.append(f"{said.format}: {said.trouble}")
