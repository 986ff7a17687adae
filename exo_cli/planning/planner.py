"""From a problem to plan.json: the split, its forecast, why it is so, and what else there was.

Raises DoesNotFit with the nearest miss where there is no plan. Knows nothing of files and of terminals.
"""

from collections.abc import Mapping, Sequence
from typing import Final, Literal

from exo_cli.errors import Unavailable
from exo_cli.planning import exact, solver
from exo_cli.planning.forecast import forecast, without_limits
from exo_cli.planning.others import alternatives, layout, worth
from exo_cli.planning.pace import Pace, groups
from exo_cli.planning.problem import Chain, Problem, needed_bytes
from exo_cli.planning.refusal import too_large
from exo_cli.planning.search import SAME, Found
from exo_cli.planning.shortage import shortage
from exo_cli.planning.words import listed
from exo_cli.planning.work import Work
from exo_cli.schemas.plan import (
    LeftOut,
    ModelRef,
    Plan,
    PlannedStage,
    Rank,
    Replica,
)

_FEW: Final = 8
"""Nodes for which it is told what each is worth."""


def find_plan(
    problem: Problem,
    model: ModelRef,
    *,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    whole: bool = True,
) -> Plan | None:
    """The best plan that is found; None if nothing fits. `whole`: with all that `make_plan` says."""
    found = solver.solve(problem)
    return None if found is None else _plan(problem, model, found, dtype, whole)


def make_plan(
    problem: Problem,
    model: ModelRef,
    *,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    variants: Mapping[str, Work] | None = None,
    kv_bits: Sequence[Literal[8]] = (),
    whole: bool = True,
) -> Plan:
    """The best plan that is found. `whole`: with alternatives and what each node is worth.

    `variants` and `kv_bits`: other packings of the weights and of caches that are to be offered.
    """
    places = problem.cluster.places
    if not places:
        reasons = listed(f"{name} {why}" for name, why in sorted(problem.cluster.left_out))
        raise Unavailable(
            f"no node takes work: {reasons or 'nobody is there'}",
            hint="Start one with exo serve-shard, then exo discover.",
        )
    found = solver.solve(problem)
    if found is None:
        raise too_large(problem, model.name, shortage(problem, dict(variants or {}), kv_bits))
    return _plan(problem, model, found, dtype, whole)


def _plan(
    problem: Problem,
    model: ModelRef,
    found: Found,
    dtype: Literal["float32", "bfloat16", "float16"],
    whole: bool,
) -> Plan:
    places = problem.cluster.places
    told = forecast(problem, found.chains)
    few = whole and len(places) <= _FEW and exact.has_few_sets(problem)
    each_node = tuple(worth(problem, found, told.total_tokens_per_s)) if few else ()
    return Plan(
        model=model,
        dtype=dtype,
        context=problem.context,
        concurrency=problem.streams,
        replicas=tuple(_replica(problem, found, chain) for chain in found.chains),
        forecast=told,
        binding=_binding(problem, found),
        reason=_reason(problem, found),
        objective=problem.objective,
        left_out=tuple(
            [LeftOut(name=name, reason=why) for name, why in problem.cluster.left_out]
            + [
                LeftOut(name=place.name, reason=_dropped(problem))
                for at, place in enumerate(places)
                if at not in found.used
            ]
        ),
        worth=each_node,
        alternatives=tuple(alternatives(problem, found)) if few else (),
        # One way of computing for all: what a mixed chain says would depend on where it is cut.
        numerics="fast" if all(places[at].fast for at in found.used) else "exact",
        kv_bits=problem.work.kv_bits,
        gap=_gap(found),
    )


def _replica(problem: Problem, found: Found, chain: Chain) -> Replica:
    used = sorted(found.used)
    alone = problem.on(used)
    places = problem.cluster.places
    return Replica(
        stages=tuple(
            PlannedStage(
                layers=(first, last),
                ranks=(
                    Rank(
                        node=places[at].id,
                        share=1.0,
                        memory=alone.memory(used.index(at), first, last, chain.streams),
                        name=places[at].name,
                    ),
                ),
            )
            for at, (first, last) in zip(chain.order, chain.ranges, strict=True)
        ),
        concurrency=chain.streams,
    )


def _gap(found: Found) -> float:
    """How much better the best can be, as a share."""
    if abs(found.cost - found.bound) <= abs(found.cost) * SAME:
        return 0.0
    better = found.bound / found.cost if found.cost < 0 else found.cost / found.bound
    return round(better - 1, 4)


# -- why -------------------------------------------------------------------------------------------


def _reason(problem: Problem, found: Found) -> str:
    chains, places = found.chains, problem.cluster.places
    if len(chains) == 1 and len(chains[0].order) == 1:
        name = places[chains[0].order[0]].name
        others = len(places) - 1
        if not others:
            return f"{name} has room for all of it and is the only node"
        what = _objective(problem)
        return f"{name} has room for all of it, and a split over more nodes is no better for {what}"
    if all(len(chain.order) == 1 for chain in chains):
        return f"each of {len(chains)} nodes has room for all of it: replicas, no split"
    kept = "" if _fits_one(problem) else "no node alone has room for it; "
    count = f"{len(chains)} replicas" if len(chains) > 1 else f"{len(chains[0].order)} stages"
    best = "the best found" if found.bound < found.cost - abs(found.cost) * SAME else "the best"
    return f"{kept}{count}, {best} for {_objective(problem)}: {layout(problem, chains)}"


def _objective(problem: Problem) -> str:
    return {
        "latency": "the time of a token",
        "throughput": "tokens a second in total",
        "first-token": "the time to the first token",
        "balanced": "whole requests",
    }[problem.objective]


def _fits_one(problem: Problem) -> bool:
    last = len(problem.work.layers)
    memories = (problem.memory(at, 0, last, problem.streams) for at in range(len(problem.cluster.places)))
    return any(needed_bytes(memory) <= memory.limit_bytes for memory in memories)


def _dropped(problem: Problem) -> str:
    limits = problem.limits
    if limits.max_nodes is not None or limits.parallel is not None:
        return "is not needed"
    return f"would not help {_objective(problem)}"


def _binding(problem: Problem, found: Found) -> str:
    """What would have to be larger for the plan to be better."""
    free = without_limits(problem)
    if len(problem.cluster.places) <= _FEW and exact.has_few_sets(problem):
        better = solver.solve(free)
        if better is not None and better.cost < found.cost - abs(found.cost) * 0.02:
            full = [_fullest(problem, found, chain) for chain in found.chains]
            name, share = max(full, key=lambda each: (each[1], each[0]))
            return f"memory: {name} is at {share:.0%} of what it may use"
    return _slowest_part(problem, found)


def _fullest(problem: Problem, found: Found, chain: Chain) -> tuple[str, float]:
    stages = _replica(problem, found, chain).stages
    shares = (
        (
            needed_bytes(stage.ranks[0].memory) / max(1, stage.ranks[0].memory.limit_bytes),
            stage.ranks[0].name or stage.ranks[0].node,
        )
        for stage in stages
    )
    share, name = max(shares)
    return name, share


def _slowest_part(problem: Problem, found: Found) -> str:
    """Where most of the time goes, on the slowest chain."""
    pace = Pace(problem, found.used)
    chain = found.chains[0]
    told = forecast(problem, [chain]).stages
    if problem.objective == "first-token":
        return f"arithmetic: a prompt's {problem.prompt} tokens"
    compute = [stage.compute_ms for stage in told]
    wire = sum(stage.wire_ms for stage in told)
    count, _ = groups(chain.streams, len(chain.order))
    names = [problem.cluster.places[at].name for at in chain.order]
    slowest = max(range(len(compute)), key=lambda at: (compute[at], -at))
    terms = pace.decode(*groups(chain.streams, len(chain.order)))
    if count > 1 and count * compute[slowest] >= sum(compute) + wire:
        return f"the slowest stage: {names[slowest]} takes {compute[slowest]:.3g} ms a step"
    if wire > sum(compute):
        return f"the network: {wire:.3g} ms of a token's {sum(compute) + wire:.3g} ms"
    fixed = sum(terms.lines[at].fixed_s for at in chain.order) * 1000
    if fixed > sum(compute) / 2:
        return f"what a step costs whatever is in it: {fixed:.3g} ms of {sum(compute) + wire:.3g} ms"
    share = compute[slowest] / (sum(compute) + wire)
    return f"reading weights: {names[slowest]} takes {share:.0%} of a token's time"
