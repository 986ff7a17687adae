"""A split by free memory, until the planner forecasts speed as well. Pure; the same input, the same plan.

One node if one has room for all of it, this machine's own first. Else all nodes that have room for a
layer, each with a contiguous range in proportion to its free memory; or as many as were asked for, the
roomiest. Knows nothing of links or speeds.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from exo_cli.drive.size import ModelSize
from exo_cli.errors import DoesNotFit, Unavailable
from exo_cli.schemas.plan import ModelRef, Plan, PlannedStage, Rank, RankMemory, Replica
from exo_cli.schemas.topology import Node
from exo_cli.wire.hello import PROTOCOL

BASE_BYTES: Final = 320 * 2**20
"""An engine process before it has any weights: Python, MLX, gRPC."""
BUFFER_BYTES: Final = 128 * 2**20
"""What a step needs beside weights and caches."""

HEADROOM: Final = 0.9
"""Of free memory; a node lets engines have no more either."""

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
    nodes: int | None = None
    """How many nodes somebody wants it on; else as few as have room."""

    def kv_bytes(self, layers: int) -> int:
        return layers * self.size.kv_bytes_per_token * self.context * self.concurrency

    def bytes(self, first: int, last: int) -> int:
        """Of one stage, everything included."""
        return self.size.weights(first, last) + self.kv_bytes(last - first) + BASE_BYTES + BUFFER_BYTES


def split(need: Need, nodes: Sequence[Node], *, here: str) -> Plan:
    """A plan over some of `nodes`; `here` names the driver's own machine. Says why in `reason`."""
    left_out = {node.name: why for node in nodes if (why := unfit(node)) is not None}
    fit = sorted((node for node in nodes if unfit(node) is None), key=lambda node: _order(node, here))
    if not fit:
        said = _list(f"{name} {why}" for name, why in sorted(left_out.items()))
        raise Unavailable(
            f"no node takes work: {said or 'nobody is there'}", hint="Start one: exo serve-shard"
        )
    n = need.size.layers
    alone = [node for node in fit if need.bytes(0, n) <= usable_bytes(node)]
    if alone and need.nodes in (None, 1):
        # `fit` has this machine's nodes first; of several the roomiest.
        best = min(alone, key=lambda node: (node.host != here, -usable_bytes(node), _order(node, here)))
        where = f"{best.name} (this machine)" if best.host == here else best.name
        return _plan(need, [(best, (0, n))], f"{where} has room for all of it", left_out)
    chain = _chain(need, fit, left_out)
    if chain is None:
        raise _too_large(need, fit)
    if need.nodes not in (None, len(chain)):
        raise _too_few(need, fit)
    ranges = _list(f"{node.name} {first}-{last - 1}" for node, (first, last) in chain)
    return _plan(need, chain, f"split by free memory: layers {ranges}", left_out)


def plan_of(need: Need, chain: Sequence[tuple[Node, Range]], reason: str) -> Plan:
    """The plan that says just this."""
    return _plan(need, chain, reason, {})


def usable_bytes(node: Node) -> int:
    """The smallest of its three numbers, less what the system needs to breathe."""
    memory = node.memory
    return int(min(memory.ram_bytes, memory.limit_bytes, memory.free_bytes) * HEADROOM)


def unfit(node: Node) -> str | None:
    """Why a node takes no part; None if it can."""
    if node.protocol != PROTOCOL:
        return f"speaks protocol {node.protocol} (version {node.version})"
    if node.role != "shard":
        return "only announces itself"
    if node.state != "ready":
        return f"is {node.state}"
    return "has no engine" if node.backend == "none" else None


def _order(node: Node, here: str) -> tuple[bool, str, str, str]:
    """Along the chain: this machine first, and nodes of one machine beside each other."""
    return node.host != here, node.host, node.name, node.id


def _chain(need: Need, fit: list[Node], left_out: dict[str, str]) -> list[tuple[Node, Range]] | None:
    n = need.size.layers
    least = min(need.bytes(at, at + 1) for at in range(n))
    roomy = []
    for node in fit:
        if usable_bytes(node) < least:
            left_out[node.name] = "has no room for a layer"
        else:
            roomy.append(node)
    most = min(n, need.nodes or n)
    if len(roomy) > most:
        keep = sorted(roomy, key=lambda node: (-usable_bytes(node), node.name, node.id))[:most]
        left_out.update({node.name: "is not needed" for node in roomy if node not in keep})
        roomy = [node for node in roomy if node in keep]
    if not roomy:
        return None
    room = [usable_bytes(node) - BASE_BYTES - BUFFER_BYTES for node in roomy]
    counts = _mended(need, roomy, _apportion(n, room))
    if counts is None:
        return None
    return list(zip(roomy, _ranges(counts), strict=True))


def _apportion(layers: int, shares: Sequence[int]) -> list[int]:
    """At least one each, the rest in proportion, by the largest remainder."""
    total = sum(shares)
    exact = [layers * share / total for share in shares]
    counts = [max(1, int(each)) for each in exact]
    while sum(counts) > layers:
        most = max(range(len(counts)), key=lambda at: (counts[at] > 1, counts[at] - exact[at], -at))
        counts[most] -= 1
    while sum(counts) < layers:
        least = max(range(len(counts)), key=lambda at: (exact[at] - counts[at], -at))
        counts[least] += 1
    return counts


def _mended(need: Need, nodes: Sequence[Node], counts: list[int]) -> list[int] | None:
    """Layers are not all of one size: move some from where they do not fit to where there is room."""

    def over(counts: Sequence[int]) -> list[int]:
        ranges = _ranges(counts)
        return [need.bytes(*each) - usable_bytes(node) for node, each in zip(nodes, ranges, strict=True)]

    for _ in range(need.size.layers * len(nodes)):
        excess = over(counts)
        if max(excess) <= 0:
            return counts
        worst = max(range(len(counts)), key=lambda at: (excess[at], -at))
        better = []
        for to in range(len(counts)):
            if to != worst and counts[worst] > 1:
                moved = list(counts)
                moved[worst] -= 1
                moved[to] += 1
                cost = sum(max(0, each) for each in over(moved))
                better.append((cost, excess[to], to, moved))
        if not better or min(better)[0] >= sum(max(0, each) for each in excess):
            return None
        counts = min(better)[3]
    return None


def _ranges(counts: Sequence[int]) -> list[Range]:
    found, at = [], 0
    for count in counts:
        found.append((at, at + count))
        at += count
    return found


def _plan(need: Need, chain: Sequence[tuple[Node, Range]], reason: str, left_out: dict[str, str]) -> Plan:
    if left_out:
        reason += "; left out: " + _list(f"{name} ({why})" for name, why in sorted(left_out.items()))
    return Plan(
        model=need.model,
        dtype="float32",  # what `exact` computes in, on every backend
        context=need.context,
        concurrency=need.concurrency,
        replicas=(Replica(stages=tuple(_stage(need, node, range_) for node, range_ in chain)),),
        forecast=None,
        binding=None,
        reason=reason,
    )


def _stage(need: Need, node: Node, layers: Range) -> PlannedStage:
    memory = RankMemory(
        weights_bytes=need.size.weights(*layers),
        kv_bytes=need.kv_bytes(layers[1] - layers[0]),
        buffers_bytes=BUFFER_BYTES,
        base_bytes=BASE_BYTES,
        limit_bytes=usable_bytes(node),
    )
    return PlannedStage(layers=layers, ranks=(Rank(node=node.id, share=1.0, memory=memory),))


def _too_few(need: Need, nodes: Sequence[Node]) -> DoesNotFit:
    has = _list(f"{node.name} has {_gb(usable_bytes(node))}" for node in nodes[:_NAMED])
    return DoesNotFit(
        f"{need.model.name} cannot be put on {need.nodes} nodes: it has {need.size.layers} layers, "
        f"and of the nodes that take work {has} free",
        hint="Leave --nodes out, or say fewer.",
    )


def _too_large(need: Need, nodes: Sequence[Node]) -> DoesNotFit:
    n = need.size.layers
    has = [f"{node.name} has {_gb(usable_bytes(node))}" for node in nodes[:_NAMED]]
    more = nodes[_NAMED:]
    if more:
        has.append(f"{len(more)} more have {_gb(sum(map(usable_bytes, more)))}")
    each = f"; each takes {_gb(BASE_BYTES + BUFFER_BYTES)} beside its layers" if len(nodes) > 1 else ""
    return DoesNotFit(
        f"{need.model.name} needs {_gb(need.bytes(0, n))} with a context of {need.context} tokens, "
        f"and {_list(has)} free{each}",
        hint="Start exo serve-shard on another machine, free some memory, or take a smaller model.",
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def _list(parts: Iterable[str]) -> str:
    return ", ".join(parts)
