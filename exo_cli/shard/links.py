"""The streams that a stage opens: to the next stage, or from the last one to the first.

A link lives as long as its stream; what is sent after it broke opens another. Lives on the event loop's
thread. Knows nothing of requests: what comes back, and that a link is lost, is told to its owner.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, cast

import grpc.aio

from exo_cli.errors import ExoError
from exo_cli.shard.outbox import Outbox
from exo_cli.trust.authority import Leaf
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire import exo_pb2_grpc as glue
from exo_cli.wire import frames
from exo_cli.wire.channels import leaf_channel

LINK_BYTES: Final = 2 * frames.MAX_FRAME_BYTES
"""What may wait for a stage that does not read: the largest frame, and some."""

Address = tuple[str, str]
"""Where a stage is reached, and its id."""


@dataclass(slots=True)
class _Link:
    to: Address
    out: Outbox[pb.Down] = field(default_factory=lambda: Outbox(LINK_BYTES))
    task: "asyncio.Task[None] | None" = None


class Links:
    """All that one stage has open."""

    def __init__(
        self,
        us: pb.Hello,
        leaf: Leaf,
        answer: Callable[[pb.Up], None],
        lost: Callable[[Address, str], None],
    ) -> None:
        self._us = us
        self._leaf = leaf
        self._answer = answer
        self._lost = lost
        self._links: dict[Address, _Link] = {}

    def send(self, to: Address, role: "pb.FlowStart.Role", message: pb.Down, size: int | None = None) -> None:
        """Send after what waits already; one that does not read is given up. `size` spares counting it."""
        link = self._links.get(to)
        if link is None or (link.task is not None and link.task.done()):
            link = self._links[to] = _Link(to)
            link.task = asyncio.create_task(self._run(link, role))
        if link.out.put(message, size):
            return
        if self._links.pop(to, None) is link and link.task is not None:
            # Its writer waits for a reader that does not read.
            link.task.cancel()
            self._lost(to, "it does not read")

    def close(self) -> None:
        for link in self._links.values():
            if link.task is not None:
                link.task.cancel()

    async def _run(self, link: _Link, role: "pb.FlowStart.Role") -> None:
        """Carry messages to another stage until the stream breaks."""
        reason = "it ended the stream"
        endpoint, stage_id = link.to
        channel = leaf_channel(endpoint, self._leaf)
        try:
            call = cast(Any, glue).StageStub(channel).Flow()
            start = pb.FlowStart(hello=self._us, stage_id=stage_id, role=role)
            await call.write(pb.Down(start=start))
            writer = asyncio.create_task(_write(call, link.out))
            try:
                async for message in call:
                    self._answer(message)
            finally:
                writer.cancel()
        except grpc.aio.AioRpcError as error:
            reason = error.details() or str(error.code())
        except asyncio.InvalidStateError:
            pass  # it ended before it was greeted
        except ExoError as error:
            reason = error.message
        finally:
            await channel.close()
        if self._links.get(link.to) is link:
            del self._links[link.to]
        self._lost(link.to, reason)


async def _write(call: Any, out: Outbox[pb.Down]) -> None:
    # What ended the stream is the reader's to tell.
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        while (message := await out.get()) is not None:
            await call.write(message)
