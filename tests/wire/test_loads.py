"""What a Load asks for beside the layers: how much memory, and room for how many requests."""

from msgspec import structs

from exo_cli.schemas.plan import ModelRef, Plan, PlannedStage, Rank, RankMemory, Replica
from exo_cli.wire.loads import GRACE_BYTES, load_request

MODEL = ModelRef(name="m", revision=None, digest="d")


def stage(node: str, limit_bytes: int) -> PlannedStage:
    memory = RankMemory(
        weights_bytes=100, kv_bytes=20, buffers_bytes=3, base_bytes=4, limit_bytes=limit_bytes
    )
    return PlannedStage(layers=(0, 4), ranks=(Rank(node=node, share=1.0, memory=memory),))


def plan(*replicas: Replica) -> Plan:
    return Plan(
        model=MODEL,
        dtype="float32",
        context=512,
        concurrency=5,
        replicas=replicas,
        forecast=None,
        binding=None,
        reason="a test",
    )


def test_an_engine_gets_some_more_than_was_planned_where_there_is_room() -> None:
    for limit, asked in ((127, 127), (200, 200), (1 << 40, 127 + GRACE_BYTES), (0, 127)):
        one = stage("a", limit)
        assert load_request(plan(Replica(stages=(one,))), one, 4).memory_bytes == asked


def test_a_replica_keeps_room_for_its_own_requests_only() -> None:
    a, b = stage("a", 127), stage("b", 127)
    both = plan(Replica(stages=(a,), concurrency=3), Replica(stages=(b,), concurrency=2))
    assert [load_request(both, each, 4).concurrency for each in (a, b)] == [3, 2]
    assert load_request(plan(Replica(stages=(a,))), a, 4).concurrency == 5
    assert load_request(structs.replace(both, replicas=()), a, 4).concurrency == 5
