"""An engine process that is started before anybody says what it is for, while its node still imports.

For a node that somebody started for one stage. Imports little, since it runs before all else. Knows nothing
of stages.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from exo_cli.errors import SystemFailure
from exo_cli.shard.cores import thread_environment, usable_cores
from exo_cli.shard.engine import Surroundings, spawn


@dataclass(slots=True)
class Ahead:
    """A process that waits for its first line, until somebody takes it."""

    surroundings: Surroundings
    _process: asyncio.subprocess.Process | None

    async def take(self, surroundings: Surroundings) -> asyncio.subprocess.Process | None:
        """The process, once, if it runs and has what the engine shall have; else none, and it has ended."""
        process, self._process = self._process, None
        if process is None:
            return None
        if self.surroundings.environment == surroundings.environment and process.returncode is None:
            return process
        await _end(process)
        return None

    async def close(self) -> None:
        """End it if nobody took it."""
        process, self._process = self._process, None
        if process is not None:
            await _end(process)


def alone(threads: int | None, cores: frozenset[int]) -> Surroundings:
    """For an engine that has this machine to itself."""
    count = len(cores or usable_cores())
    return Surroundings(thread_environment(threads, count, 1, os.environ), cores)


@asynccontextmanager
async def ahead(surroundings: Surroundings) -> AsyncIterator[Ahead]:
    """Start it; where the system does not let us, there is nothing to take."""
    process = None
    with contextlib.suppress(SystemFailure):
        process = await spawn(surroundings, ahead=True)
    found = Ahead(surroundings, process)
    try:
        yield found
    finally:
        await found.close()


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()
