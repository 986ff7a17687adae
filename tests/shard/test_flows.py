"""A stage's streams without a network: deadlines, and readers that do not read."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import grpc
import pytest

from exo_cli.drive.failures import refusal
from exo_cli.engine.core import Effect, StageCore
from exo_cli.engine.scheduler import Scheduler
from exo_cli.shard import flows as subject
from exo_cli.shard.flows import StageFacts, StageFlows, _Flow
from exo_cli.shard.ring import Address
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.hello import hello
from tests.support.chain import HashCompute, expected

FACTS = StageFacts(stage_id="s", node_id="0" * 32, node_name="n", boot=1, first=True, last=True)
ROUTE = [pb.Hop(endpoint="127.0.0.1:1", stage_id="s")]
DRIVER, OTHER = b"d" * 16, b"o" * 16
PROMPT = [3, 4, 5]


class Aborted(Exception):
    """What a call ends with."""


class Context:
    """A call's, as far as it is used."""

    async def abort(self, code: grpc.StatusCode, details: str, *_: Any) -> None:
        raise Aborted(code, details)


@dataclass
class Timer:
    """One that goes off when the test says so."""

    seconds: float
    then: Callable[[], None]
    is_over: bool = False

    def cancel(self) -> None:
        self.is_over = True


class Beside:
    """The ring, which does nothing and remembers it."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str | None]] = []
        self.said: list[tuple[Any, pb.Up]] = []
        self.tracing = False

    def lead(self, chain: Sequence[Address], at: int) -> None:
        assert 0 <= at < len(chain)

    def send(self, to: Address, role: int, message: pb.Down) -> None:
        self.sent.append((to[1], message.WhichOneof("kind")))

    def say(self, pipe: Any, message: pb.Up) -> None:
        self.said.append((pipe, message))

    def trace(self, on: bool) -> None:
        self.tracing = on


class Stand:
    """A chain of one stage; a step is computed when the test says so."""

    def __init__(self) -> None:
        self.compute = HashCompute()
        scheduler = Scheduler(stages=1, chunk_tokens=64)
        self.core: StageCore[Any] = StageCore(
            self.compute, 1 << 20, first=True, last=True, scheduler=scheduler, context=2000
        )
        self.waiting = 0
        self.timers: list[Timer] = []
        self.beside = Beside()
        self.flows = StageFlows(FACTS, self.beside, self.call, lambda: self.waiting, self.later)

    def later(self, seconds: float, then: Callable[[], None]) -> "Timer":
        self.timers.append(Timer(seconds, then))
        return self.timers[-1]

    def pass_time(self, seconds: float) -> None:
        """As a clock would: what is due and was not called off."""
        for timer in self.timers:
            if not timer.is_over and timer.seconds <= seconds:
                timer.is_over = True
                timer.then()

    def call(self, work: Callable[[StageCore[Any]], list[Effect]]) -> None:
        self.flows.deliver(work(self.core))

    def step(self) -> bool:
        """Compute until a step was run; False if there is none."""
        due = self.core.poll(1e9)
        if isinstance(due, list):
            self.flows.deliver(due)
        return isinstance(due, list)

    @property
    def is_empty(self) -> bool:
        return not self.core.ledger.entries and not self.flows.requests and self.compute.alive == 0


class Driver:
    """A driver's flow; as gRPC does, it asks for the next message as soon as it has one, if it reads."""

    def __init__(self, stand: Stand, driver: bytes = DRIVER) -> None:
        self._driver = driver
        self._sent: asyncio.Queue[pb.Down | None] = asyncio.Queue()
        start = pb.FlowStart(hello=hello(), stage_id="s", role=pb.FlowStart.DRIVER, driver=driver)
        self.send(pb.Down(start=start))
        self.reads = asyncio.Event()
        self.reads.set()
        self._got: asyncio.Queue[pb.Up | Aborted] = asyncio.Queue()
        self._pump = asyncio.create_task(self._take(stand.flows.flow(self._messages(), Context())))

    def send(self, message: pb.Down) -> None:
        self._sent.put_nowait(message)

    def open(self, request: int, n: int, **options: Any) -> None:
        message = pb.Open(
            request=request, epoch=1, prompt=PROMPT, max_tokens=n, route=ROUTE, driver=self._driver, **options
        )
        self.send(pb.Down(open=message))

    async def _messages(self) -> AsyncIterator[pb.Down]:
        while (message := await self._sent.get()) is not None:
            yield message

    async def _take(self, up: AsyncIterator[pb.Up]) -> None:
        try:
            async for message in up:
                self._got.put_nowait(message)
                await self.reads.wait()
        except Aborted as error:
            self._got.put_nowait(error)

    async def read(self, kind: str) -> Any:
        """The next message, which is of this kind; that a prompt goes on is passed over."""
        async with asyncio.timeout(10):
            message = await self._got.get()
            while kind != "prefilled" and isinstance(message, pb.Up) and message.HasField("prefilled"):
                message = await self._got.get()
        if isinstance(message, Aborted):
            raise message
        assert message.WhichOneof("kind") == kind
        return getattr(message, kind)

    async def anything(self) -> pb.Up:
        message = await self._got.get()
        assert isinstance(message, pb.Up)
        return message

    async def end(self) -> "Aborted":
        """What the call ended with, whatever came before."""
        async with asyncio.timeout(10):
            while True:
                message = await self._got.get()
                if isinstance(message, Aborted):
                    return message

    async def close(self) -> None:
        self._sent.put_nowait(None)
        await self._pump


def run(main: Callable[[Stand], Any]) -> None:
    asyncio.run(main(Stand()))


def test_a_request_runs_to_its_end() -> None:
    async def main(stand: Stand) -> None:
        driver = Driver(stand)
        await driver.read("ready")
        driver.open(1, 4)
        assert (await driver.read("opened")).prefix == 0
        found = []
        while stand.step():
            found += [row.id for row in (await driver.read("tokens")).rows]
            if len(found) == 1:
                assert (await driver.read("prefilled")).position == len(PROMPT)
        assert found == expected(1, PROMPT, 4)
        assert stand.is_empty
        await driver.close()

    run(main)


@pytest.mark.parametrize("begun", [False, True])
def test_a_request_past_its_deadline_ends_and_its_driver_is_told(begun: bool) -> None:
    async def main(stand: Stand) -> None:
        driver = Driver(stand)
        await driver.read("ready")
        driver.open(1, 1000, deadline_ms=20)
        driver.open(2, 1000, deadline_ms=3_600_000)
        await driver.read("opened")
        await driver.read("opened")
        if begun:
            assert stand.step()
            await driver.read("tokens")
        stand.pass_time(0.019)
        assert stand.flows.requests == 2
        stand.pass_time(0.02)
        ended = await driver.read("finished")
        assert (ended.request, ended.epoch, ended.reason) == (1, 1, "deadline")
        assert "20 ms" in ended.message
        assert list(stand.core.ledger.entries) == [2]
        assert stand.flows.requests == 1
        driver.send(pb.Down(cancel=pb.Cancel(request=2, epoch=1)))
        await settled(lambda: stand.is_empty)
        await driver.close()

    run(main)


def test_a_request_that_ends_in_time_has_no_deadline_any_more() -> None:
    async def main(stand: Stand) -> None:
        driver = Driver(stand)
        await driver.read("ready")
        driver.open(1, 2, deadline_ms=60)
        await driver.read("opened")
        while stand.step():
            await driver.read("tokens")
        assert [timer.is_over for timer in stand.timers] == [True]
        # The same number again, in the same epoch, without one.
        driver.open(1, 3)
        await driver.read("opened")
        stand.pass_time(1)
        assert list(stand.core.ledger.entries) == [1]
        await driver.close()

    run(main)


def test_a_higher_epoch_has_its_own_deadline() -> None:
    async def main(stand: Stand) -> None:
        driver = Driver(stand)
        await driver.read("ready")
        driver.open(1, 100, deadline_ms=50)
        await driver.read("opened")
        again = pb.Open(request=1, epoch=2, prompt=PROMPT, max_tokens=9, route=ROUTE, driver=DRIVER)
        driver.send(pb.Down(open=again))
        await driver.read("opened")
        stand.pass_time(1)
        assert stand.core.ledger.entries[1].epoch == 2
        await driver.close()

    run(main)


def test_a_driver_that_does_not_read_is_cut_off_within_bounds_and_disturbs_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subject, "OUTBOX_BYTES", 20_000)

    async def main(stand: Stand) -> None:
        slow, quick = Driver(stand), Driver(stand, OTHER)
        await slow.read("ready")
        await quick.read("ready")
        slow.open(1, 1000)
        quick.open(2, 1000)
        await slow.read("opened")
        await quick.read("opened")
        slow.reads.clear()
        (its,) = stand.flows._flows[DRIVER]
        ids: list[int] = []
        most = 0
        while stand.step():
            most = max(most, its.out.bytes)
            for _ in range(4):
                await asyncio.sleep(0)
        while len(ids) < 1000:
            ids += [row.id for row in (await quick.read("tokens")).rows]
        assert 10_000 < most <= 20_000
        assert its.out.bytes == 0
        assert stand.is_empty
        assert ids == expected(1, PROMPT, 1000)
        slow.reads.set()
        assert (await slow.end()).args[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
        # What it still sends is not looked at.
        slow.open(3, 5)
        await asyncio.sleep(0)
        assert stand.is_empty
        await quick.close()

    run(main)


def test_streams_are_read_no_further_while_the_engine_is_behind() -> None:
    async def main(stand: Stand) -> None:
        driver = Driver(stand)
        await driver.read("ready")
        stand.waiting = subject.BACKLOG + 1
        for request in range(1, 6):
            driver.open(request, 5)
        await settled(lambda: stand.flows.requests == 1)
        await asyncio.sleep(5 * subject.BACKLOG_LOOK_S)
        assert stand.flows.requests == 1
        stand.waiting = 0
        await settled(lambda: stand.flows.requests == 5)
        await driver.close()

    run(main)


def test_a_refusal_carries_its_exit_code_and_its_hint() -> None:
    async def main(stand: Stand) -> None:
        driver = Driver(stand)
        await driver.read("ready")
        driver.open(1, 5000)
        refused = await driver.read("refused")
        assert (refused.node, refused.code, refused.exit) == ("n", "too-long", 65)
        error = refusal(refused)
        assert (error.exit, error.code) == (65, "too-long")
        assert error.message.startswith("n: the prompt has 3 tokens and up to 5000 more")
        assert error.hint is not None
        assert "--max-tokens" in error.hint
        stand.core.context = 0
        driver.open(2, 1 << 20)
        error = refusal(await driver.read("refused"))
        assert (error.exit, error.code) == (75, "no-room")
        assert error.hint is not None
        assert stand.is_empty
        await driver.close()

    run(main)


def test_a_refused_request_counts_until_the_stages_below_have_let_go() -> None:
    async def main() -> None:
        facts = StageFacts(stage_id="s", node_id="0" * 32, node_name="n", boot=1, first=True, last=False)
        core: StageCore[Any] = StageCore(
            HashCompute(), 1 << 20, first=True, last=False, scheduler=Scheduler(stages=2, chunk_tokens=64)
        )
        calls: list[Callable[[StageCore[Any]], list[Effect]]] = []
        ring = Beside()
        flows = StageFlows(facts, ring, calls.append)

        def compute() -> None:
            while calls:
                flows.deliver(calls.pop(0)(core))

        def opened(request: int, below: str) -> None:
            route = [*ROUTE, pb.Hop(endpoint="127.0.0.1:2", stage_id=below)]
            message = pb.Open(request=request, epoch=1, prompt=PROMPT, max_tokens=4, route=route)
            flows._open(_Flow(DRIVER, lambda flow: None), message)

        opened(1, "t")
        compute()
        flows.answer(pb.Up(refused=pb.Refused(request=1, epoch=1, message="out of turn", exit=65)))
        opened(2, "u")
        compute()
        assert ring.sent == [("t", "open"), ("t", "cancel")]
        assert not core.ledger.entries
        assert not flows.requests
        opened(3, "u")
        compute()
        assert ring.sent[2:] == [("u", "open")]

    asyncio.run(main())


def later(first: bool = False) -> tuple[StageFlows, Beside, list[Any]]:
    """A stage with others beside it, whose engine's thread is a list."""
    facts = StageFacts(stage_id="s", node_id="0" * 32, node_name="n", boot=1, first=first, last=not first)
    calls: list[Any] = []
    ring = Beside()
    return StageFlows(facts, ring, calls.append), ring, calls


def opening(request: int, **options: Any) -> pb.Down:
    route = [pb.Hop(endpoint="127.0.0.1:2", stage_id="r"), *ROUTE]
    usual: dict[str, Any] = {"epoch": 1, "prompt": PROMPT, "max_tokens": 4, "route": route, "hop": 1}
    return pb.Down(open=pb.Open(request=request, **{**usual, **options}))


def test_with_the_stage_before_go_the_requests_that_it_brought_and_no_others() -> None:
    async def main() -> None:
        flows, ring, calls = later()
        one, other = cast(Any, "one"), cast(Any, "other")
        flows.take(one, opening(1))
        flows.take(other, opening(2))
        assert flows.requests == 2
        before = len(calls)
        flows.left(one)
        assert len(calls) == before + 1
        flows.left(one)
        flows.left(cast(Any, "a stranger"))
        assert len(calls) == before + 1
        flows.take(other, opening(3, route=[]))
        ((pipe, message),) = ring.said
        assert pipe == other
        assert message.refused.request == 3

    asyncio.run(main())


def test_a_stage_that_is_lost_ends_what_runs_in_its_chain() -> None:
    async def main() -> None:
        flows, ring, _ = later()
        flows.take(cast(Any, "before"), opening(1))
        flows.lost(("127.0.0.1:9", "of a chain that is no more"), "gone")
        assert ring.said == []
        flows.lost(("127.0.0.1:2", "r"), "it ended the stream")
        ((_, message),) = ring.said
        assert message.finished.reason == "lost"
        assert message.finished.message == "n lost the stage at 127.0.0.1:2: it ended the stream"

    asyncio.run(main())


def test_traces_are_made_while_a_request_wants_them_and_go_up_to_its_driver() -> None:
    async def main(stand: Stand) -> None:
        driver = Driver(stand)
        await driver.read("ready")
        driver.open(1, 3)
        await driver.read("opened")
        assert not stand.beside.tracing
        driver.open(2, 2, trace=True)
        await driver.read("opened")
        assert stand.beside.tracing
        while stand.step():
            pass
        assert not stand.beside.tracing
        stand.flows.traced([pb.Trace(stage_id="s", step=7)])
        stand.flows.answer(pb.Up(trace=pb.Trace(stage_id="t", step=7)))
        found = []
        while len(found) < 2:
            async with asyncio.timeout(10):
                message = await driver.anything()
            if message.HasField("trace"):
                found.append(message.trace.stage_id)
        assert found == ["s", "t"]
        await driver.close()

    run(main)
    flows, ring, _ = later()
    flows.take(cast(Any, "before"), opening(1, trace=True))
    flows.traced([pb.Trace(stage_id="s", step=7)])
    assert [(pipe, message.trace.step) for pipe, message in ring.said] == [("before", 7)]


async def settled(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 - it looks at what others do
            await asyncio.sleep(0.001)
