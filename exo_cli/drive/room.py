"""What nodes would have room for if they let go of all that nobody uses, which a Load makes them do.

Knows nothing of what is to be placed there.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

import msgspec

from exo_cli.cluster.remote import running
from exo_cli.schemas.topology import Node
from exo_cli.trust.keyring import KeyringSource

SETTLE_S: Final = 1.5
"""Nodes hear twice a second that an engine's requests are over."""
_LOOK_S: Final = 0.1


async def emptied(nodes: Sequence[Node], source: KeyringSource) -> list[Node]:
    """The same nodes; the memory of one on which nothing runs is all that it has for models."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + SETTLE_S
    while True:
        said = await running(nodes, source)
        busy = {stage.node_id for stage in said.stages if stage.requests}
        if not busy or loop.time() > until_s:
            break
        await asyncio.sleep(_LOOK_S)
    room = {
        each.node_id: each.used_bytes + each.free_bytes
        for each in said.nodes
        if each.error is None and each.used_bytes and each.node_id not in busy
    }
    return [_with(node, room[node.id]) if node.id in room else node for node in nodes]


def _with(node: Node, room_bytes: int) -> Node:
    # What is free belongs to the machine and to its other nodes as well.
    free = max(node.memory.free_bytes, room_bytes)
    memory = msgspec.structs.replace(node.memory, limit_bytes=room_bytes, free_bytes=free)
    return msgspec.structs.replace(node, memory=memory)
