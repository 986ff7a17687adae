"""Whether a neighbour lives: a second connection beside the one for frames, which is asked every few seconds.

A frozen process keeps its connections, and its kernel acknowledges what comes for it. Drivers learn of that
by gRPC's keepalive, stages by this. The event loop's thread answers, which computes nothing: a long step is
no silence. Knows nothing of what the other connection carries.
"""

import asyncio
from typing import Final

from exo_cli.wire.pipe import Pipe, PipeEnded

EVERY_S: Final = 3.0
ANSWER_S: Final = 9.0
"""With the time between two questions as long as gRPC's keepalive takes: 12 s."""
SILENCE_S: Final = EVERY_S + ANSWER_S
_GRACE_S: Final = 0.5
"""Whoever was frozen itself finds its time over and the answer there."""


async def ask(pipe: Pipe) -> None:
    """Ask again and again; returns when no answer comes, and raises PipeEnded when none can come."""
    while True:
        pipe.send(b"")
        if await _heard(pipe, ANSWER_S) is None:
            return
        await asyncio.sleep(EVERY_S)


async def answer(pipe: Pipe) -> None:
    """Answer until nobody asks; raises PipeEnded when nobody can."""
    while (said := await _heard(pipe, SILENCE_S)) is not None:
        if said or pipe.waiting_bytes:
            raise PipeEnded("it says more than a pulse does, or does not read")
        pipe.send(b"")


async def _heard(pipe: Pipe, within_s: float) -> bytes | None:
    for patience_s in (within_s, _GRACE_S):
        try:
            async with asyncio.timeout(patience_s):
                return await pipe.next()
        except TimeoutError:
            continue
    return None
