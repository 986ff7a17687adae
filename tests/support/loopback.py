"""A real gRPC server on loopback with two methods that give back what they get."""

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire.channels import SERVER_OPTIONS, server_credentials

Options = Sequence[tuple[str, Any]]


async def _echo(request: bytes, _context: object) -> bytes:
    return request


async def _echo_all(requests: AsyncIterator[bytes], _context: object) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request


def echo_handler() -> Any:
    methods: dict[str, Any] = {
        "Once": grpc.unary_unary_rpc_method_handler(_echo),
        "Stream": grpc.stream_stream_rpc_method_handler(_echo_all),
    }
    return grpc.method_handlers_generic_handler("test.Echo", methods)


@asynccontextmanager
async def serving(
    source: KeyringSource | None, *, address: str = "127.0.0.1:0", options: Options = SERVER_OPTIONS
) -> AsyncIterator[int]:
    """The echo server with the source's keys, in plain text without one; gives its port."""
    server = grpc.aio.server(options=options)
    server.add_generic_rpc_handlers((echo_handler(),))
    if source is None:
        port = server.add_insecure_port(address)
    else:
        port = server.add_secure_port(address, server_credentials(source))
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def echo(channel: grpc.aio.Channel, data: bytes = b"hello", *, timeout_s: float = 5) -> bytes:
    call: Any = channel.unary_unary("/test.Echo/Once")
    answer: bytes = await call(data, timeout=timeout_s)
    return answer


def stream(channel: grpc.aio.Channel) -> Any:
    """An open call of the method `Stream`."""
    return channel.stream_stream("/test.Echo/Stream")()


def with_option(options: Options, name: str, value: int) -> list[tuple[str, Any]]:
    return [*(option for option in options if option[0] != name), (name, value)]


def bound_socket() -> socket.socket:
    """A socket that holds a port nobody listens on."""
    held = socket.socket()
    held.bind(("127.0.0.1", 0))
    return held
