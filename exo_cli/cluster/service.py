"""The control service as far as discovery needs it: Describe, Echo, Measure and health.

`serve-shard` adds the rest; `discover --announce` serves just this. Knows nothing of models.
"""

import asyncio
import ipaddress
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio
import msgspec
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from exo_cli.cluster.describe import Self
from exo_cli.cluster.links import LinkMeter
from exo_cli.cluster.measure import TIMEOUT_S, Busy, Turnstile, echo
from exo_cli.cluster.pairs import is_unix, join_endpoint
from exo_cli.errors import BadData, ExoError, SystemFailure, TryAgain, VersionMismatch
from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.channels import SERVER_OPTIONS, server_credentials
from exo_cli.wire.exo_pb2_grpc import ControlServicer
from exo_cli.wire.hello import check_hello, hello
from exo_cli.wire.status import abort
from exo_cli.wire.stubs import add_control

CONTROL = "exo.v1.Control"
MAX_AGE_S = 600.0
DIAGNOSE_S = 50.0

Diagnose = Callable[[Sequence[str]], Awaitable[Sequence[pb.Capture]]]
"""What this machine's tools say, for the doctor: the texts of those names, or all of them."""


class NodeService(ControlServicer):
    """What every node answers."""

    def __init__(self, me: Self, source: KeyringSource, turnstile: Turnstile) -> None:
        self._me = me
        self._turnstile = turnstile
        self._meter = LinkMeter(source, turnstile, me.identity.node_id)
        self.diagnose: Diagnose | None = None

    async def Describe(self, request: pb.DescribeRequest, context: Any) -> pb.DescribeReply:
        await self._check(request.hello, context)
        me = self._me
        return pb.DescribeReply(
            hello=self._hello(),
            node=msgspec.json.encode(me.record()),
            formats=me.formats,
            refused=me.refused,
        )

    async def Echo(self, frames: AsyncIterator[pb.EchoFrame], context: Any) -> None:
        identity = self._me.identity
        try:
            # Whoever opens a measurement and falls silent must not keep the others from theirs.
            async with asyncio.timeout(TIMEOUT_S):
                async with aclosing(echo(frames, self._turnstile, identity.node_id, identity.boot)) as acks:
                    async for ack in acks:
                        await context.write(ack)
        except TimeoutError:
            await abort(context, TryAgain(f"a measurement takes {TIMEOUT_S:g} s at most"))
        except ExoError as error:
            await abort(context, error)

    async def Measure(self, request: pb.MeasureRequest, context: Any) -> pb.MeasureReply:
        await self._check(request.hello, context)
        me = self._me
        target = request.target_node_id
        if target == me.identity.node_id:
            addresses = [(me.host, me.port)]
        else:
            addresses = [(each.ip, each.port) for each in request.addresses]
        if not all(_is_address(ip, port) for ip, port in addresses):
            await abort(context, BadData("what is to be measured is no list of addresses with ports"))
        try:
            kept = await self._meter.way_to(
                target, addresses, me.interfaces(), max_age_s=min(request.max_age_ms / 1000, MAX_AGE_S)
            )
        except Busy:
            return pb.MeasureReply(busy=True)
        except ExoError as error:
            return pb.MeasureReply(error=error.message, boot=me.identity.boot, seq=me.next_seq())
        way = kept.way
        if target == me.identity.node_id:
            me.loopback_bytes_per_s = way.sample.bytes_per_s
        return pb.MeasureReply(
            interface=way.interface or "",
            kind=way.kind or "",
            address=way.address,
            rtt_us_p50=way.sample.rtt_us_p50,
            rtt_us_p99=way.sample.rtt_us_p99,
            bytes_per_s=way.sample.bytes_per_s,
            age_ms=int((time.monotonic() - kept.at_s) * 1000),
            boot=me.identity.boot,
            seq=me.next_seq(),
        )

    async def Diagnose(self, request: pb.DiagnoseRequest, context: Any) -> pb.DiagnoseReply:
        await self._check(request.hello, context)
        if self.diagnose is None:
            await abort(context, VersionMismatch("this node only announces itself", hint="exo serve-shard"))
        try:
            async with asyncio.timeout(DIAGNOSE_S):
                return pb.DiagnoseReply(captures=await self.diagnose(request.topics))
        except TimeoutError:
            await abort(context, TryAgain(f"the system did not say what it has within {DIAGNOSE_S:g} s"))
        except ExoError as error:
            await abort(context, error)

    def _hello(self) -> pb.Hello:
        return hello(self._me.identity.node_id, self._me.identity.boot)

    async def _check(self, theirs: pb.Hello, context: Any) -> None:
        try:
            check_hello(theirs, "the caller")
        except ExoError as error:
            await abort(context, error)


def _is_address(ip: str, port: int) -> bool:
    """A literal one: a name would make this node ask a name server on somebody's word."""
    try:
        ipaddress.ip_address(ip)
    except ValueError:
        return False
    return 0 < port < 65536


class ControlServer:
    """A gRPC server with the node's control service and the standard health service."""

    def __init__(self, source: KeyringSource) -> None:
        self._server = grpc.aio.server(options=list(SERVER_OPTIONS), maximum_concurrent_rpcs=256)
        self._source = source
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    def bind(self, hosts: list[str], port: int) -> int:
        """Listen on every host at one port (0: any free one); returns the port."""
        for host in hosts:
            where = join_endpoint(host, port)
            try:
                # Credentials that follow a key file serve one port only.
                bound = self._server.add_secure_port(where, server_credentials(self._source))
            except RuntimeError as error:
                raise SystemFailure(
                    f"cannot listen on {where}: it was taken just now",
                    hint="Give another --listen, or try again.",
                ) from error
            port = port if is_unix(host) else bound
        return port

    def add(self, service: ControlServicer) -> None:
        add_control(service, self._server)

    async def start(self) -> None:
        await self._server.start()
        await self.set_serving(True)

    async def set_serving(self, serving: bool) -> None:
        status = (
            health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for name in ("", CONTROL):
            await self._health.set(name, status)

    async def stop(self, grace_s: float) -> None:
        await self.set_serving(False)
        await self._server.stop(grace_s)
