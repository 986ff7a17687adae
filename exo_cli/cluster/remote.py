"""Asking every node of the topology what it runs, or to let something go. Knows nothing of terminals."""

import asyncio
from collections.abc import Sequence

from exo_cli.cluster.pairs import split_endpoint
from exo_cli.errors import ExoError
from exo_cli.schemas.running import NodeMemory, Running, RunningStage, Unloaded
from exo_cli.schemas.topology import Node, Topology
from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.channels import dial
from exo_cli.wire.hello import hello
from exo_cli.wire.status import translated
from exo_cli.wire.stubs import control

ASK_TIMEOUT_S = 5.0
RATE_OVER_MS = 400
RATE_LOOKS = 3
FOREVER_MS = 2**64 - 1


def shards(topology: Topology) -> list[Node]:
    """The nodes that may hold something and answer."""
    return [node for node in topology.nodes if node.role == "shard" and node.state in ("ready", "draining")]


async def running(nodes: Sequence[Node], source: KeyringSource) -> Running:
    """What every node holds; one that does not answer is named with the reason."""
    asked = await asyncio.gather(*(_stats(node, source) for node in nodes))
    return Running(
        nodes=tuple(memory for memory, _ in asked),
        stages=tuple(stage for _, stages in asked for stage in stages),
    )


async def _stats(node: Node, source: KeyringSource) -> tuple[NodeMemory, list[RunningStage]]:
    try:
        host, port = split_endpoint(node.endpoint)
        channel = await dial(host, port, source.current(), timeout_s=ASK_TIMEOUT_S)
        async with channel:
            with translated(node.name):
                replies = control(channel).Stats(
                    pb.StatsRequest(hello=hello(), every_ms=RATE_OVER_MS), timeout=ASK_TIMEOUT_S
                )
                reply: pb.StatsReply = await replies.read()
                for _ in range(RATE_LOOKS):
                    if all(stage.tokens_per_s for stage in reply.stages if stage.requests):
                        break
                    # What runs has a rate: the difference of two looks, between which an engine told of it.
                    reply = await replies.read()
                replies.cancel()
    except ExoError as error:
        return NodeMemory(
            node=node.name, node_id=node.id, used_bytes=0, free_bytes=0, error=error.message
        ), []
    memory = NodeMemory(
        node=node.name,
        node_id=node.id,
        used_bytes=reply.memory_used_bytes,
        free_bytes=reply.memory_free_bytes,
    )
    return memory, [_stage(node, stage) for stage in reply.stages]


def _stage(node: Node, stage: pb.StageStats) -> RunningStage:
    return RunningStage(
        node=node.name,
        node_id=node.id,
        stage_id=stage.stage_id,
        model=stage.model.name,
        digest=stage.model.digest,
        layers=(stage.first_layer, stage.last_layer),
        state=stage.state,
        requests=stage.requests,
        tokens_per_s=round(stage.tokens_per_s, 2),
        kv_used_bytes=stage.kv_used_bytes,
        kv_budget_bytes=stage.kv_budget_bytes,
        weights_bytes=stage.weights_bytes,
        step_ms_p50=round(stage.step_ms_p50, 3),
        step_ms_p99=round(stage.step_ms_p99, 3),
        idle_s=stage.idle_ms / 1000,
        keep_alive_s=None if stage.keep_alive_ms == FOREVER_MS else stage.keep_alive_ms / 1000,
        numerics=stage.numerics or None,
        numerics_reason=stage.numerics_reason or None,
        failure=stage.failure or None,
    )


async def unload(nodes: Sequence[Node], source: KeyringSource, model: str) -> tuple[Unloaded, ...]:
    """Let go of a model (or of everything) on every node."""
    return tuple(await asyncio.gather(*(_unload(node, source, model) for node in nodes)))


async def _unload(node: Node, source: KeyringSource, model: str) -> Unloaded:
    try:
        host, port = split_endpoint(node.endpoint)
        channel = await dial(host, port, source.current(), timeout_s=ASK_TIMEOUT_S)
        async with channel:
            with translated(node.name):
                reply = await control(channel).Unload(
                    pb.UnloadRequest(hello=hello(), model=model), timeout=4 * ASK_TIMEOUT_S
                )
    except ExoError as error:
        return Unloaded(node=node.name, stages=(), freed_bytes=0, error=error.message)
    return Unloaded(node=node.name, stages=tuple(reply.stage_ids), freed_bytes=reply.freed_bytes)
