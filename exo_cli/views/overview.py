"""The cluster in few numbers: what the table, the picture and the summary line have in common.

Knows nothing of terminals or SVG.
"""

from dataclasses import dataclass

from exo_cli.cluster.advice import names
from exo_cli.schemas.topology import Link, LoadedStage, Node, Topology
from exo_cli.views.figures import bytes_text, gib, plural, rate_text


@dataclass(frozen=True, slots=True)
class MemorySplit:
    """RAM in three parts: in use, free for models, free but beyond what the accelerator may use."""

    used_bytes: int
    usable_bytes: int
    beyond_bytes: int

    def marks(self, length: int) -> tuple[int, int]:
        """Where the used and the usable part end on a bar of `length`."""
        total = self.used_bytes + self.usable_bytes + self.beyond_bytes
        if total <= 0:
            return 0, 0
        return (
            round(length * self.used_bytes / total),
            round(length * (self.used_bytes + self.usable_bytes) / total),
        )


def own_memory(node: Node) -> bool:
    """Whether the accelerator has memory of its own, so that models do not live in RAM."""
    return node.backend == "cuda" and 0 < node.memory.limit_bytes < node.memory.ram_bytes


def memory_split(node: Node) -> MemorySplit:
    """Of the accelerator's own memory where it has some, else of RAM."""
    memory = node.memory
    whole = max(memory.limit_bytes if own_memory(node) else memory.ram_bytes, 0)
    free = min(max(memory.free_bytes, 0), whole)
    usable = min(free, max(memory.limit_bytes, 0))
    return MemorySplit(whole - free, usable, free - usable)


def memory_text(node: Node) -> tuple[str, str, str]:
    """Free, whole and what else there is to say, for three columns: `21.4`, `24.0`, ` (limit 18.0)`."""
    memory = node.memory
    if own_memory(node):
        return gib(memory.free_bytes), gib(memory.limit_bytes), f" (RAM {gib(memory.ram_bytes)})"
    limited = 0 < memory.limit_bytes < memory.ram_bytes
    return (
        gib(memory.free_bytes),
        gib(memory.ram_bytes),
        f" (limit {gib(memory.limit_bytes)})" if limited else "",
    )


def ordered(topology: Topology) -> list[Node]:
    """By name, the dead last."""
    return sorted(topology.nodes, key=lambda node: (node.state == "dead", node.name.casefold(), node.id))


def alive(topology: Topology) -> list[Node]:
    return [node for node in ordered(topology) if node.state != "dead"]


def speed(link: Link | None) -> float | None:
    """Bytes a second, if this direction has a figure."""
    return None if link is None or link.error is not None else link.bytes_per_s


def cable_links(topology: Topology) -> list[Link]:
    """Measured links between live nodes of different machines, slowest first."""
    hosts = {node.id: node.host for node in alive(topology)}
    found = [
        link
        for link in topology.links
        if link.from_ in hosts
        and link.to in hosts
        and speed(link) is not None
        and not (hosts[link.from_] and hosts[link.from_] == hosts[link.to])
    ]
    return sorted(found, key=lambda link: (link.bytes_per_s or 0.0, link.from_, link.to))


def free_for_models(topology: Topology) -> int:
    """Over ready nodes that take work; nodes of one machine share its memory, so it counts once."""
    by_host: dict[str, int] = {}
    for node in topology.nodes:
        if node.state == "ready" and node.role == "shard":
            key = node.host or node.id
            by_host[key] = max(by_host.get(key, 0), memory_split(node).usable_bytes)
    return sum(by_host.values())


def models_text(stage: LoadedStage) -> str:
    """`llama-3.3-70b 0–7`: the layers it holds, last included; and its state while it is not ready."""
    first, end = stage.layers
    state = "" if stage.state == "ready" else f" {stage.state}"
    return f"{stage.model} {first}–{end - 1}{state}"


def hardware_text(node: Node) -> tuple[str, str, str]:
    """Chip, cores and backend, for three columns."""
    return node.chip or "–", plural(node.cores, "core"), node.backend or "–"


def counts_text(topology: Topology) -> str:
    """`3 nodes`, or `2 nodes ready, 1 suspect` as soon as one is not."""
    states = [node.state for node in topology.nodes]
    ready = states.count("ready")
    if ready == len(states):
        return plural(ready, "node")
    others = [(state, states.count(state)) for state in ("draining", "suspect", "dead")]
    return ", ".join([f"{plural(ready, 'node')} ready", *(f"{n} {state}" for state, n in others if n)])


def summary(topology: Topology) -> str:
    """The cluster in one line."""
    called = names(topology)
    parts = [counts_text(topology), f"{bytes_text(free_for_models(topology))} free for models"]
    if links := cable_links(topology):
        slow = links[0]
        way = f"{_short(called[slow.from_])} → {_short(called[slow.to])}"
        parts.append(f"slowest link {way} {rate_text(slow.bytes_per_s)}")
    return ", ".join(parts)


def _short(name: str) -> str:
    return name if len(name) <= 32 else name[:31] + "…"
