"""After a chain failed: which of its nodes is to blame, and how that is said.

The nodes are asked themselves: one that does not answer is gone, one whose stage is not ready has lost
its engine, which can be loaded again. Knows nothing of requests, nor of where they go on.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from exo_cli.cluster.pairs import split_endpoint
from exo_cli.cluster.survey import describe_at
from exo_cli.drive.load import LoadedStage
from exo_cli.errors import ExoError
from exo_cli.schemas.plan import Plan
from exo_cli.schemas.topology import Node
from exo_cli.trust.keyring import KeyringSource

ANSWER_S: Final = 1.0
BLAME_S: Final = 8.0
"""A frozen engine may be noticed here before its node notices, which takes that one up to 6 s."""
_LOOK_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Lost:
    """A node of the chain that no longer does its part."""

    node: Node
    gone: bool
    """Whether the node does not answer at all; else it is its engine that ended."""

    def said(self, private: Node | None) -> str:
        """For a person; `private` is our own node, whose name nobody knows."""
        ours = private is not None and private.id == self.node.id
        name = "this machine's own node" if ours else self.node.name
        return f"{name} stopped answering" if self.gone else f"the engine on {name} ended"


async def blame(stages: Sequence[LoadedStage], models: Sequence[str], source: KeyringSource) -> list[Lost]:
    """The nodes that failed, as soon as one is known; none if all say for long enough that they are well.

    `models`: the names by which nodes may know the model.
    """
    loop = asyncio.get_running_loop()
    until_s = loop.time() + BLAME_S
    while True:
        found = await asyncio.gather(*(_asked(stage, models, source) for stage in stages))
        lost = [each for each in found if each is not None]
        if lost or loop.time() > until_s:
            # A node may have held two stages.
            return list({each.node.id: each for each in lost}.values())
        await asyncio.sleep(_LOOK_S)


async def _asked(stage: LoadedStage, models: Sequence[str], source: KeyringSource) -> Lost | None:
    host, port = split_endpoint(stage.node.endpoint)
    try:
        async with asyncio.timeout(ANSWER_S):
            now = await describe_at(host, port, source)
    except (TimeoutError, ExoError):
        return Lost(stage.node, gone=True)
    if now.id != stage.node.id:
        return Lost(stage.node, gone=True)
    has = any(
        each.state == "ready" and each.model in models and each.layers == stage.layers for each in now.stages
    )
    return None if has else Lost(now, gone=False)


def who(plan: Plan, nodes: Mapping[str, Node], here: str) -> str:
    """The nodes of a plan, for a person; a machine that is ours and has one node is this machine."""
    found = [nodes[rank.node] for stage in plan.replicas[0].stages for rank in stage.ranks]
    ours = [node for node in found if node.host == here]
    names = ["this machine" if ours == [node] else node.name for node in found]
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
