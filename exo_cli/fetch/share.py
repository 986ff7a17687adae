"""A driver's little server: one directory of this machine, through Have and Weights, while it lives.

So a node can load a model that only the driver's machine has. Mutual TLS like every other channel.
Knows nothing of requests, nor of who was told its address.
"""

import ipaddress
from collections.abc import Sequence

import grpc
import grpc.aio

from exo_cli.errors import NotAuthorised, SystemFailure
from exo_cli.fetch.held import held_directory
from exo_cli.fetch.serve_weights import OneModel, Shelf, WeightsServicer
from exo_cli.models.directory import ModelDirectory
from exo_cli.trust.keyring import KeyringSource
from exo_cli.trust.private import refuse_public
from exo_cli.wire.channels import SERVER_OPTIONS, server_credentials
from exo_cli.wire.stubs import add_control


class LocalShare:
    """Serves a directory, or all of a shelf, from `start` to `stop`; as a context manager does both.

    Without a cluster key it listens on loopback only; with --insecure, on private addresses.
    """

    def __init__(
        self,
        source: KeyringSource,
        what: ModelDirectory | Shelf,
        *,
        hosts: Sequence[str] = ("127.0.0.1",),
        port: int = 0,
    ) -> None:
        for host in hosts:
            _refuse(source, host)
        self.port = 0
        self._server = grpc.aio.server(options=list(SERVER_OPTIONS), maximum_concurrent_rpcs=128)
        service = WeightsServicer()
        service.shelf = _one(what) if isinstance(what, ModelDirectory) else what
        add_control(service, self._server)
        self._source = source
        self._hosts = tuple(hosts)
        self._wanted = port

    async def start(self) -> int:
        """Listen; returns the port, the same on every host."""
        port = self._wanted
        for host in self._hosts:
            bracketed = f"[{host}]" if ":" in host else host
            try:
                # Credentials that follow a key file serve one port only.
                port = self._server.add_secure_port(f"{bracketed}:{port}", server_credentials(self._source))
            except RuntimeError as error:
                raise SystemFailure(
                    f"cannot listen on {bracketed}:{port} to share the model",
                    hint="Is the port taken? Try again.",
                ) from error
        await self._server.start()
        self.port = port
        return port

    async def stop(self) -> None:
        await self._server.stop(0)

    async def __aenter__(self) -> "LocalShare":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


def _one(directory: ModelDirectory) -> OneModel:
    weights = [header.file for header in directory.files]
    return OneModel(held_directory(directory.path, directory.digest, weights, name=directory.path.name))


def _refuse(source: KeyringSource, host: str) -> None:
    kind = source.current().kind
    if kind == "insecure":
        refuse_public(host)
    if kind == "local" and not _is_loopback(host):
        raise NotAuthorised(
            "without a cluster key a model is shared with this machine only",
            hint="Make a key with exo key new, and give it to the other machines with exo key export.",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
