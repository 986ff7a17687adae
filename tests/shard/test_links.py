"""How stages come together and what their rings carry, on real sockets of loopback."""

import asyncio
import socket
import struct
import threading
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from exo_cli.cluster.ports import free_port
from exo_cli.engine.core import Open, Token
from exo_cli.errors import ExoError
from exo_cli.schemas.sampling import Sampling
from exo_cli.shard import links as subject
from exo_cli.shard import ring as rings
from exo_cli.shard.links import Door, go_to
from exo_cli.shard.ring import Ring
from exo_cli.trust.authority import issue_leaf
from exo_cli.trust.keyring import ClusterKey
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.hello import hello
from exo_cli.wire.pipe import Pipe
from tests.support.chain import HashCompute
from tests.support.sides import CANCEL, LEAF, PREVIOUS, Side, greet, run, side, until


def test_what_is_said_before_the_way_is_open_goes_first() -> None:
    async def main(one: Side, other: Side) -> None:
        for number in range(1, 6):
            cancel = pb.Down(cancel=pb.Cancel(request=number, epoch=1))
            one.beside.send(other.address, PREVIOUS, cancel)
        came = [await other.took.get() for _ in range(5)]
        assert [message.cancel.request for _, message in came] == [1, 2, 3, 4, 5]
        (pipe,) = {pipe for pipe, _ in came}
        other.beside.say(pipe, pb.Up(opened=pb.Opened(request=3)))
        assert (await one.answers.get()).opened.request == 3
        one.beside.close()
        assert await other.left_.get() is pipe
        # To one that is gone nothing is said, and nobody minds.
        other.beside.say(pipe, pb.Up(opened=pb.Opened(request=4)))

    run(main)


def test_a_frame_of_a_request_that_is_not_open_is_answered_by_the_ring() -> None:
    async def main(one: Side, other: Side) -> None:
        frame = pb.Frame(step=1, parts=[pb.Part(request=9, epoch=1, n=1)], tokens=[1])
        one.beside.send(other.address, PREVIOUS, pb.Down(frame=frame))
        refused = (await one.answers.get()).refused
        assert (refused.request, refused.node) == (9, "n")
        assert "is not open here" in refused.message
        frame.tokens.append(4)
        one.beside.send(other.address, PREVIOUS, pb.Down(frame=frame))
        assert "2 token ids for 1 rows" in (await one.answers.get()).refused.message

    run(main)


def test_what_does_not_belong_on_a_stream_ends_it_with_a_reason() -> None:
    async def main(one: Side, other: Side) -> None:
        one.beside.send(other.address, PREVIOUS, pb.Down(tokens=pb.Tokens(step=1)))
        refused = (await one.answers.get()).refused
        assert refused.request == 0
        assert "tokens does not belong" in refused.message
        assert await one.lost_.get() == (other.address, "it ended the stream")
        # Another one is opened with the next word.
        one.beside.send(other.address, PREVIOUS, CANCEL)
        await other.took.get()

    run(main)


def test_a_stage_that_is_not_there_is_lost_each_time_it_is_tried() -> None:
    async def main(one: Side, _: Side) -> None:
        nobody = (f"127.0.0.1:{free_port()}", "s")
        for _time in range(2):
            one.beside.send(nobody, PREVIOUS, CANCEL)
            to, why = await one.lost_.get()
            assert to == nobody
            assert "cannot connect" in why
        assert one.lost_.empty()

    run(main)


def test_a_stage_that_refuses_us_is_lost_with_its_reason() -> None:
    async def main(one: Side, other: Side) -> None:
        one.beside.send((other.address[0], "x"), PREVIOUS, CANCEL)
        assert (await one.lost_.get())[1] == "stage x is not loaded here"

    run(main)


def test_a_stage_that_does_not_read_is_given_up_with_what_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rings, "LINK_BYTES", 2000)

    async def main(one: Side, _: Side) -> None:
        with socket.create_server(("127.0.0.1", 0)) as deaf:
            to = (f"127.0.0.1:{deaf.getsockname()[1]}", "s")
            sent = 0
            while one.lost_.empty():
                one.beside.send(to, pb.FlowStart.LAST, CANCEL)
                sent += 1
                await asyncio.sleep(0.001)
                assert sent < 5000
            assert one.lost_.get_nowait() == (to, "it does not read")

    run(main)


def test_a_greeted_stage_that_stops_reading_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rings, "LINK_BYTES", 1_000_000)
    large = pb.Down(open=pb.Open(request=1, prompt=[1 << 20] * 100_000))

    async def main(one: Side, _: Side) -> None:
        kept: list[Pipe] = []
        door = Door([LEAF], "m", greet, lambda pipe, start: kept.append(pipe))
        port = free_port()
        door.listen(["127.0.0.1"], port)
        to = (f"127.0.0.1:{port}", "s")
        sent = 0
        while one.lost_.empty():
            one.beside.send(to, PREVIOUS, large)
            sent += 1
            await asyncio.sleep(0.001)
            assert sent < 2000
        assert one.lost_.get_nowait() == (to, "it does not read")
        await door.close()
        for pipe in kept:
            pipe.close()

    run(main)


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(300)])
def test_strangers_at_the_door_are_sent_away(said: bytes) -> None:
    async def main(one: Side, other: Side) -> None:
        for _ in range(3 * subject.STRANGERS):
            with socket.create_connection(("127.0.0.1", other.port)) as stranger:
                stranger.send(said)
        one.beside.send(other.address, PREVIOUS, CANCEL)
        while other.took.empty():
            if not one.lost_.empty():
                # Among the strangers one of us may be sent away, too; it comes again.
                one.lost_.get_nowait()
                one.beside.send(other.address, PREVIOUS, CANCEL)
            await asyncio.sleep(0.01)

    run(main)


def test_strangers_who_only_sit_there_keep_nobody_out() -> None:
    async def main(one: Side, other: Side) -> None:
        with ExitStack() as stack:
            for _ in range(2 * subject.STRANGERS):
                stack.enter_context(socket.create_connection(("127.0.0.1", other.port)))
            one.beside.send(other.address, PREVIOUS, CANCEL)
            await other.took.get()
            assert one.lost_.empty()

    run(main)


def test_who_says_nonsense_after_its_last_words_is_dropped_at_once() -> None:
    async def main(_: Side, other: Side) -> None:
        pipe = await go_to(other.address, PREVIOUS, hello(), LEAF)
        one = CANCEL.SerializeToString()
        pipe.send(one)
        came, _message = await other.took.get()
        pipe._tls.write(struct.pack("!I", len(one)) + one + struct.pack("!I", 1 << 31))
        pipe._give(pipe._outgoing.read())
        # It says no more and does not go.
        await other.took.get()
        assert await other.left_.get() is came
        pipe.close()

    run(main)


def test_who_says_more_than_the_event_loop_takes_has_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    caught_up: list[int] = []

    async def main(_: Side, other: Side) -> None:
        monkeypatch.setattr(rings, "BACKLOG", 3)
        real = Ring._catch_up

        def catch_up(ring: Ring) -> None:
            real(ring)
            caught_up.append(other.took.qsize())

        monkeypatch.setattr(Ring, "_catch_up", catch_up)
        pipe = await go_to(other.address, PREVIOUS, hello(), LEAF)
        one = CANCEL.SerializeToString()
        pipe._tls.write(200 * (struct.pack("!I", len(one)) + one))
        pipe._give(pipe._outgoing.read())
        await until(lambda: bool(caught_up))
        # All that was given to the loop was taken when the thread went on.
        assert caught_up[0] > rings.BACKLOG
        await until(lambda: other.took.qsize() == 200)
        pipe.close()

    run(main)


class _Slow(HashCompute):
    """Computes until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go_on = threading.Event(), threading.Event()

    def run_last(self, *_: Any) -> list[Token | None]:
        self.begun.set()
        assert self.go_on.wait(20)
        return [None]


def test_what_comes_while_a_stage_computes_is_taken_off_the_socket() -> None:
    compute = _Slow()
    opened = Open(request=1, epoch=1, prompt=(1,) * 3000, sampling=Sampling(), max_tokens=1)

    def frame(step: int) -> pb.Down:
        tensor = pb.Tensor(dtype=pb.DTYPE_FLOAT32, shape=[1000, 1000], data=bytes(4_000_000))
        part = pb.Part(request=1, epoch=1, position=1000 * (step - 1), n=1000)
        return pb.Down(frame=pb.Frame(step=step, parts=[part], tokens=[1] * 1000, tensor=tensor))

    async def main() -> None:
        async with side() as one, side(compute) as other:
            assert other.core.open(opened)
            other.beside.lead([one.address, other.address], 1)
            pipe = await go_to(other.address, PREVIOUS, hello(), LEAF)
            pipe.send(frame(1).SerializeToString())
            await until(lambda: pipe.flush() and compute.begun.is_set())
            for step in (2, 3):
                pipe.send(frame(step).SerializeToString())
            pipe.send(CANCEL.SerializeToString())
            await until(pipe.flush)
            (kept,) = other.beside._open
            await until(lambda: kept._soaked_bytes > 8_000_000)
            compute.go_on.set()
            # All of it is heard afterwards, without another byte.
            await other.took.get()
            await until(lambda: other.core.steps == 3)
            pipe.close()
            assert await other.left_.get() is kept

    asyncio.run(asyncio.wait_for(main(), 60))


def test_stages_from_before_and_from_within_a_rotation_reach_each_other() -> None:
    new = issue_leaf(ClusterKey(bytes(range(1, 33))))

    async def main() -> None:
        async with side() as older, side(leaves=(new, LEAF)) as newer, side(leaves=(new,)) as newest:
            for one, other in ((older, newer), (newer, older), (newer, newest), (newest, newer)):
                one.beside.send(other.address, PREVIOUS, CANCEL)
                await other.took.get()
                assert one.lost_.empty()
            older.beside.send(newest.address, PREVIOUS, CANCEL)
            assert "not of this cluster" in (await older.lost_.get())[1]

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_socket_of_the_file_system_is_gone_when_its_door_is() -> None:
    async def main(place: Path) -> None:
        kept: list[Pipe] = []
        door = Door([LEAF], "n", greet, lambda pipe, start: kept.append(pipe))
        (place / "node:7").touch()  # of one that was killed
        door.listen([f"unix:{place}/node"], 7)
        pipe = await go_to((f"unix:{place}/node:7", "s"), PREVIOUS, hello(), LEAF)
        await door.close()
        for each in (pipe, *kept):
            each.close()

    with TemporaryDirectory() as short:  # such a name has a hundred bytes at most
        asyncio.run(asyncio.wait_for(main(Path(short)), 30))
        assert list(Path(short).iterdir()) == []


@pytest.mark.parametrize("turns", [0, 1, 2, 4, 8, 16, 32, 64])
def test_a_stage_may_end_while_a_way_opens(turns: int) -> None:
    """A descriptor that vanished under the engine's thread ended the whole process."""

    async def main() -> None:
        async with side() as one, side() as other:
            one.beside.send(other.address, PREVIOUS, CANCEL)
            for _ in range(turns):
                await asyncio.sleep(0)
            one.beside.close()
            await asyncio.sleep(0.02)
            assert one.lost_.empty()
            # The thread is there still, and has no way to anybody.
            done = threading.Event()

            def look(_: object) -> Any:
                done.set()
                return []

            one.beside._call(look)
            assert await asyncio.to_thread(done.wait, 20)
            assert not one.beside._open

    asyncio.run(asyncio.wait_for(main(), 60))


def test_after_the_end_no_way_is_opened() -> None:
    async def main(one: Side, other: Side) -> None:
        one.beside.close()
        one.beside.connect(other.address, PREVIOUS)
        one.beside.send(other.address, PREVIOUS, CANCEL)
        done = threading.Event()
        one.beside._in_ring(lambda ring: done.set())
        assert await asyncio.to_thread(done.wait, 20)
        await asyncio.sleep(0)
        assert not one.beside._going
        assert other.took.empty()

    run(main)


def test_a_way_that_opens_after_the_end_is_closed() -> None:
    async def main(one: Side, other: Side) -> None:
        pipe = await go_to(other.address, PREVIOUS, hello(), LEAF)
        one.beside.close()
        one.beside.admit(pipe, pb.FlowStart(role=PREVIOUS))
        await other.left_.get()
        assert pipe.fileno() == -1

    run(main)


def test_of_two_ways_to_a_stage_the_second_is_closed() -> None:
    async def main(one: Side, other: Side) -> None:
        one.beside.send(other.address, PREVIOUS, CANCEL)
        first, _ = await other.took.get()
        one.beside.connect(other.address, PREVIOUS)
        assert await other.left_.get() is not first
        one.beside.send(other.address, PREVIOUS, CANCEL)
        assert (await other.took.get())[0] is first
        assert one.lost_.empty()

    run(main)


def test_going_to_somebody_who_is_silent_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "GREETING_S", 0.05)

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            to = (f"127.0.0.1:{silent.getsockname()[1]}", "s")
            with pytest.raises(ExoError, match="did not greet within"):
                await go_to(to, PREVIOUS, hello(), LEAF)

    asyncio.run(asyncio.wait_for(main(), 30))
