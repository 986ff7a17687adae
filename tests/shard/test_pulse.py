"""Neighbours that fall silent, without and with their connections still open, on real sockets of loopback."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from exo_cli.cluster.ports import free_port
from exo_cli.errors import BadData
from exo_cli.shard import pulse as subject
from exo_cli.shard.links import Door, go_to
from exo_cli.shard.ring import Address
from exo_cli.trust.authority import issue_leaf
from exo_cli.trust.keyring import ClusterKey
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.hello import hello
from exo_cli.wire.pipe import Pipe, PipeEnded
from tests.support.sides import CANCEL, LEAF, PREVIOUS, Side, greet, run, side, until

PULSE = pb.FlowStart.PULSE
WAY = bytes(range(16))


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is noticed at once."""
    for name, seconds in (("EVERY_S", 0.01), ("ANSWER_S", 0.3), ("SILENCE_S", 0.3), ("_GRACE_S", 0.05)):
        monkeypatch.setattr(subject, name, seconds)


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked often, and waited for long."""
    monkeypatch.setattr(subject, "EVERY_S", 0.001)


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Pipe, Pipe]]:
    """Both ends of one connection."""
    came: asyncio.Queue[Pipe] = asyncio.Queue()
    door = Door([LEAF], "n", greet, lambda pipe, start: came.put_nowait(pipe))
    port = free_port()
    door.listen(["127.0.0.1"], port)
    near = await go_to((f"127.0.0.1:{port}", "s"), PULSE, hello(), LEAF, WAY)
    far = await came.get()
    try:
        yield near, far
    finally:
        await door.close()
        near.close()
        far.close()


@asynccontextmanager
async def deaf(pipes: list[tuple[Pipe, int]]) -> AsyncIterator[Address]:
    """A stage that lets everybody in and never says a word after its greeting, as a frozen one."""
    door = Door([LEAF], "n", greet, lambda pipe, start: pipes.append((pipe, start.role)))
    port = free_port()
    door.listen(["127.0.0.1"], port)
    try:
        yield f"127.0.0.1:{port}", "s"
    finally:
        await door.close()
        for pipe, _ in pipes:
            pipe.close()


def test_who_lives_is_asked_again_and_again(brisk: None, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with pair() as (near, far):
            asked = 0
            send = far.send

            def count(message: bytes) -> None:
                nonlocal asked
                asked += 1
                send(message)

            monkeypatch.setattr(far, "send", count)
            both = [asyncio.create_task(subject.ask(near)), asyncio.create_task(subject.answer(far))]
            await until(lambda: asked >= 20)
            assert not any(task.done() for task in both)
            near.close()
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)

    asyncio.run(asyncio.wait_for(main(), 60))


def test_silence_ends_asking_and_answering(hasty: None) -> None:
    async def main() -> None:
        async with pair() as (near, far):
            await subject.ask(near)
            await subject.answer(near)
            assert await far.next() == b""

    asyncio.run(asyncio.wait_for(main(), 60))


def test_who_was_frozen_itself_still_finds_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "ANSWER_S", 0.0)

    async def main() -> None:
        async with pair() as (near, far):
            far.send(b"")
            asking = asyncio.create_task(subject.ask(near))
            assert await far.next() == b""
            await asyncio.sleep(0.1)
            assert not asking.done()
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_pulse_carries_nothing_else() -> None:
    async def main() -> None:
        async with pair() as (near, far):
            near.send(b"much more")
            with pytest.raises(PipeEnded, match="more than a pulse"):
                await subject.answer(far)

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_frozen_stage_is_lost_though_its_connection_is_open(hasty: None) -> None:
    async def main() -> None:
        pipes: list[tuple[Pipe, int]] = []
        async with deaf(pipes) as address, side() as one:
            one.beside.send(address, PREVIOUS, CANCEL)
            stage, reason = await one.lost_.get()
            assert stage == address
            assert "silent" in reason
            assert {role for _, role in pipes} == {PREVIOUS, PULSE}
            await until(lambda: not one.beside._open and not one.beside._pulses)

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_stage_whose_pulse_cannot_even_be_reached_is_lost(hasty: None) -> None:
    async def main() -> None:
        pipes: list[tuple[Pipe, int]] = []
        async with side() as one:
            async with deaf(pipes) as address:
                one.beside.send(address, PREVIOUS, CANCEL)
                await until(lambda: len(pipes) == 2)
                kept = [pipe for pipe, role in pipes if role == PREVIOUS]
                pipes[:] = [(pipe, role) for pipe, role in pipes if role == PULSE]
            # Nobody listens there any more, and the way itself is still open.
            assert "silent" in (await one.lost_.get())[1]
            for pipe in kept:
                pipe.close()

    asyncio.run(asyncio.wait_for(main(), 60))


def test_the_stage_after_a_frozen_one_lets_it_go(hasty: None) -> None:
    async def main() -> None:
        async with side() as one:
            way = await go_to(one.address, PREVIOUS, hello(), LEAF, WAY)
            other = await go_to(one.address, PREVIOUS, hello(), LEAF, os.urandom(16))
            beside = await go_to(one.address, PULSE, hello(), LEAF, WAY)
            beside.send(b"")
            left = await one.left_.get()
            with pytest.raises(PipeEnded):
                await way.next()
            # The other neighbour's is not taken for it.
            assert one.beside._open == {each for each in one.beside._ways.values() if each is not left}
            assert len(one.beside._open) == 1
            for pipe in (way, other, beside):
                pipe.close()

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_neighbour_without_a_pulse_is_not_missed(hasty: None) -> None:
    """One that says it has none: its way alone tells when it ends."""

    async def main() -> None:
        pipes: list[Pipe] = []

        def only_flows(start: pb.FlowStart) -> pb.FlowReady:
            if start.role == PULSE:
                raise BadData("no pulse here")
            return greet(start)

        door = Door([LEAF], "n", only_flows, lambda pipe, start: pipes.append(pipe))
        port = free_port()
        door.listen(["127.0.0.1"], port)
        async with side() as one:
            one.beside.send((f"127.0.0.1:{port}", "s"), PREVIOUS, CANCEL)
            await until(lambda: bool(pipes) and bool(one.beside._pulses))
            (watch,) = one.beside._pulses.values()
            await watch
            assert one.lost_.empty()
            pipes[0].close()
            assert "silent" not in (await one.lost_.get())[1]
        await door.close()

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_pulse_that_ends_after_a_long_time_is_begun_anew(
    brisk: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end says nothing of the way beside it, however long ago it was opened."""
    monkeypatch.setattr(subject, "ANSWER_S", 0.3)

    async def main() -> None:
        came: list[tuple[Pipe, asyncio.Task[None]]] = []
        ways: list[Pipe] = []

        def admit(pipe: Pipe, start: pb.FlowStart) -> None:
            if start.role == PULSE:
                came.append((pipe, asyncio.create_task(subject.answer(pipe))))
            else:
                ways.append(pipe)

        door = Door([LEAF], "n", greet, admit)
        port = free_port()
        door.listen(["127.0.0.1"], port)
        async with side() as one:
            one.beside.send((f"127.0.0.1:{port}", "s"), PREVIOUS, CANCEL)
            await until(lambda: len(came) == 1)
            await asyncio.sleep(0.6)
            pipe, answering = came[0]
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)
            pipe.close()
            await until(lambda: len(came) == 2 or not one.lost_.empty())
            assert one.lost_.empty()
            came[1][1].cancel()
            await asyncio.gather(came[1][1], return_exceptions=True)
        await door.close()
        for each in (*ways, *(pipe for pipe, _ in came)):
            each.close()

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_member_of_another_cluster_has_no_pulse_here(hasty: None) -> None:
    stranger = issue_leaf(ClusterKey(bytes(range(2, 34))))

    async def main(one: Side, other: Side) -> None:
        with pytest.raises(PipeEnded):
            await go_to(one.address, PULSE, hello(), stranger, WAY)

    run(main)


def test_neighbours_that_live_stay(brisk: None) -> None:
    async def main(one: Side, other: Side) -> None:
        one.beside.send(other.address, PREVIOUS, CANCEL)
        await other.took.get()
        await until(lambda: bool(one.beside._pulses))
        await asyncio.sleep(0.2)
        assert one.lost_.empty()
        assert other.left_.empty()
        one.beside.close()
        assert (await other.left_.get()).fileno() == -1

    run(main)
