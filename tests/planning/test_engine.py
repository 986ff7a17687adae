"""One engine's time for a step: by what was measured of it, and beside others on its machine."""

from dataclasses import replace
from typing import Any

import pytest
from msgspec import structs

from exo_cli.planning.cluster import cluster_of
from exo_cli.planning.constants import DEFAULT
from exo_cli.planning.engine import Engine
from exo_cli.planning.forecast import forecast
from exo_cli.planning.problem import Chain
from exo_cli.schemas.topology import Batch, Rate, Topology
from tests.planning.clusters import cluster, part, place, problem, work
from tests.support import topologies

RATE = Rate(format="affine4", decode_bytes_per_s=1e11, prefill_flop_per_s=1e13, measured_unix_ms=1)
CURVE = ((4, 1.5), (8, 3.5))
PLACE = place("a", 100, speed=100.0, backend="cpu", flop_per_s=1e15, batches=CURVE, step_s=0.001)
DENSE = part(1.0, flop=0.0)


def rows_s(rows: int) -> float:
    """Of a gigabyte, which a row takes 10 ms for."""
    return Engine(PLACE, DEFAULT).took_s(DENSE, rows, 0.0, 0.0)


def test_between_two_measured_batches_lies_a_line() -> None:
    took = [rows_s(rows) for rows in (1, 2, 4, 6, 8)]
    assert took == pytest.approx([0.01, 0.01 + 0.005 / 3, 0.015, 0.025, 0.035])


def test_beyond_them_it_leads_to_a_piece_of_a_prompt() -> None:
    chunk = DEFAULT.chunk_tokens
    heavy = replace(DENSE, flop=1e15 * 0.5 / chunk)  # a whole piece takes half a second
    engine = Engine(PLACE, DEFAULT)
    assert engine.took_s(heavy, chunk, 0.0, 0.0) == pytest.approx(0.5)
    middle = engine.took_s(heavy, (8 + chunk) // 2, 0.0, 0.0)
    assert middle == pytest.approx((0.035 + 0.5) / 2, rel=0.02)
    # Where arithmetic costs nothing it takes no less than the largest batch that was timed.
    assert rows_s(chunk) == pytest.approx(0.035)


def test_experts_are_read_by_few_rows_each() -> None:
    experts = replace(DENSE, read_bytes=0.0, routed_bytes=1e9, routed_share=1 / 64)
    engine = Engine(PLACE, DEFAULT)
    one = engine.took_s(experts, 1, 0.0, 0.0)
    assert one == pytest.approx(0.01 / 64)
    # Eight rows seldom meet: eight times as many are read, and hardly any of them by two rows.
    assert 7 * one < engine.took_s(experts, 8, 0.0, 0.0) < 8.2 * one


def test_caches_are_read_beside_the_weights() -> None:
    assert Engine(PLACE, DEFAULT).took_s(DENSE, 4, 5e8, 0.0) == pytest.approx(0.015 + 0.005)


def test_a_step_costs_what_was_measured_else_a_constant() -> None:
    assert Engine(PLACE, DEFAULT).step_s == 0.001
    assert Engine(replace(PLACE, step_s=None), DEFAULT).step_s == DEFAULT.pass_s


def test_what_a_node_says_of_its_batches_is_made_a_curve() -> None:
    said = (Batch(rows=8, times=99.0), Batch(rows=4, times=0.5), Batch(rows=0, times=3.0))
    nodes = tuple(
        structs.replace(node, rates=(structs.replace(RATE, batches=said, step_s=99.0),))
        for node in topologies.four_macs().nodes
    )
    places = cluster_of(Topology(nodes=nodes), format="affine4").places
    assert {each.batches for each in places} == {((4, 1.0), (8, 8.0))}
    assert {each.step_s for each in places} == {None}


@pytest.mark.parametrize(
    ("backend", "cores", "share"),
    [
        ("metal", 16, 1 / 2),
        ("cpu", 16, DEFAULT.beside_share),
        ("cpu", 1, DEFAULT.beside_share / 2),
        ("cuda", 1, 1.0),
    ],
)
def test_two_copies_on_one_machine_share_it(backend: str, cores: int, share: float) -> None:
    fields: dict[str, Any] = {"host": "one", "backend": backend, "cores": cores, "step_s": 0.0}
    made = problem(work(), cluster(place("a", 100, **fields), place("b", 100, **fields)), streams=2)
    together = forecast(made, [Chain((0,), (0, 8), 1), Chain((1,), (0, 8), 1)])
    one = forecast(made, [Chain((0,), (0, 8), 2)])
    assert together.decode_tokens_per_s == pytest.approx(one.decode_tokens_per_s)
    assert together.total_tokens_per_s == pytest.approx(2 * share * together.decode_tokens_per_s, rel=1e-4)
