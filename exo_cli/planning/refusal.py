"""Nothing fits, in words: how much is missing where, and what would make it fit.

Knows nothing of how that was found out.
"""

from typing import Final

from exo_cli.errors import DoesNotFit
from exo_cli.planning.problem import Problem
from exo_cli.planning.shortage import Shortage
from exo_cli.planning.words import gigabytes, listed, some

_NAMED: Final = 6


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
    if missing.kv_bits is not None:
        ways.append(f"--kv-bits {missing.kv_bits}")
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
