"""The driver's files for its nodes: which port they are offered on."""

import asyncio
import socket
from pathlib import Path

import pytest

from exo_cli.cluster.ports import free_port
from exo_cli.drive.shares import Shares
from exo_cli.errors import SystemFailure
from exo_cli.models.directory import ModelDirectory
from exo_cli.trust.keyring import KeyringSource
from tests.support import nodes, toy_model
from tests.support.records import node as record

HERE = record("a", endpoint="127.0.0.1:52416")


def test_any_free_port_and_one_server_for_an_address(tmp_path: Path) -> None:
    directory = ModelDirectory.open(toy_model.write(tmp_path / "toy"))

    async def main() -> None:
        source = KeyringSource()
        async with Shares(source, directory, (0, 0)) as shares:
            assert shares.address(HERE) == ""
            await shares.offer([HERE, record("b", endpoint="127.0.0.1:52417")])
            host, _, port = shares.address(HERE).rpartition(":")
            await shares.offer([HERE])
            assert shares.address(HERE) == f"{host}:{port}"
            async with nodes.channel(source, int(port), host=host):
                pass  # one of us listens there
        with socket.create_server(("127.0.0.1", int(port))):
            pass  # nobody does any more

    asyncio.run(main())


def test_the_ports_that_a_firewall_lets_in(tmp_path: Path) -> None:
    directory = ModelDirectory.open(toy_model.write(tmp_path / "toy"))

    async def main(low: int, high: int) -> str:
        async with Shares(KeyringSource(), directory, (low, high)) as shares:
            await shares.offer([HERE])
            return shares.address(HERE)

    port = free_port()
    assert asyncio.run(main(port, port)) == f"127.0.0.1:{port}"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        with pytest.raises(SystemFailure, match=f"no port between {number} and {number} is free") as caught:
            asyncio.run(main(number, number))
        assert "EXO_DATA_PORTS" in (caught.value.hint or "")
