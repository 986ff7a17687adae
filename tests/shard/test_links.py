"""A stage's streams to others, on real sockets of loopback; chains of processes cross them as well."""

import asyncio
import socket

import pytest

from exo_cli.cluster.ports import free_port
from exo_cli.shard import links as subject
from exo_cli.shard.links import Address, Links
from exo_cli.shard.outbox import Outbox
from exo_cli.trust.authority import issue_leaf
from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.hello import hello

CANCEL = pb.Down(cancel=pb.Cancel(request=1, epoch=1))


class Owner:
    """What a stage hears."""

    def __init__(self) -> None:
        self.lost: asyncio.Queue[tuple[Address, str]] = asyncio.Queue()
        leaf = issue_leaf(KeyringSource().current().primary)
        self.links = Links(hello(), leaf, self.answer, lambda to, why: self.lost.put_nowait((to, why)))

    def answer(self, message: pb.Up) -> None:
        raise AssertionError(f"nobody speaks here: {message}")


def test_a_stage_that_is_not_there_is_lost_each_time_it_is_tried() -> None:
    async def main() -> None:
        owner, nobody = Owner(), (f"127.0.0.1:{free_port()}", "s")
        for _ in range(2):
            owner.links.send(nobody, pb.FlowStart.PREVIOUS, CANCEL)
            to, why = await asyncio.wait_for(owner.lost.get(), 30)
            assert to == nobody
            assert why
        assert owner.lost.empty()
        owner.links.close()

    asyncio.run(main())


def test_a_stage_that_does_not_read_is_given_up_with_what_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subject, "LINK_BYTES", 2000)

    async def main() -> None:
        owner = Owner()
        with socket.create_server(("127.0.0.1", 0)) as deaf:
            to = (f"127.0.0.1:{deaf.getsockname()[1]}", "s")
            sent = 0
            while owner.lost.empty():
                owner.links.send(to, pb.FlowStart.LAST, CANCEL)
                sent += 1
                await asyncio.sleep(0)
                assert sent < 100
            assert owner.lost.get_nowait() == (to, "it does not read")
            await asyncio.sleep(0)
            assert owner.lost.empty()
            owner.links.close()

    asyncio.run(main())


def test_a_stream_that_ends_under_a_message_is_the_readers_to_tell() -> None:
    class Ended:
        """A call that is over."""

        async def write(self, message: pb.Down) -> None:
            raise asyncio.InvalidStateError("RPC already finished")

    async def main() -> None:
        out: Outbox[pb.Down] = Outbox(2000)
        out.put(CANCEL)
        await asyncio.wait_for(subject._write(Ended(), out), 30)

    asyncio.run(main())
