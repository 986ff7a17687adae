"""From a problem to plan.json: the split, its forecast, why it is so, and what else there was.

Raises DoesNotFit with the nearest miss where there is no plan. Knows nothing of files and of terminals.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final, Literal

from exo_cli.errors import DoesNotFit, Unavailable
from exo_cli.planning import exact, solver
from exo_cli.planning.forecast import forecast, without_limits
from exo_cli.planning.pace import Pace, groups
from exo_cli.planning.problem import Chain, Problem, needed_bytes
from exo_cli.planning.search import SAME, Found
from exo_cli.planning.shortage import Shortage, shortage
from exo_cli.planning.words import gigabytes, layers, listed, per_second, some
from exo_cli.planning.work import Work
from exo_cli.schemas.plan import (
    Alternative,
    LeftOut,
    ModelRef,
    Plan,
    PlannedStage,
    Rank,
    Replica,
    Worth,
)

_ALTERNATIVES: Final = 3
_FEW: Final = 8
"""Nodes for which it is told what each is worth."""
_NAMED: Final = 6


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
    whole: bool = True,
) -> Plan:
    """The best plan that is found. `whole`: with alternatives and what each node is worth."""
    places = problem.cluster.places
    if not places:
        reasons = listed(f"{name} {why}" for name, why in sorted(problem.cluster.left_out))
        raise Unavailable(
            f"no node takes work: {reasons or 'nobody is there'}",
            hint="Start one with exo serve-shard, then exo discover.",
        )
    found = solver.solve(problem)
    if found is None:
        raise too_large(problem, model.name, shortage(problem, dict(variants or {})))
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
    worth = tuple(_worth(problem, found, told.total_tokens_per_s)) if few else ()
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
        worth=worth,
        alternatives=tuple(_alternatives(problem, found)) if few else (),
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


def layout(problem: Problem, chains: Sequence[Chain]) -> str:
    """`a 0-11, b 12-31`, chains apart by a semicolon."""
    names = [place.name for place in problem.cluster.places]
    return "; ".join(
        ", ".join(
            f"{names[at]} {layers(*range_)}" for at, range_ in zip(chain.order, chain.ranges, strict=True)
        )
        for chain in chains
    )


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
    pace = Pace(problem)
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


# -- what else -------------------------------------------------------------------------------------


def _worth(problem: Problem, found: Found, with_all: float) -> Iterator[Worth]:
    for at, place in enumerate(problem.cluster.places):
        if at in found.used:
            left = [other for other in range(len(problem.cluster.places)) if other != at]
            less = _without(problem, at, left)
            without = None if less is None else _total(less[0], less[1])
            yield Worth(name=place.name, used=True, with_tokens_per_s=with_all, without_tokens_per_s=without)
        else:
            limits = replace(problem.limits, musts=(*problem.limits.musts, at))
            more = solver.solve(replace(problem, limits=limits))
            with_it = None if more is None else _total(problem, more)
            yield Worth(name=place.name, used=False, with_tokens_per_s=with_it, without_tokens_per_s=with_all)


def _without(problem: Problem, gone: int, left: list[int]) -> tuple[Problem, Found] | None:
    pins = [pin for pin in problem.limits.pins if pin[0] != gone]
    number = {at: new for new, at in enumerate(left)}
    limits = replace(
        problem.limits,
        pins=tuple((number[at], first, last) for at, first, last in pins),
        musts=tuple(number[at] for at in problem.limits.musts if at != gone),
        min_nodes=min(problem.limits.min_nodes, max(1, len(left))),
    )
    smaller = replace(problem, cluster=problem.cluster.only(left), limits=limits)
    found = solver.solve(smaller) if left else None
    return None if found is None else (smaller, found)


def _total(problem: Problem, found: Found) -> float:
    return forecast(problem, found.chains).total_tokens_per_s


def _alternatives(problem: Problem, chosen: Found) -> list[Alternative]:
    """The best plans over other numbers of nodes, and of the other kinds; the better first."""
    limits = problem.limits
    tried = [
        replace(limits, min_nodes=n, max_nodes=n)
        for n in range(limits.min_nodes, (limits.max_nodes or len(problem.cluster.places)) + 1)
        if n != len(chosen.used)
    ]
    if limits.parallel is None and problem.streams > 1:
        tried += [replace(limits, parallel="pipeline"), replace(limits, parallel="replicas")]
    found: dict[str, tuple[float, Found]] = {}
    for each in tried:
        other = solver.solve(replace(problem, limits=each))
        if other is not None and other.chains != chosen.chains:
            found.setdefault(layout(problem, other.chains), (other.cost, other))
    best = sorted(found.items(), key=lambda item: (item[1][0], item[0]))[:_ALTERNATIVES]
    told = [(said, forecast(problem, other.chains)) for said, (_, other) in best]
    return [
        Alternative(
            layout=said,
            ttft_ms=speed.ttft_ms,
            decode_tokens_per_s=speed.decode_tokens_per_s,
            total_tokens_per_s=speed.total_tokens_per_s,
        )
        for said, speed in told
    ]


# -- nothing fits ----------------------------------------------------------------------------------


def too_large(problem: Problem, name: str, missing: Shortage) -> DoesNotFit:
    """The nearest miss, and what would make it fit."""
    requests = "" if problem.streams == 1 else f" for {problem.streams} requests at once"
    needs = f"{name} needs {gigabytes(missing.needed_bytes)} with a context of {problem.context}{requests}"
    if missing.cause is not None:
        return DoesNotFit(
            f"{needs}, which fits, but not with {missing.cause}",
            hint=f"Leave {missing.cause} out." if missing.cause.startswith("--") else "Ask for less.",
        )
    places = problem.cluster.places
    has = [f"{place.name} has {gigabytes(problem.cluster.room_bytes(at))}" for at, place in enumerate(places)]
    said = f"{needs}, and {some(has, _NAMED, 'more nodes have little')} to give"
    if len(places) > _NAMED:
        said = f"{needs}, and {len(places)} nodes have {gigabytes(missing.there_bytes)} to give together"
    closed = _closed(problem)
    if missing.missing_bytes is not None:
        said += f"; the nearest miss lacks {gigabytes(missing.missing_bytes)} on {missing.node}"
    if closed and missing.there_bytes > missing.needed_bytes:
        said += f"; {closed}"
    return DoesNotFit(said, hint=_remedies(problem, missing))


def _remedies(problem: Problem, missing: Shortage) -> str:
    ways = []
    if missing.context is not None:
        ways.append(f"--context {missing.context}")
    if missing.streams is not None:
        ways.append(f"--concurrency {missing.streams}")
    if missing.variant is not None:
        ways.append(f"the {missing.variant} variant")
    if missing.missing_bytes is not None:
        ways.append(f"{gigabytes(missing.missing_bytes)} more on {missing.node}")
    if not ways:
        return "Start exo serve-shard on more machines, or take a smaller model."
    return f"It would fit with {listed(ways, 'or with')}."


def _closed(problem: Problem) -> str:
    """The first ways that are closed, by name."""
    places, found = problem.cluster.places, []
    for a, row in enumerate(problem.cluster.ways):
        for b, way in enumerate(row):
            if not way.open:
                found.append(f"{places[a].name} does not reach {places[b].name} ({way.closed})")
    return some(found, 2, "more ways are closed") if found else ""


def told_tokens(plan: Plan) -> str:
    """`14.1 tok/s for one request, 96 tok/s for 8`."""
    assert plan.forecast is not None
    alone = f"{per_second(plan.forecast.decode_tokens_per_s)} for one request"
    if plan.concurrency == 1:
        return alone
    return f"{alone}, {per_second(plan.forecast.total_tokens_per_s)} for {plan.concurrency} together"
