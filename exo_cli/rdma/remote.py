"""The doctor over the network: what a node answers to Diagnose, and asking all nodes at once.

What another node says is a member's claim: names and sizes are checked, and a node that does not answer
is a finding like any other. Knows nothing of how nodes are found.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from exo_cli.errors import BadData, ExoError
from exo_cli.rdma.capture import Capture, Said
from exo_cli.rdma.sources import SOURCES, Platform
from exo_cli.rdma.words import found
from exo_cli.schemas.findings import Finding
from exo_cli.trust.keyring import Keyring
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.channels import dial
from exo_cli.wire.hello import hello
from exo_cli.wire.status import translated
from exo_cli.wire.stubs import control

DIAL_S: Final = 5.0
ANSWER_S: Final = 60.0
FRESH_S: Final = 5.0
"""Whoever asks again within that gets the same answer: nobody keeps a node busy by asking."""
MAX_TEXT_BYTES: Final = 256 << 10
MAX_ERROR_CHARS: Final = 2000
_PLATFORM: Final = "platform"


class Answerer:
    """A node's side: one collection at a time, for everybody who asks meanwhile."""

    def __init__(
        self, collect: Callable[[], Capture], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._collect = collect
        self._clock = clock
        self._lock = asyncio.Lock()
        self._kept: tuple[float, Capture] | None = None

    async def __call__(self, topics: Sequence[str]) -> list[pb.Capture]:
        """The texts of those names, or all; names that are not known here are left out."""
        async with self._lock:
            if self._kept is None or self._clock() - self._kept[0] > FRESH_S:
                capture = await asyncio.to_thread(self._collect)
                self._kept = self._clock(), capture
            capture = self._kept[1]
        return as_messages(capture, topics)


def as_messages(capture: Capture, topics: Sequence[str] = ()) -> list[pb.Capture]:
    texts = {name: said for name, said in capture.texts.items() if not topics or name in topics}
    return [
        pb.Capture(name=_PLATFORM, output=capture.platform.encode()),
        *(
            pb.Capture(
                name=name,
                output=said.output[:MAX_TEXT_BYTES],
                exit=said.exit,
                error=said.error.decode("utf-8", "replace")[:MAX_ERROR_CHARS],
            )
            for name, said in texts.items()
        ),
    ]


def from_messages(node: str, messages: Sequence[pb.Capture]) -> Capture:
    """What a node answered; texts that we do not know are left out."""
    said_platform = next((each.output for each in messages if each.name == _PLATFORM), b"")
    platform: Platform
    if said_platform == b"darwin":
        platform = "darwin"
    elif said_platform == b"linux":
        platform = "linux"
    else:
        raise BadData(f"{node} does not say what system it runs")
    texts = {
        each.name: Said(
            each.exit,
            each.output[:MAX_TEXT_BYTES],
            each.error[:MAX_ERROR_CHARS].encode(),
            there=bool(each.output) or each.exit == 0,
        )
        for each in messages
        if each.name in SOURCES[platform]
    }
    return Capture(platform, node, texts)


@dataclass(frozen=True, slots=True)
class Target:
    """A node to ask."""

    name: str
    host: str
    port: int


async def ask(targets: Sequence[Target], keyring: Keyring) -> tuple[list[Capture], dict[Target, Finding]]:
    """What each node says, and a finding for each that says nothing."""
    answers = await asyncio.gather(*(_ask(target, keyring) for target in targets))
    captures = [answer for answer in answers if isinstance(answer, Capture)]
    silent = {
        target: found(
            "silent",
            "failure",
            target.name,
            answer.message,
            "nothing is known of it, so whether RDMA would work is not known",
            answer.hint or "exo discover --explain",
        )
        for target, answer in zip(targets, answers, strict=True)
        if isinstance(answer, ExoError)
    }
    return captures, silent


async def _ask(target: Target, keyring: Keyring) -> Capture | ExoError:
    try:
        channel = await dial(target.host, target.port, keyring, timeout_s=DIAL_S)
        async with channel:
            with translated(target.name):
                reply: pb.DiagnoseReply = await control(channel).Diagnose(
                    pb.DiagnoseRequest(hello=hello()), timeout=ANSWER_S
                )
        return from_messages(target.name, reply.captures)
    except ExoError as error:
        return error
