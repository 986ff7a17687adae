"""Whatever a topology file says, a plan comes out or a sentence why not; and it never overfills a node."""

from hypothesis import given, settings
from hypothesis import strategies as st

from exo_cli.errors import DoesNotFit, Unavailable
from exo_cli.models.catalogue import find
from exo_cli.planning.cluster import cluster_of
from exo_cli.planning.planner import make_plan
from exo_cli.planning.problem import Problem, needed_bytes
from exo_cli.planning.work import work_of
from exo_cli.schemas.plan import ModelRef
from exo_cli.schemas.topology import Topology
from exo_cli.views.plan_svg import svg
from exo_cli.views.plan_table import render
from tests.support.topologies import any_topology

ROW = find("qwen2.5-0.5b")
assert ROW is not None
WORK = work_of(ROW.config, repository=ROW.repository)
MODEL = ModelRef(name="m", revision=None, digest="")


@settings(max_examples=60)
@given(
    any_topology(),
    st.sampled_from(["latency", "throughput", "first-token", "balanced"]),
    st.sampled_from([1, 3]),
)
def test_any(topology: Topology, objective: str, streams: int) -> None:
    cluster = cluster_of(topology, format=WORK.format)
    problem = Problem(WORK, cluster, 2048, streams, objective=objective)  # type: ignore[arg-type]
    try:
        plan = make_plan(problem, MODEL, whole=False)
    except (DoesNotFit, Unavailable):
        return
    by_id = {node.id: node.memory for node in topology.nodes}
    for replica in plan.replicas:
        assert replica.stages[0].layers[0] == 0
        assert replica.stages[-1].layers[1] == len(WORK.layers)
        for stage in replica.stages:
            (rank,) = stage.ranks
            memory = by_id[rank.node]
            least = min(memory.ram_bytes, memory.limit_bytes, memory.free_bytes)
            assert needed_bytes(rank.memory) <= rank.memory.limit_bytes <= least
    assert plan.forecast is not None
    assert plan.forecast.total_tokens_per_s > 0
    render(plan, width=80, unicode=True, explain=True)
    assert "\x1b" not in svg(plan)
