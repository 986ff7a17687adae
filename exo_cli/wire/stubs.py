"""The generated gRPC glue, which has no types, behind a few functions that have.

Knows nothing of addresses or deadlines.
"""

from typing import Any, cast

import grpc.aio

from exo_cli.wire import exo_pb2_grpc as glue


def control(channel: grpc.aio.Channel) -> Any:
    """A client of the control service."""
    return cast(Any, glue).ControlStub(channel)


def add_control(service: glue.ControlServicer, server: grpc.aio.Server) -> None:
    """Serve `service` on `server`."""
    cast(Any, glue).add_ControlServicer_to_server(service, server)


def stage(channel: grpc.aio.Channel) -> Any:
    """A client of a stage's data stream."""
    return cast(Any, glue).StageStub(channel)


def add_stage(service: glue.StageServicer, server: grpc.aio.Server) -> None:
    """Serve `service` on `server`."""
    cast(Any, glue).add_StageServicer_to_server(service, server)
