"""When a stage that is here does for another load, and when it is another stage."""

from typing import Any, cast

import pytest
from msgspec import structs

from exo_cli.shard.engines import Lease, Wanted
from exo_cli.shard.messages import Ready, Start

HELD: dict[str, Any] = {
    "stage_id": "s",
    "node_id": "n",
    "node_name": "n",
    "boot": 1,
    "model_dir": "",
    "first_layer": 2,
    "last_layer": 4,
    "layers_in_model": 8,
    "memory_bytes": 100,
    "wire_dtype": "bfloat16",
    "context": 1000,
    "concurrency": 2,
    "hosts": [],
    "ports": (0, 0),
    "leaves": [],
}
WANTED = Wanted(
    kv_bits=None,
    digest="d",
    layers=(2, 4),
    layers_in_model=8,
    memory_bytes=100,
    wire_dtype="bfloat16",
    numerics="exact",
    context=1000,
    concurrency=2,
)


def held(*, pinned: bool = False, state: str = "ready", **changes: Any) -> Lease:
    class Engine:
        """As much of one as is looked at."""

        start_line = Start(**{**HELD, **changes})
        ready_line: Ready | None = None
        beat = None

    Engine.state = state  # type: ignore[attr-defined]
    return Lease("toy", "d", cast(Any, Engine()), 60.0, 100, pinned)


READY = Ready(
    data_port=1,
    frame_port=2,
    weights_bytes=3,
    kv_budget_bytes=4,
    base_bytes=5,
    allowed_cuts=[],
    shares_steps=True,
    numerics="exact",
    numerics_reason="a family",
)


def wanted(**changes: Any) -> Wanted:
    return Wanted(**{**{name: getattr(WANTED, name) for name in WANTED.__slots__}, **changes})


@pytest.mark.parametrize(
    ("changes", "does"),
    [
        ({}, True),
        ({"context": 500}, True),
        # More requests that are shorter: what counts is the room in all.
        ({"context": 500, "concurrency": 4, "memory_bytes": 200}, True),
        ({"context": 500, "concurrency": 5, "memory_bytes": 200}, False),
        ({"concurrency": 0, "memory_bytes": 200}, True),
        ({"concurrency": 3}, True),
        ({"concurrency": 3, "memory_bytes": 101}, False),
        ({"context": 1001, "memory_bytes": 1}, False),
        # Without a context a request may be as long as it likes.
        ({"context": 0}, False),
        ({"digest": "other"}, False),
        ({"layers": (2, 5)}, False),
        ({"layers_in_model": 9}, False),
        ({"wire_dtype": "float32"}, False),
        ({"numerics": "fast"}, False),
        ({"kv_bits": 8}, False),
    ],
)
def test_a_stage_does_for_what_needs_no_more_than_it_has(changes: dict[str, Any], does: bool) -> None:
    assert held().serves(wanted(**changes)) is does
    assert not held(state="loading").serves(wanted(**changes))


def test_one_without_a_context_is_judged_by_its_memory() -> None:
    free = held(context=0, concurrency=0)
    assert free.serves(wanted())
    assert free.serves(wanted(context=0))
    assert not free.serves(wanted(memory_bytes=101))


def test_one_of_a_plan_is_as_large_as_it_shall_be_but_speaks_only_its_dtype() -> None:
    pinned = held(pinned=True)
    assert pinned.serves(wanted(context=9000, memory_bytes=900))
    assert not pinned.serves(wanted(wire_dtype="float16"))


def test_caches_are_those_that_were_asked_for_except_that_a_plan_decides_for_who_asks_for_none() -> None:
    assert held(kv_bits=8).serves(wanted(kv_bits=8))
    assert not held(kv_bits=8).serves(wanted())
    assert held(kv_bits=8, pinned=True).serves(wanted())
    assert not held(pinned=True).serves(wanted(kv_bits=8))


def test_one_that_fell_back_does_for_both_ways_of_computing() -> None:
    fell_back, fast = held(numerics="fast"), held(numerics="fast")
    for lease, numerics in ((fell_back, "exact"), (fast, "fast")):
        cast(Any, lease.engine).ready_line = structs.replace(READY, numerics=numerics)
    assert fell_back.serves(wanted(numerics="fast"))
    assert fell_back.serves(wanted(numerics="exact"))
    assert fast.serves(wanted(numerics="fast"))
    assert not fast.serves(wanted(numerics="exact"))
    assert (fell_back.as_stage().numerics, fast.as_stage().numerics) == ("exact", "fast")
