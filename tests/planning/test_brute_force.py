"""The planner against trying everything, on small clusters and models made at random."""

import pytest

from exo_cli.planning import exact, solver, wide
from exo_cli.planning.pace import Pace
from exo_cli.planning.problem import Problem
from exo_cli.planning.search import Found
from tests.planning import brute
from tests.planning.clusters import at_random

_SAME = 1e-7
CASES, LOTS = 2_000, 8


def sound(problem: Problem, found: Found) -> None:
    """Every layer once and in order, every request served, no place twice, everything fits."""
    used = [place for chain in found.chains for place in chain.order]
    assert len(used) == len(set(used))
    assert sum(chain.streams for chain in found.chains) == problem.streams
    for chain in found.chains:
        assert chain.bounds[0] == 0
        assert chain.bounds[-1] == len(problem.work.layers)
        assert all(a < b for a, b in chain.ranges)
        assert set(chain.bounds) <= set(problem.work.cuts)
        assert brute.fits(problem, chain, frozenset(used))
    assert brute.cost(problem, Pace(problem), found.chains) == pytest.approx(found.cost, rel=1e-9)
    assert found.bound <= found.cost + abs(found.cost) * _SAME


@pytest.mark.parametrize("lot", range(LOTS))
def test_never_infeasible_never_worse_never_refused(lot: int) -> None:
    none = 0
    for seed in range(lot, CASES, LOTS):
        problem = at_random(seed)
        assert exact.is_small(problem)
        found, best = solver.solve(problem), brute.best(problem)
        assert (found is None) == (best is None), seed
        if found is None or best is None:
            none += 1
            continue
        sound(problem, found)
        assert found.cost == pytest.approx(best, rel=_SAME), seed
    assert none >= 0.3 * CASES / LOTS
    assert none <= 0.8 * CASES / LOTS


def test_the_search_for_many_nodes_is_sound_and_its_bound_holds() -> None:
    found_none = worse = 0
    for seed in range(300):
        problem = at_random(seed)
        best = exact.solve(problem)
        found = wide.solve(problem)
        if found is None:
            found_none += best is not None
            continue
        assert best is not None, seed
        sound(problem, found)
        assert found.bound <= best.cost + abs(best.cost) * _SAME, seed
        assert found.cost >= best.cost - abs(best.cost) * _SAME, seed
        worse += found.cost > best.cost + abs(best.cost) * 0.2
    # Made for many alike, not for a few that all differ; there the exact one answers.
    assert worse < 30
    assert found_none < 15
