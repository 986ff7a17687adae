"""Ctrl-C, as real signals to this process."""

import asyncio
import builtins
import os
import signal
from collections.abc import Callable

import pytest

from exo_cli.commands.interrupts import Interrupts


def ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def in_a_loop(body: Callable[[Interrupts], "asyncio.Future[None] | object"]) -> None:
    async def main() -> None:
        with Interrupts() as interrupts:
            await body(interrupts)  # type: ignore[misc]

    before = signal.getsignal(signal.SIGINT)
    asyncio.run(main())
    assert signal.getsignal(signal.SIGINT) is before


def test_at_the_prompt_it_is_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(prompt: str) -> str:
        assert prompt == ">>> "
        ctrl_c()
        raise AssertionError("it should have been interrupted")

    async def body(interrupts: Interrupts) -> None:
        monkeypatch.setattr(builtins, "input", interrupted)
        with pytest.raises(KeyboardInterrupt):
            interrupts.typed(">>> ")
        monkeypatch.setattr(builtins, "input", lambda prompt: "a line")
        assert interrupts.typed(">>> ") == "a line"

    in_a_loop(body)


def test_between_prompt_and_answer_it_is_nothing() -> None:
    async def body(interrupts: Interrupts) -> None:
        for _ in range(100):
            ctrl_c()
            await asyncio.sleep(0)
        assert await interrupts.turn(asyncio.sleep(0))

    in_a_loop(body)


def test_what_comes_at_the_end_of_a_turn_is_not_for_the_next() -> None:
    async def body(interrupts: Interrupts) -> None:
        async def ends() -> None:
            ctrl_c()

        await interrupts.turn(ends())
        ctrl_c()
        assert await interrupts.turn(asyncio.sleep(0.01))

    in_a_loop(body)


def test_it_ends_a_turn_that_has_not_got_to_its_answer() -> None:
    async def body(interrupts: Interrupts) -> None:
        asyncio.get_running_loop().call_soon(ctrl_c)
        assert not await interrupts.turn(asyncio.sleep(60))
        assert await interrupts.turn(asyncio.sleep(0))

    in_a_loop(body)


def test_it_stops_an_answer_gently_and_the_second_time_at_once() -> None:
    async def body(interrupts: Interrupts) -> None:
        over = asyncio.Event()

        async def answer() -> None:
            interrupts.gently(over.set)
            ctrl_c()
            await over.wait()

        assert await interrupts.turn(answer())

        async def deaf() -> None:
            interrupts.gently(ctrl_c)
            ctrl_c()
            await asyncio.sleep(60)

        assert not await interrupts.turn(deaf())

    in_a_loop(body)


def test_a_turn_raises_what_its_work_raises_and_is_cancelled_from_outside() -> None:
    async def fails() -> None:
        raise ValueError("this")

    async def body(interrupts: Interrupts) -> None:
        with pytest.raises(ValueError, match="this"):
            await interrupts.turn(fails())
        outer = asyncio.ensure_future(interrupts.turn(asyncio.sleep(60)))
        await asyncio.sleep(0)
        outer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await outer

    in_a_loop(body)
