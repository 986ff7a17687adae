"""How a chain computes: what is asked of all of its stages alike, and what came of it.

`fast` is the default where every node of the chain offers it; a plan may say otherwise. Knows nothing of
kernels, nor of how a stage is loaded.
"""

from collections.abc import Iterable, Sequence
from typing import Final, Literal

from exo_cli.drive.choose import Choice
from exo_cli.drive.load import LoadedStage
from exo_cli.schemas.plan import PlannedStage
from exo_cli.schemas.topology import LoadedStage as Held
from exo_cli.schemas.topology import Node

Numerics = Literal["exact", "fast"]
MIXED: Final = "mixed"
_ALL: Final[tuple[Numerics, ...]] = ("exact", "fast")


def numerics_of(choice: Choice, asked: Numerics | None) -> Numerics:
    """What to ask of every stage, so that no two of a chain are asked for different things."""
    if asked is not None:
        return asked
    plan = choice.plan
    stages = plan.replicas[0].stages if plan.replicas else ()
    # Nobody's standing stage gets a second copy beside it because it was loaded the other way.
    standing = {_standing(stage, choice, (plan.model.digest, plan.model.name)) for stage in stages}
    for numerics in _ALL:
        if standing == {numerics}:
            return numerics
    if plan.numerics is not None:
        return plan.numerics
    nodes = [choice.nodes[stage.ranks[0].node] for stage in stages if stage.ranks[0].node in choice.nodes]
    return "fast" if nodes and all("fast" in node.numerics for node in nodes) else "exact"


def ran(stages: Iterable[LoadedStage]) -> str:
    """What the chain computes with, in a word."""
    found = {stage.numerics for stage in stages}
    return found.pop() if len(found) == 1 else MIXED


def fell_back(stages: Sequence[LoadedStage]) -> str | None:
    """Who computes exactly though `fast` was asked for, and why; None if nobody does."""
    short = [stage for stage in stages if stage.numerics_reason]
    if not short:
        return None
    reasons = "; ".join(dict.fromkeys(stage.numerics_reason for stage in short))
    if len(short) == len(stages):
        return f"no fast kernels for this ({reasons}): it computes exactly, as mlx-lm does"
    names = ", ".join(dict.fromkeys(stage.node.name for stage in short))
    return f"no fast kernels on {names} ({reasons}): exact there and fast elsewhere"


def _standing(stage: PlannedStage, choice: Choice, names: tuple[str, str]) -> str | None:
    """How the same stage computes that a plan gave to its node, if one did."""
    node: Node | None = choice.nodes.get(stage.ranks[0].node)
    held: tuple[Held, ...] = () if node is None else node.stages
    for each in held:
        if each.pinned and each.model in names and each.layers == stage.layers:
            return each.numerics
    return None
