"""A reader that does not read costs no more than the bound."""

import asyncio

from exo_cli.shard.outbox import MESSAGE_BYTES, Outbox
from exo_cli.wire import exo_pb2 as pb

LIMIT = 10_000


def message(size: int) -> pb.Up:
    return pb.Up(finished=pb.Finished(message="x" * size))


def test_messages_come_out_in_their_order_and_then_the_end() -> None:
    async def main() -> list[str]:
        box: Outbox[pb.Up] = Outbox(LIMIT)
        reading = asyncio.create_task(read(box))
        for at in range(5):
            assert box.put(message(at))
            if at % 2:
                await asyncio.sleep(0)
        box.close()
        assert not box.put(message(9))
        return await reading

    assert asyncio.run(main()) == ["x" * at for at in range(5)]


async def read(box: Outbox[pb.Up]) -> list[str]:
    found = []
    while (each := await box.get()) is not None:
        found.append(each.finished.message)
    return found


def test_what_waits_is_bounded_and_given_up_at_once() -> None:
    async def main() -> None:
        for size in (1000, 0, 5000):
            box: Outbox[pb.Up] = Outbox(LIMIT)
            taken = 0
            while box.put(message(size)):
                taken += 1
                assert box.bytes <= LIMIT
            assert 0 < taken <= LIMIT // (MESSAGE_BYTES + size)
            assert box.overflowed
            assert box.bytes == 0
            assert await read(box) == []

    asyncio.run(main())


def test_a_reader_that_keeps_up_is_never_cut_off_and_a_large_message_goes_alone() -> None:
    async def main() -> None:
        box: Outbox[pb.Up] = Outbox(LIMIT)
        for _ in range(100):
            assert box.put(message(4000))
            assert box.put(message(4000))
            assert await box.get() is not None
            assert await box.get() is not None
        assert box.put(message(3 * LIMIT))
        assert await box.get() is not None
        assert box.bytes == 0
        assert not box.overflowed

    asyncio.run(main())
