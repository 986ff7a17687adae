"""Loading a chain: a stage on each node at the same time, and all of it undone if one of them fails.

A load is named by what it makes, so that a node which has that stage already says so at once. Knows
nothing of why the plan is as it is, nor of requests.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from exo_cli.cluster.pairs import Pair, addresses_to, join_endpoint, split_endpoint
from exo_cli.drive.failures import at_node, load_failure
from exo_cli.drive.flow import StageAddress
from exo_cli.errors import ExoError, NotFound, Unavailable
from exo_cli.models.random_model import RandomModel
from exo_cli.schemas.plan import Plan, PlannedStage
from exo_cli.schemas.topology import Link, Node
from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.channels import dial
from exo_cli.wire.hello import hello
from exo_cli.wire.loads import check_stages, load_request
from exo_cli.wire.status import translated
from exo_cli.wire.stubs import control

DIAL_TIMEOUT_S: Final = 5.0
UNDO_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Progress:
    """What a node does for its stage."""

    node: str
    doing: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class LoadedStage:
    """A stage that is ready."""

    node: Node
    layers: tuple[int, int]
    stage_id: str
    data_port: int
    frame_port: int
    """Where other stages come in."""
    weights_bytes: int
    kv_budget_bytes: int
    fresh: bool
    """Whether it was loaded just now; else the node had it."""
    took_s: float = 0.0
    """From asking the node to its answer."""
    numerics: str = "exact"
    """How it computes; `numerics_reason` says why it is exact where fast was asked for."""
    numerics_reason: str = ""


async def load(
    plan: Plan,
    nodes: Mapping[str, Node],
    layers_in_model: int,
    source: KeyringSource,
    *,
    weights_from: Callable[[Node], str] = lambda node: "",
    random: RandomModel | None = None,
    numerics: str = "exact",
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_failed: Callable[[Node], None] = lambda node: None,
) -> tuple[LoadedStage, ...]:
    """Load the plan's first chain. `nodes` by id; `weights_from` says where a node finds our own files;
    of a `random` model there are none, and each node makes its weights.

    `on_failed` hears which node could not do its part, before that is raised.
    """
    stages = plan.replicas[0].stages if plan.replicas else ()
    check_stages(plan, stages, layers_in_model)
    begun: list[_Begun] = []
    for stage in stages:
        node = _node(nodes, stage)
        request = load_request(
            plan, stage, layers_in_model, weights_from=weights_from(node), numerics=numerics
        )
        if random is not None:
            request.random_geometry, request.random_seed = random.config, random.seed
        begun.append(_Begun(node, stage, request))
    tasks = [asyncio.create_task(_load_one(each, source, on_progress)) for each in begun]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for each, task in zip(begun, tasks, strict=True):
            # The first that failed; those that still run wait for it.
            if task.done() and task.exception() is not None:
                on_failed(each.node)
                task.result()
        return tuple([task.result() for task in tasks])
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # Also those whose last word has not reached us: a stage is named by its load.
        await _unload([(each.node, each.request.load_id) for each in begun if each.fresh], source)
        raise


async def unload(stages: Sequence[LoadedStage], source: KeyringSource) -> None:
    """Let stages go; a node that cannot be asked loses them with their lease."""
    await _unload([(stage.node, stage.stage_id) for stage in stages], source)


def addresses(stages: Sequence[LoadedStage], links: Sequence[Link]) -> list[StageAddress]:
    """The chain's stages with the two ways to each: ours, and that of the stage before it."""
    best = {(link.from_, link.to): link for link in links}
    return [
        StageAddress(
            node=stage.node.name,
            stage_id=stage.stage_id,
            endpoint=join_endpoint(split_endpoint(stage.node.endpoint)[0], stage.data_port),
            # The first stage is reached by the last one, which brings the tokens back.
            reached=join_endpoint(_way(stages[at - 1].node, stage.node, best), stage.frame_port),
        )
        for at, stage in enumerate(stages)
    ]


def _node(nodes: Mapping[str, Node], stage: PlannedStage) -> Node:
    node = nodes.get(stage.ranks[0].node)
    if node is None:
        raise NotFound(
            f"the plan names a node that is not there: {stage.ranks[0].node}",
            hint="exo discover shows who is there.",
        )
    return node


@dataclass(slots=True)
class _Begun:
    """A load under way."""

    node: Node
    stage: PlannedStage
    request: pb.LoadRequest
    fresh: bool = False
    """Whether the node does something for it; one that has the stage says so at once."""


async def _load_one(
    begun: _Begun, source: KeyringSource, on_progress: Callable[[Progress], None]
) -> LoadedStage:
    node = begun.node
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    host, port = split_endpoint(node.endpoint)
    try:
        channel = await dial(host, port, source.current(), timeout_s=DIAL_TIMEOUT_S)
    except ExoError as error:
        raise at_node(error, node.name) from error
    async with channel:
        with translated(node.name):
            async for event in control(channel).Load(begun.request):
                match event.WhichOneof("kind"):
                    case "progress":
                        begun.fresh = True
                        said = event.progress
                        on_progress(Progress(node.name, said.doing, said.done, said.total))
                    case "failed":
                        raise load_failure(event.failed, node.name)
                    case "ready":
                        ready = event.ready
                        return LoadedStage(
                            node=node,
                            layers=begun.stage.layers,
                            stage_id=ready.stage_id,
                            data_port=ready.data_port,
                            frame_port=ready.frame_port,
                            weights_bytes=ready.weights_bytes,
                            kv_budget_bytes=ready.kv_budget_bytes,
                            fresh=begun.fresh,
                            took_s=loop.time() - began_s,
                            numerics=ready.numerics or "exact",
                            numerics_reason=ready.numerics_reason,
                        )
    raise Unavailable(
        f"{node.name} ended the load without saying why", hint="exo ps shows what runs there; try again."
    )


async def _unload(stages: Sequence[tuple[Node, str]], source: KeyringSource) -> None:
    await asyncio.gather(
        *(_unload_one(node, stage_id, source) for node, stage_id in stages), return_exceptions=True
    )


async def _unload_one(node: Node, stage_id: str, source: KeyringSource) -> None:
    host, port = split_endpoint(node.endpoint)
    async with asyncio.timeout(UNDO_TIMEOUT_S):
        channel = await dial(host, port, source.current(), timeout_s=UNDO_TIMEOUT_S)
        async with channel:
            await control(channel).Unload(pb.UnloadRequest(hello=hello(), stage_id=stage_id))


def _way(source: Node, target: Node, links: Mapping[tuple[str, str], Link]) -> str:
    """The address of `target` for `source`: measured, else within the machine, else as it says."""
    link = links.get((source.id, target.id))
    if link is not None and link.error is None and link.address is not None:
        return link.address
    host = split_endpoint(target.endpoint)[0]
    loopback = host == "::1" or host.startswith("127.")
    if source.host == target.host or not (loopback or "%" in host):
        # Every address of a machine leads to it from within as well; this one we know to be listened on.
        return host
    ways = addresses_to(Pair(source, target))
    if not ways:
        raise Unavailable(
            f"no address of {target.name} is known that {source.name} could reach",
            hint="exo discover measures the links between nodes.",
        )
    return ways[0][0]
