"""Leases: how long they last, who makes way for whom."""

import asyncio
from typing import Any, cast

import pytest

from exo_cli.shard import engines as module
from exo_cli.shard.engines import FIRST_REQUEST_S, Engines, Lease, NodeFull
from exo_cli.shard.messages import Beat, Start


class FakeEngine:
    """What an engine shows."""

    def __init__(self, stage_id: str) -> None:
        self.start_line = Start(
            stage_id=stage_id,
            node_id="n",
            node_name="n",
            boot=1,
            model_dir="",
            first_layer=0,
            last_layer=4,
            layers_in_model=4,
            memory_bytes=100,
            hosts=[],
            ports=(0, 0),
            leaves=[],
        )
        self.state = "ready"
        self.beat: Beat | None = None
        self.ended = asyncio.Event()
        self.left = False

    def says(self, *, idle_s: float = 0.0, requests: int = 0, steps: int = 0, leaving: bool = False) -> None:
        self.beat = Beat(
            requests=requests,
            kv_used_bytes=0,
            steps=steps,
            tokens=0,
            stepping_ms=0,
            step_ms_p50=0,
            step_ms_p99=0,
            idle_ms=round(idle_s * 1000),
            leaving=leaving,
        )

    @property
    def working(self) -> bool:
        return self.beat is None or not self.beat.leaving or self.beat.requests > 0

    def leave(self) -> None:
        self.left = True

    async def stop(self) -> None:
        self.ended.set()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])  # type: ignore[attr-defined]
    return now


def lease(keep_s: float, *, id_: str = "s", pinned: bool = False) -> tuple[Lease, FakeEngine]:
    engine = FakeEngine(id_)
    return Lease("toy", "d", cast(Any, engine), keep_s, 100, pinned), engine


def test_a_stage_that_was_used_goes_when_it_was_idle_for_so_long(clock: list[float]) -> None:
    held, engine = lease(30.0)
    engine.says(idle_s=31, steps=5)
    assert held.is_over
    engine.says(idle_s=29, steps=5)
    assert not held.is_over
    engine.says(idle_s=31, steps=5, requests=1)
    assert not held.is_over


def test_as_soon_as_it_is_idle_is_not_before_its_first_request(clock: list[float]) -> None:
    held, engine = lease(0.0)
    engine.says(idle_s=5)
    assert not held.is_over
    engine.says(idle_s=0.5, steps=1)
    assert held.is_over
    # Somebody asks for it anew.
    held.asked()
    assert not held.is_over
    clock[0] += FIRST_REQUEST_S + 1
    assert held.is_over


def test_for_ever_is_for_ever(clock: list[float]) -> None:
    held, engine = lease(float("inf"))
    engine.says(idle_s=1e9, steps=5)
    clock[0] += 1e9
    assert not held.is_over


def test_idle_stages_make_way_but_not_what_a_plan_gave(clock: list[float]) -> None:
    async def main() -> None:
        engines = Engines(lambda: 300)
        assert engines.free_bytes == 300
        for id_, idle_s, pinned in (("young", 1, False), ("old", 9, False), ("planned", 99, True)):
            held, engine = lease(30.0, id_=id_, pinned=pinned)
            engine.says(idle_s=idle_s)
            engines._leases[id_] = held
        await engines.make_room(100, evict=True)
        assert engines.find("old") is None
        with pytest.raises(NodeFull) as caught:
            await engines.make_room(300, evict=True)
        assert caught.value.holders == ["toy layers 0-3"]
        assert [each.stage_id for each in engines.leases] == ["planned"]

    asyncio.run(main())


def test_leaving_waits_for_what_runs_and_not_for_ever(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        engines = Engines(lambda: 300)
        held, engine = lease(30.0)
        engines._leases["s"] = held
        # What it said before it heard of it does not count.
        engine.says(requests=0)
        sleep = asyncio.sleep
        looks: list[float] = []

        async def passed(seconds: float) -> None:
            looks.append(seconds)
            clock[0] += 1
            if len(looks) == 3:
                engine.says(requests=2, leaving=True)
            if len(looks) == 6:
                engine.says(requests=0, leaving=True)
            await sleep(0)

        monkeypatch.setattr(asyncio, "sleep", passed)
        assert await engines.drain(30.0) == 0
        assert engine.left
        assert len(looks) == 6
        engine.says(requests=2, leaving=True)
        assert await engines.drain(30.0) == 2

    asyncio.run(main())
