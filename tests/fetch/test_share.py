import asyncio
from pathlib import Path

import pytest

from exo_cli import config
from exo_cli.errors import BadData, NotAuthorised, SystemFailure, Unavailable
from exo_cli.fetch.partial import coverage
from exo_cli.fetch.pull import pull_stage
from exo_cli.fetch.ranges import stage_ranges
from exo_cli.fetch.share import LocalShare
from exo_cli.models.directory import ModelDirectory
from exo_cli.trust import keyfile
from exo_cli.trust.keyring import ClusterKey, Keyring, KeyringSource
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.channels import dial
from tests.support.loopback import bound_socket
from tests.support.weights import write_model

HERE = "127.0.0.1"


def test_a_directory_is_shared_while_the_driver_lives(tmp_path: Path) -> None:
    async def main() -> None:
        source = KeyringSource()
        directory = ModelDirectory.open(write_model(tmp_path / "model"))
        wanted = stage_ranges(directory, 0, 2, 4)
        async with LocalShare(source, directory) as share:
            channel = await dial(HERE, share.port, source.current(), timeout_s=10)
            async with channel:
                ref = pb.ModelRef(name="mine", digest=directory.digest)
                path = await pull_stage(channel, ref, wanted, tmp_path / "ours", who="driver")
            assert all(coverage(path)(*span) for span in wanted)
            port = share.port
        with pytest.raises(Unavailable):
            await dial(HERE, port, source.current(), timeout_s=5)

    asyncio.run(main())


def test_strangers_get_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        directory = ModelDirectory.open(write_model(tmp_path / "model"))
        async with LocalShare(KeyringSource(), directory) as share:
            stranger = Keyring("cluster", (ClusterKey(b"x" * 32),))
            with pytest.raises(NotAuthorised):
                await dial(HERE, share.port, stranger, timeout_s=5)

    asyncio.run(main())


def test_where_it_may_listen(tmp_path: Path) -> None:
    directory = ModelDirectory.open(write_model(tmp_path / "model"))
    for host in ("0.0.0.0", "::", "192.168.1.5"):
        with pytest.raises(NotAuthorised, match="this machine only"):
            LocalShare(KeyringSource(), directory, hosts=(host,))
    for host in ("0.0.0.0", "::", "8.8.8.8"):
        with pytest.raises(NotAuthorised, match="--insecure"):
            LocalShare(KeyringSource(insecure=True), directory, hosts=(host,))
    keyfile.replace(config.cluster_key_path(), [b"k" * 32])

    async def main() -> None:
        # With a cluster key it may listen anywhere; made only, not started.
        share = LocalShare(KeyringSource(), directory, hosts=("0.0.0.0",))
        await share.stop()

    asyncio.run(main())


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    async def main() -> None:
        directory = ModelDirectory.open(write_model(tmp_path / "model"))
        held = bound_socket()
        held.listen()
        with held:
            share = LocalShare(KeyringSource(), directory, port=held.getsockname()[1])
            with pytest.raises(SystemFailure, match="cannot listen"):
                await share.start()
            await share.stop()

    asyncio.run(main())


def test_a_name_that_cannot_travel_is_said_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        model = write_model(tmp_path / "model", files=1)
        (model / "model.safetensors.index.json").unlink()
        (model / "model-00001-of-00001.safetensors").rename(model / "model (1).safetensors")
        with pytest.raises(BadData, match="would not take"):
            LocalShare(KeyringSource(), ModelDirectory.open(model))

    asyncio.run(main())
