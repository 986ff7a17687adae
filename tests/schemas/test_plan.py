"""plan.json's contract: the exact keys in their order, and round trips that give the same bytes."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo_cli.errors import BadData
from exo_cli.schemas.decode import decode
from exo_cli.schemas.plan import (
    SCHEMA,
    Forecast,
    ModelRef,
    Plan,
    PlannedStage,
    Rank,
    RankMemory,
    Replica,
    StageForecast,
)
from tests.support.strategies import SIZES, SPEEDS, WORDS

_RANKS = st.builds(
    Rank,
    node=WORDS,
    share=st.floats(0, 1),
    memory=st.builds(
        RankMemory,
        weights_bytes=SIZES,
        kv_bytes=SIZES,
        buffers_bytes=SIZES,
        base_bytes=SIZES,
        limit_bytes=SIZES,
    ),
)
_STAGES = st.builds(
    PlannedStage,
    layers=st.tuples(st.integers(0, 200), st.integers(0, 200)),
    ranks=st.lists(_RANKS, max_size=3).map(tuple),
)
_FORECASTS = st.builds(
    Forecast,
    ttft_ms=SPEEDS,
    decode_tokens_per_s=SPEEDS,
    total_tokens_per_s=SPEEDS,
    stages=st.lists(
        st.builds(StageForecast, compute_ms=SPEEDS, wire_ms=SPEEDS, wait_ms=SPEEDS), max_size=2
    ).map(tuple),
)
PLANS = st.builds(
    Plan,
    model=st.builds(ModelRef, name=WORDS, revision=st.none() | WORDS, digest=WORDS),
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
    context=st.integers(0, 2**31),
    concurrency=st.integers(0, 4096),
    replicas=st.lists(
        st.builds(Replica, stages=st.lists(_STAGES, max_size=2).map(tuple)),
        max_size=2,
    ).map(tuple),
    forecast=st.none() | _FORECASTS,
    binding=st.none() | WORDS,
    reason=WORDS,
)


def _plan() -> Plan:
    memory = RankMemory(weights_bytes=1, kv_bytes=2, buffers_bytes=3, base_bytes=4, limit_bytes=5)
    stage = PlannedStage(layers=(0, 8), ranks=(Rank(node="a", share=1.0, memory=memory),))
    return Plan(
        model=ModelRef(name="llama-3.3-70b", revision=None, digest="sha256:00"),
        dtype="bfloat16",
        context=8192,
        concurrency=1,
        replicas=(Replica(stages=(stage,)),),
        forecast=Forecast(ttft_ms=1.0, decode_tokens_per_s=2.0, total_tokens_per_s=3.0),
        binding=None,
        reason="it fits",
    )


def test_the_keys_are_the_designs_in_its_order() -> None:
    document = json.loads(msgspec.json.encode(_plan()))
    keys = "schema model dtype context concurrency replicas forecast binding reason objective left_out"
    assert " ".join(document) == f"{keys} worth alternatives numerics kv_bits gap"
    assert document["schema"] == "exo.plan/1"
    assert list(document["model"]) == ["name", "revision", "digest"]
    (stage,) = document["replicas"][0]["stages"]
    assert list(stage) == ["layers", "ranks"]
    assert list(document["replicas"][0]) == ["stages", "concurrency"]
    assert list(stage["ranks"][0]) == ["node", "share", "memory", "name"]
    assert list(stage["ranks"][0]["memory"]) == [
        "weights_bytes",
        "kv_bytes",
        "buffers_bytes",
        "base_bytes",
        "limit_bytes",
    ]
    assert list(document["forecast"])[:3] == ["ttft_ms", "decode_tokens_per_s", "total_tokens_per_s"]
    assert document["binding"] is None


@given(PLANS)
def test_what_is_written_is_read_back_and_gives_the_same_bytes(plan: Plan) -> None:
    data = msgspec.json.encode(plan)
    again = decode(data, Plan, schema=SCHEMA, where="plan.json")
    assert again == plan
    assert msgspec.json.encode(again) == data


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("schema", "exo.topology/1", "is an exo.topology/1, not an exo.plan/1"),
        ("dtype", "int8", r"'int8'.*\$\.dtype"),
        ("context", -1, r"out of range.*\$\.context"),
        ("replicas", [{"stages": [{"layers": [0], "ranks": []}]}], r"\$\.replicas\[0\]\.stages\[0\]\.layers"),
    ],
)
def test_what_is_refused(key: str, value: object, words: str) -> None:
    document = json.loads(msgspec.json.encode(_plan())) | {key: value}
    with pytest.raises(BadData, match=words):
        decode(json.dumps(document).encode(), Plan, schema=SCHEMA, where="plan.json")
