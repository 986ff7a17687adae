"""Pairs are worked through so that no machine works for two at a time."""

import asyncio
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo_cli.cluster.pairs import Pair
from exo_cli.cluster.turns import in_turns
from tests.support.records import node


def pairs(hosts: list[int]) -> list[Pair]:
    nodes = [node(f"n{number}", host=f"h{host}") for number, host in enumerate(hosts)]
    return [Pair(a, b) for a in nodes for b in nodes if a is not b]


@given(st.lists(st.integers(0, 4), min_size=0, max_size=5), st.randoms(use_true_random=False))
def test_each_pair_once_and_no_machine_twice_at_a_time(hosts: list[int], random: object) -> None:
    busy: list[str] = []

    async def work(pair: Pair) -> str:
        assert not set(busy) & pair.hosts
        busy.extend(pair.hosts)
        for _ in range(random.randint(0, 3)):  # type: ignore[attr-defined]
            await asyncio.sleep(0)
        for host in pair.hosts:
            busy.remove(host)
        return pair.source.id + pair.target.id

    async def scene() -> list[tuple[Pair, str]]:
        async with aclosing(in_turns(pairs(hosts), work)) as done:
            return [each async for each in done]

    done = asyncio.run(scene())
    assert sorted(said for _, said in done) == sorted(
        pair.source.id + pair.target.id for pair in pairs(hosts)
    )
    assert all(said == pair.source.id + pair.target.id for pair, said in done)


def test_two_machines_apart_work_at_the_same_time() -> None:
    together = asyncio.Event()
    running = 0

    async def work(pair: Pair) -> None:
        nonlocal running
        running += 1
        if running == 2:
            together.set()
        await together.wait()

    async def scene() -> int:
        four = [node(f"n{number}", host=f"h{number}") for number in range(4)]
        apart = [Pair(four[0], four[1]), Pair(four[2], four[3])]
        async with aclosing(in_turns(apart, work)) as done:
            return len([each async for each in done])

    assert asyncio.run(asyncio.wait_for(scene(), 60)) == 2


@pytest.mark.parametrize("how", ["closed", "failed"])
def test_what_still_runs_is_cancelled(how: str) -> None:
    ended: list[str] = []

    async def work(pair: Pair) -> None:
        if pair.source.id == "n0":
            if how == "failed":
                raise ValueError("no")
            return
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(pair.source.id)

    async def scene() -> None:
        four = [node(f"n{number}", host=f"h{number}") for number in range(4)]
        apart = [Pair(four[0], four[1]), Pair(four[2], four[3])]
        async with aclosing(in_turns(apart, work)) as done:
            await anext(done)

    if how == "failed":
        with pytest.raises(ValueError, match="no"):
            asyncio.run(scene())
    else:
        asyncio.run(scene())
    assert ended == ["n2"]
