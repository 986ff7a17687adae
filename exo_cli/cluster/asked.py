"""What a node answers when it is asked to measure a link, believed with care.

A figure is a member's claim: what cannot be is not taken, and what the file could not hold neither.
Knows nothing of which links are wanted, or of the file.
"""

import asyncio
import time
from typing import Final

import msgspec

from exo_cli.cluster.pairs import Pair, addresses_to, split_endpoint
from exo_cli.errors import ExoError, TryAgain
from exo_cli.schemas.topology import InterfaceKind, Link, Node
from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.channels import dial
from exo_cli.wire.hello import hello
from exo_cli.wire.status import translated
from exo_cli.wire.stubs import control

DIAL_TIMEOUT_S: Final = 3.0
MEASURE_TIMEOUT_S: Final = 20.0
BUSY_TRIES: Final = 8
BUSY_PAUSE_S = 0.4
MAX_WORD: Final = 64
MAX_SENTENCE: Final = 300


async def loopback_rate(node: Node, source: KeyringSource) -> float | None:
    """What the transport does within that node's machine; None if it does not say."""
    try:
        reply = await _ask(Pair(node, node), [], source, fresh=False)
    except ExoError:
        return None
    return reply.bytes_per_s if _believable(reply) else None


async def link(pair: Pair, source: KeyringSource, *, fresh: bool) -> Link:
    """The figure of an ordered pair, or why there is none; never raises."""
    addresses = addresses_to(pair)
    try:
        reply = await _ask(pair, addresses, source, fresh=fresh)
    except ExoError as failure:
        return _no_figure(pair, failure.message)
    if reply.error:
        return _no_figure(pair, reply.error[:MAX_SENTENCE], reply)
    if not _believable(reply):
        return _no_figure(pair, f"{pair.source.name} answers with a figure that cannot be")
    return Link(
        from_=pair.source.id,
        to=pair.target.id,
        interface=reply.interface or None,
        kind=_kind(reply.kind),
        address=reply.address or None,
        rtt_us_p50=round(reply.rtt_us_p50, 1),
        rtt_us_p99=round(reply.rtt_us_p99, 1),
        bytes_per_s=float(round(reply.bytes_per_s)),
        limited_by=None,
        boot=reply.boot,
        seq=reply.seq,
        measured_unix_ms=_now_ms() - int(reply.age_ms),
    )


async def _ask(
    pair: Pair, addresses: list[tuple[str, int]], source: KeyringSource, *, fresh: bool
) -> pb.MeasureReply:
    """Let the pair's source measure; waits a few times while it is busy."""
    node = pair.source
    host, port = split_endpoint(node.endpoint)
    request = pb.MeasureRequest(
        hello=hello(),
        target_node_id=pair.target.id,
        addresses=[pb.MeasureAddress(ip=ip, port=at) for ip, at in addresses],
        max_age_ms=0 if fresh else 600_000,
    )
    channel = await dial(host, port, source.current(), timeout_s=DIAL_TIMEOUT_S)
    async with channel:
        for attempt in range(BUSY_TRIES):
            with translated(node.name):
                reply: pb.MeasureReply = await control(channel).Measure(request, timeout=MEASURE_TIMEOUT_S)
            if not reply.busy:
                return reply
            await asyncio.sleep(BUSY_PAUSE_S * (1 + attempt / 2))
    raise TryAgain(f"{node.name} or {pair.target.name} is busy")


def _believable(reply: pb.MeasureReply) -> bool:
    """A member's claim like any other: what the file could not hold is not taken."""
    counts = (reply.rtt_us_p50, reply.rtt_us_p99, reply.bytes_per_s, reply.boot, reply.seq)
    words = (reply.interface, reply.kind, reply.address)
    return (
        not reply.error
        and reply.bytes_per_s >= 1
        and all(0 <= count < 2**63 for count in counts)
        and reply.age_ms <= _now_ms()
        and all(len(word) <= MAX_WORD for word in words)
    )


def _no_figure(pair: Pair, error: str, reply: pb.MeasureReply | None = None) -> Link:
    boot, seq = pair.source.boot, pair.source.seq
    if reply is not None and boot == reply.boot and seq < reply.seq < 2**63:
        seq = reply.seq
    return Link(
        from_=pair.source.id,
        to=pair.target.id,
        interface=None,
        kind=None,
        address=None,
        rtt_us_p50=None,
        rtt_us_p99=None,
        bytes_per_s=None,
        limited_by=None,
        boot=boot,
        seq=seq,
        error=error,
        measured_unix_ms=_now_ms(),
    )


def _kind(text: str) -> InterfaceKind | None:
    try:
        return msgspec.convert(text, InterfaceKind) if text else None
    except msgspec.ValidationError:
        return "unknown"


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
