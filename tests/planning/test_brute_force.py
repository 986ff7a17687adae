"""The planner against trying everything, on small clusters and models made at random."""

import pytest

from exo_cli.planning import exact, solver, wide
from exo_cli.planning.pace import Pace
from exo_cli.planning.problem import Problem
from exo_cli.planning.search import Found
from tests.planning import brute
from tests.planning.clusters import at_random

_SAME = 1e-7
CASES, LOTS = 800, 4
NIGHTLY, NIGHTLY_LOTS = 8_000, 20


def sound(problem: Problem, found: Found, pace: Pace) -> None:
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
    assert brute.cost(problem, pace, found.chains) == pytest.approx(found.cost, rel=1e-9)
    assert found.bound <= found.cost + abs(found.cost) * _SAME


@pytest.mark.parametrize("lot", range(LOTS))
def test_never_infeasible_never_worse_never_refused(lot: int) -> None:
    tried(range(lot, CASES, LOTS))


@pytest.mark.nightly
@pytest.mark.parametrize("lot", range(NIGHTLY_LOTS))
def test_thousands_of_clusters(lot: int) -> None:
    tried(range(CASES + lot, CASES + NIGHTLY, NIGHTLY_LOTS))


def tried(seeds: range) -> None:
    """Against everything; some do not fit, and some do."""
    none = 0
    for seed in seeds:
        problem = at_random(seed)
        assert exact.is_small(problem)
        found, best = solver.solve(problem), brute.best(problem)
        assert (found is None) == (best is None), seed
        if found is None or best is None:
            none += 1
            continue
        sound(problem, found, Pace(problem, found.used))
        assert found.cost == pytest.approx(best, rel=_SAME), seed
    assert 0.3 * len(seeds) <= none <= 0.8 * len(seeds)


def test_the_search_for_many_nodes_is_sound_and_its_bound_holds() -> None:
    off = []
    for seed in range(300):
        problem = at_random(seed)
        best = exact.solve(problem)
        found = wide.solve(problem)
        if found is None:
            # With several nodes on a machine the solver also tries it with fewer of them.
            hosts = {place.host for place in problem.cluster.places}
            assert best is None or len(hosts) < len(problem.cluster.places) or problem.streams == 1, seed
            continue
        assert best is not None, seed
        # This search takes all nodes of a machine to be busy; the solver tries it with fewer of them.
        sound(problem, found, Pace(problem))
        assert found.bound <= best.cost + abs(best.cost) * _SAME, seed
        assert found.cost >= best.cost - abs(best.cost) * _SAME, seed
        if problem.streams > 1:
            off.append(max(found.cost / best.cost, best.cost / found.cost) - 1)
    assert len(off) > 50
    assert sum(each > 0.01 for each in off) <= 0.05 * len(off)
