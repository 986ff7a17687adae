"""Nothing fits: how much is missing, where it would have to be, and what would do instead.

Everything that is offered was tried: the plan exists with it. Knows nothing of how a person types it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from exo_cli.planning import solver
from exo_cli.planning.problem import Limits, Problem, needed_bytes
from exo_cli.planning.work import KV_STEP, Work

_STEPS: Final = 12
"""Of halving: a shortage is told to 1/4096 of the model."""
_NODES: Final = 6


@dataclass(frozen=True, slots=True)
class Shortage:
    """What is missing, and what would make it fit; None: that alone would not."""

    needed_bytes: int
    """On one machine, everything included."""
    there_bytes: int
    """On all nodes together."""
    missing_bytes: int | None
    """On the node where the least is missing."""
    node: str | None
    context: int | None
    streams: int | None
    variant: str | None
    """Another packing of the same model."""
    kv_bits: Literal[8] | None
    """Caches of so many bits a number."""
    cause: str | None
    """Why it does not fit though there is memory enough: something that was asked for."""


def shortage(problem: Problem, variants: dict[str, Work], kv_bits: Sequence[Literal[8]] = ()) -> Shortage:
    """`variants`: the same model packed otherwise, by name, the largest first; `kv_bits`: what engines
    can pack caches to, the most first."""
    places = range(len(problem.cluster.places))
    rooms = [problem.cluster.room_bytes(at) for at in places]
    whole = max(
        (needed_bytes(problem.memory(at, 0, len(problem.work.layers), problem.streams)) for at in places),
        default=0,
    )
    node, missing = _nearest(problem)
    return Shortage(
        needed_bytes=whole,
        there_bytes=sum(rooms),
        missing_bytes=missing,
        node=node,
        context=_less(
            problem.context // KV_STEP, lambda n: replace(problem, context=n * KV_STEP, prompt=1), KV_STEP
        ),
        streams=_less(problem.streams, lambda n: replace(problem, streams=n), 1),
        variant=next((name for name, work in variants.items() if _fits(replace(problem, work=work))), None),
        kv_bits=next(
            (bits for bits in kv_bits if _fits(replace(problem, work=problem.work.with_kv_bits(bits)))), None
        ),
        cause=_cause(problem),
    )


def _fits(problem: Problem) -> bool:
    # One objective whose search is quick: whether anything fits does not depend on it.
    limits, quick = problem.limits, replace(problem, objective="latency")
    if limits.parallel is None and problem.streams > 1:
        # One chain is the sooner found; several may fit where it does not, with fewer requests each.
        chain = replace(quick, limits=replace(limits, parallel="pipeline"))
        if solver.solve(chain) is not None:
            return True
    return solver.solve(quick) is not None


def _less(start: int, made: Callable[[int], Problem], step: int) -> int | None:
    """The largest number below `start` with which it fits, in units of `step`."""
    if start <= 1 or not _fits(made(1)):
        return None
    low, high = 1, start
    while high - low > max(1, start // 64):
        middle = (low + high) // 2
        if _fits(made(middle)):
            low = middle
        else:
            high = middle
    return low * step


def _nearest(problem: Problem) -> tuple[str | None, int | None]:
    """The node that lacks the least, all others staying as they are; and how much that is."""
    places = problem.cluster.places
    whole = (
        int(problem.work.weights_bytes * 1.1)
        + problem.work.stage_kv_bytes(0, len(problem.work.layers), problem.context) * problem.streams
    )
    best: tuple[int, str] | None = None
    by_room = sorted(range(len(places)), key=lambda at: (-places[at].cap_bytes, at))
    for at in by_room[:_NODES]:
        high = whole + problem.fixed_bytes(at) if best is None else best[0] - 1
        if high <= 0 or not _fits(_with(problem, at, high)):
            continue
        low = 0
        for _ in range(_STEPS):
            middle = (low + high) // 2
            if _fits(_with(problem, at, middle)):
                high = middle
            else:
                low = middle
        if best is None or high < best[0]:
            best = (high, places[at].name)
    return (None, None) if best is None else (best[1], best[0])


def _with(problem: Problem, at: int, more: int) -> Problem:
    """With so many bytes more on one node."""
    places = list(problem.cluster.places)
    here = sum(other.host == places[at].host for other in places)
    places[at] = replace(
        places[at], cap_bytes=places[at].cap_bytes + more, free_bytes=(places[at].free_bytes + more) * here
    )
    return replace(problem, cluster=replace(problem.cluster, places=tuple(places)))


def _cause(problem: Problem) -> str | None:
    """A wish without which it would fit."""
    plain = replace(problem, limits=Limits())
    if problem.limits == Limits() or not _fits(plain):
        return None
    limits = problem.limits
    single = [
        ("--layers", replace(limits, pins=())),
        ("--min-nodes", replace(limits, min_nodes=1)),
        ("--max-nodes", replace(limits, max_nodes=None)),
        ("--parallel", replace(limits, parallel=None)),
    ]
    for name, freer in single:
        if freer != limits and _fits(replace(problem, limits=freer)):
            return name
    return "what was asked for together"
