"""What `run` does without a plan of its own: the planner's best chain over the nodes that answer.

One chain, since a request takes one. Says in the reason who takes no part. Knows nothing of how plans are
found (planning does) or carried out.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from msgspec import structs

from exo_cli.drive.size import ModelSize
from exo_cli.errors import DoesNotFit, Unavailable
from exo_cli.planning import cluster, constants
from exo_cli.planning.cluster import cluster_of, usable_bytes
from exo_cli.planning.planner import find_plan
from exo_cli.planning.problem import Limits, Problem, account, needed_bytes
from exo_cli.planning.work import Work
from exo_cli.schemas.plan import ModelRef, Plan, PlannedStage, Rank, RankMemory, Replica
from exo_cli.schemas.topology import Link, Node, Topology
from exo_cli.wire.hello import PROTOCOL

_PROMPT: Final = 512
"""How long a prompt is taken to be."""
_NAMED: Final = 8
"""Of the nodes that have too little, so many are told one by one."""

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Need:
    """What has to be placed."""

    model: ModelRef
    size: ModelSize
    context: int
    concurrency: int = 1
    kv_bits: Literal[8] | None = None
    """Of a number in the caches; None: as it is computed."""
    nodes: int | None = None
    """How many nodes somebody wants it on; else as many as are best."""
    exact: bool = False
    """Somebody wants it computed so, whatever its nodes offer."""

    @property
    def work(self) -> Work:
        return self.size.work.with_kv_bits(self.kv_bits)

    def memory(self, layers: Range, node: Node) -> RankMemory:
        """Of one stage there, item by item."""
        return account(
            self.work,
            layers,
            self.context,
            self.concurrency,
            base_bytes=constants.base_bytes(node.backend, fast="fast" in node.numerics and not self.exact),
            limit_bytes=usable_bytes(node),
        )

    def bytes(self, layers: Range, node: Node) -> int:
        """Of one stage there, everything included."""
        return needed_bytes(self.memory(layers, node))


def split(need: Need, nodes: Sequence[Node], *, here: str, links: Sequence[Link] = ()) -> Plan:
    """A plan over some of `nodes`. `here` names the driver's own machine, whose nodes are taken where
    others are no better."""
    if need.exact:
        nodes = [structs.replace(node, numerics=("exact",)) for node in nodes]
    topology = Topology(nodes=tuple(nodes), links=tuple(links))
    work = need.work
    there = cluster_of(topology, format=work.format, protocol=PROTOCOL, here=here)
    if not there.places:
        said = _list(f"{name} {why}" for name, why in sorted(there.left_out))
        raise Unavailable(
            f"no node takes work: {said or 'nobody is there'}", hint="Start one: exo serve-shard"
        )
    anyhow = Limits(parallel="pipeline")
    problem = Problem(work, there, need.context, need.concurrency, min(_PROMPT, need.context), limits=anyhow)
    wanted = replace(anyhow, min_nodes=need.nodes or 1, max_nodes=need.nodes)
    plan = find_plan(replace(problem, limits=wanted), need.model, whole=False)
    if plan is None:
        fit = sorted((node for node in nodes if unfit(node) is None), key=lambda node: (node.name, node.id))
        possible = need.nodes is not None and find_plan(problem, need.model, whole=False) is not None
        raise _too_few(need, fit) if possible else _too_large(need, fit)
    if not plan.left_out:
        return plan
    left_out = _list(f"{each.name} ({each.reason})" for each in plan.left_out)
    return structs.replace(plan, reason=f"{plan.reason}; left out: {left_out}")


def plan_of(need: Need, chain: Sequence[tuple[Node, Range]], reason: str) -> Plan:
    """The plan that says just this."""
    return Plan(
        model=need.model,
        dtype="float32",  # what `exact` computes in, on every backend
        context=need.context,
        concurrency=need.concurrency,
        replicas=(Replica(stages=tuple(_stage(need, node, layers) for node, layers in chain)),),
        forecast=None,
        binding=None,
        reason=reason,
        kv_bits=need.kv_bits,
    )


def unfit(node: Node) -> str | None:
    """Why a node takes no part; None if it can."""
    return cluster.unfit(node, PROTOCOL)


def _stage(need: Need, node: Node, layers: Range) -> PlannedStage:
    rank = Rank(node=node.id, share=1.0, memory=need.memory(layers, node), name=node.name)
    return PlannedStage(layers=layers, ranks=(rank,))


def _too_few(need: Need, nodes: Sequence[Node]) -> DoesNotFit:
    has = _list(f"{node.name} has {_gb(usable_bytes(node))}" for node in nodes[:_NAMED])
    return DoesNotFit(
        f"{need.model.name} cannot be put on {need.nodes} nodes: it has {need.size.layers} layers, "
        f"and of the nodes that take work {has} free",
        hint="Leave --nodes out, or say another number.",
    )


def _too_large(need: Need, nodes: Sequence[Node]) -> DoesNotFit:
    whole = max(need.bytes((0, need.size.layers), node) for node in nodes)
    has = [f"{node.name} has {_gb(usable_bytes(node))}" for node in nodes[:_NAMED]]
    more = nodes[_NAMED:]
    if more:
        has.append(f"{len(more)} more have {_gb(sum(map(usable_bytes, more)))}")
    base = max(need.memory((0, 1), node).base_bytes for node in nodes)
    each = f"; each takes {_gb(base)} beside its layers" if len(nodes) > 1 else ""
    return DoesNotFit(
        f"{need.model.name} needs {_gb(whole)} with a context of {need.context} tokens, "
        f"and {_list(has)} free{each}",
        hint="Start exo serve-shard on another machine, free some memory, or take a smaller model.",
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def _list(parts: Iterable[str]) -> str:
    return ", ".join(parts)
