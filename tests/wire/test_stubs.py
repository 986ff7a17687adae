"""The generated glue fits the contract: each call of the .proto is there on both sides."""

import asyncio

import grpc
import pytest

from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.exo_pb2_grpc import ControlServicer
from exo_cli.wire.stubs import control
from tests.support.nodes import channel, serving

CALLS = [method.name for method in pb.DESCRIPTOR.services_by_name["Control"].methods]


def test_the_client_has_every_call_of_the_contract() -> None:
    async def scene() -> list[str]:
        async with grpc.aio.insecure_channel("unix:/nowhere") as way:
            return [name for name in CALLS if callable(getattr(control(way), name, None))]

    assert asyncio.run(scene()) == CALLS
    assert {"Describe", "Echo", "Measure"} <= set(CALLS)


def test_a_call_that_a_node_does_not_have_is_answered_as_such() -> None:
    async def scene() -> grpc.StatusCode:
        source = KeyringSource()
        async with (
            serving(source, "a", make=lambda *_: ControlServicer()) as node,
            channel(source, node.port) as way,
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await control(way).Unload(pb.UnloadRequest(), timeout=5)
        return caught.value.code()

    assert asyncio.run(scene()) is grpc.StatusCode.UNIMPLEMENTED
