"""What a request is run on: a plan's nodes; else the stages there are; else who answers; else this machine.

Looks for a third of a second at most, and says what it chose and who was silent. Reads the topology
file and never writes it. Knows nothing of loading.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from msgspec import structs

from exo_cli.cluster.facts import host_id
from exo_cli.cluster.membership import Change
from exo_cli.cluster.pairs import split_endpoint
from exo_cli.cluster.station import Station, watcher
from exo_cli.cluster.survey import describe, describe_at
from exo_cli.drive.room import emptied
from exo_cli.drive.split import Need, Range, plan_of, split, unfit
from exo_cli.errors import BadData, DoesNotFit, ExoError, NotAuthorised, Unavailable, VersionMismatch
from exo_cli.schemas.plan import Plan, PlannedStage
from exo_cli.schemas.topology import Link, Node, Topology
from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire.loads import check_stages

CONFIRM_S: Final = 0.3
PROBE_S: Final = 0.3
KNOWN_S: Final = 1.0
PLANNED_S: Final = 3.0
"""For the nodes of a plan: without them nothing runs, so they get more time."""

Private = Callable[[], Awaitable[Node]]
"""Starts a node of our own and gives its record."""


@dataclass(frozen=True, slots=True)
class Around:
    """Where to look."""

    topology: Topology
    source: KeyringSource
    nodes_dir: Path
    peers: tuple[tuple[str, int], ...] = ()
    known: tuple[Node, ...] = ()
    """Nodes that were met already: where there are some, they are asked and nobody else is called."""
    avoid: frozenset[str] = frozenset()
    """Ids of nodes that are not to be used, though they may answer; a plan's nodes are used regardless."""
    alone: bool = False
    """Only a node of our own: nobody else is asked."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What to load, and where."""

    plan: Plan
    nodes: Mapping[str, Node]
    links: Sequence[Link]
    silent: tuple[str, ...] = ()
    """Names of nodes that were expected and did not answer."""
    alone: bool = False
    planned: bool = False
    """Somebody said so with a plan."""

    def where(self) -> str:
        """Which layers go where, in words."""
        stages = self.plan.replicas[0].stages
        return ", ".join(
            f"{self.nodes[stage.ranks[0].node].name} {stage.layers[0]}-{stage.layers[1] - 1}"
            for stage in stages
        )


@dataclass(slots=True)
class _Found:
    """Who answered."""

    nodes: dict[str, Node] = field(default_factory=dict)
    failures: dict[str, ExoError] = field(default_factory=dict)


async def choose(
    need: Need, around: Around, *, plan: Plan | None, private: Private, tight: Need | None = None
) -> Choice:
    """Decide, in the order above; `tight` is what will do as well where `need` does not fit."""
    needs = [need] if tight is None else [need, tight]
    if plan is not None:
        return await _planned(need, around, plan)
    if around.alone:
        node = await private()
        return Choice(_split(needs, [node], node.host, ()), {node.id: node}, (), alone=True)
    links = around.topology.links
    known = [node for node in around.topology.nodes if node.id not in around.avoid]
    holders = [node for node in known if _holds(node, need)]
    if holders:
        found = await _confirm(holders, around.source, CONFIRM_S)
        chain = _loaded_chain(need, found.nodes.values())
        if chain is not None:
            used = plan_of(need, chain, _uses(chain))
            return Choice(used, found.nodes, links, _silent(holders, found))
    met = [node for node in around.known if node.id not in around.avoid]
    found = await (_confirm(met, around.source, KNOWN_S) if met else _probe(around))
    for id_ in around.avoid:
        found.nodes.pop(id_, None)
    silent = _silent([node for node in known if node.state == "ready"], found)
    workers = [node for node in found.nodes.values() if unfit(node) is None]
    if not workers:
        _check_enough(need, workers)
        node = await private()
        return Choice(_split(needs, [node], node.host, ()), {node.id: node}, (), silent, alone=True)
    _check_enough(need, workers)
    chain = _loaded_chain(need, workers)
    everybody = list(found.nodes.values())  # who takes no part is named in the reason
    if chain:
        return Choice(plan_of(need, chain, _uses(chain)), found.nodes, links, silent)
    try:
        used = _split(needs, everybody, host_id(), links)
    except DoesNotFit:
        used = _split(needs, await emptied(everybody, around.source), host_id(), links)
    return Choice(used, found.nodes, links, silent)


def _check_enough(need: Need, workers: Sequence[Node]) -> None:
    if (need.nodes or 1) > max(1, len(workers)):
        names = ", ".join(sorted(node.name for node in workers))
        answers = f"{'one answers' if len(workers) == 1 else f'{len(workers)} answer'}: {names}"
        raise Unavailable(
            f"{need.nodes} nodes are wanted, and {answers if workers else 'none answers'}",
            hint="Start exo serve-shard on more machines; exo discover --explain says why one is not seen.",
        )


def _split(needs: Sequence[Need], nodes: Sequence[Node], here: str, links: Sequence[Link]) -> Plan:
    """Of the first need that fits."""
    for need in needs[:-1]:
        with suppress(DoesNotFit):
            return split(need, nodes, here=here, links=links)
    return split(needs[-1], nodes, here=here, links=links)


async def _planned(need: Need, around: Around, plan: Plan) -> Choice:
    """A plan names its nodes: all of them, or nothing."""
    if not plan.model.digest and plan.model.name == need.model.name:
        # Planned before anybody had its weights.
        plan = structs.replace(plan, model=need.model)
    if plan.model.digest != need.model.digest:
        what = f"another model: {plan.model.name}, not {need.model.name}"
        if plan.model.name == need.model.name:
            what = f"another version of {need.model.name}: its digest begins with {plan.model.digest[:12]!r}"
            what += f", this one's with {need.model.digest[:12]!r}"
        raise BadData(f"the plan is for {what}", hint="Make the plan anew, or leave --plan out.")
    if need.kv_bits is not None:
        plan = structs.replace(plan, kv_bits=need.kv_bits)
    check_stages(plan, plan.replicas[0].stages if plan.replicas else (), need.size.layers)
    wanted = {rank.node for replica in plan.replicas[:1] for stage in replica.stages for rank in stage.ranks}
    known = [node for node in around.topology.nodes if wanted & {node.id, node.name}]
    found = await _confirm(known, around.source, PLANNED_S)
    if wanted - _called(found.nodes.values()).keys():
        found.nodes.update((await _probe(around)).nodes)
    called = _called(found.nodes.values())
    names = {node.id: node.name for node in known}
    missing = sorted(names.get(called_, called_) for called_ in wanted - called.keys())
    if missing:
        raise Unavailable(
            f"the plan needs nodes that do not answer: {', '.join(missing)}",
            hint="Start exo serve-shard there, or leave --plan out.",
        )
    used = {called[each].id: called[each] for each in wanted}
    return Choice(_by_id(plan, called), used, around.topology.links, planned=True)


def _called(nodes: Iterable[Node]) -> dict[str, Node]:
    """Nodes by what a plan may call them: an id, or a name that one of them alone has."""
    all_ = list(nodes)
    count = Counter(node.name for node in all_)
    by_name = {node.name: node for node in all_ if count[node.name] == 1}
    return {**by_name, **{node.id: node for node in all_}}


def _by_id(plan: Plan, called: Mapping[str, Node]) -> Plan:
    """The same plan, with every node that can be found called by its id."""

    def stage(each: PlannedStage) -> PlannedStage:
        ranks = (
            structs.replace(rank, node=called[rank.node].id if rank.node in called else rank.node)
            for rank in each.ranks
        )
        return structs.replace(each, ranks=tuple(ranks))

    replicas = (structs.replace(each, stages=tuple(map(stage, each.stages))) for each in plan.replicas)
    return structs.replace(plan, replicas=tuple(replicas))


# -- asking ----------------------------------------------------------------------------------------


async def _confirm(nodes: Iterable[Node], source: KeyringSource, timeout_s: float) -> _Found:
    """Describe each where it was last, all at once."""
    found = _Found()

    async def ask(node: Node) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                now = await describe_at(*split_endpoint(node.endpoint), source)
        except TimeoutError:
            return
        except ExoError as error:
            found.failures[node.name] = error
            return
        if now.id == node.id:
            found.nodes[node.id] = now

    await asyncio.gather(*(ask(node) for node in nodes))
    _raise_if_ours_differ(found)
    return found


async def _probe(around: Around) -> _Found:
    """Call once on every interface, and describe who answers."""
    found = _Found()
    asking: set[asyncio.Task[None]] = set()

    async def ask(change: Change) -> None:
        try:
            node = await describe(change.peer, around.source)
        except ExoError as error:
            found.failures[change.peer.name] = error
            return
        found.nodes[node.id] = node

    def heard(change: Change) -> None:
        if change.what in ("joined", "changed", "refuted"):
            task = asyncio.create_task(ask(change))
            asking.add(task)

    station = Station(
        watcher(), around.source, nodes_dir=around.nodes_dir, peers=around.peers, on_change=heard
    )
    await station.start()
    try:
        for node in around.topology.nodes:
            host, port = split_endpoint(node.endpoint)
            if not station.loopback_only or host == "::1" or host.startswith("127."):
                station.knock(host, port)
        await asyncio.sleep(PROBE_S)
    finally:
        await station.stop()
    if asking:
        # Heard in time; their records may take as long again.
        _, late = await asyncio.wait(asking, timeout=PROBE_S)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
    _raise_if_ours_differ(found)
    return found


def _raise_if_ours_differ(found: _Found) -> None:
    """Nobody can be used: say the reason that the user can mend."""
    if not found.nodes:
        for error in found.failures.values():
            if isinstance(error, VersionMismatch | NotAuthorised):
                raise error


def _silent(expected: Iterable[Node], found: _Found) -> tuple[str, ...]:
    return tuple(sorted(node.name for node in expected if node.id not in found.nodes))


# -- stages that are there -------------------------------------------------------------------------


def _holds(node: Node, need: Need) -> bool:
    return node.state == "ready" and bool(_stages(node, need))


def _stages(node: Node, need: Need) -> list[Range]:
    names = (need.model.digest, need.model.name)
    return [stage.layers for stage in node.stages if stage.model in names and stage.state == "ready"]


def _loaded_chain(need: Need, nodes: Iterable[Node]) -> list[tuple[Node, Range]] | None:
    """The fewest loaded stages that make the whole model, if there are any."""
    stages = sorted(
        ((node, layers) for node in nodes if node.state == "ready" for layers in _stages(node, need)),
        key=lambda each: (each[1], each[0].name, each[0].id),
    )
    best: dict[int, list[tuple[Node, Range]]] = {0: []}
    # In order of where they begin, so that every way to that layer is known by then.
    for node, layers in stages:
        if layers[0] in best and layers[0] < layers[1]:
            way = [*best[layers[0]], (node, layers)]
            if layers[1] not in best or len(way) < len(best[layers[1]]):
                best[layers[1]] = way
    chain = best.get(need.size.layers)
    return chain if chain is None or need.nodes in (None, len(chain)) else None


def _uses(chain: Sequence[tuple[Node, Range]]) -> str:
    names = ", ".join(node.name for node, _ in chain)
    return f"it is loaded already on {names}"


# -- context ---------------------------------------------------------------------------------------


DEFAULT_CONTEXT: Final = 8192


def contexts(needed: int, longest: int) -> list[int]:
    """How much context to ask for: a round number that others can use as well; else what is needed."""
    if needed > longest:
        raise BadData(
            f"the prompt and its answer need {needed} tokens; the model knows {longest}",
            hint="Give a shorter prompt, or a smaller --max-tokens.",
        )
    wanted = DEFAULT_CONTEXT
    while wanted < needed:
        wanted *= 2
    return list(dict.fromkeys((min(wanted, longest), needed)))


async def choose_roomy(
    need: Need, around: Around, needed: int, *, plan: Plan | None, private: Private
) -> Choice:
    """`choose`, with as much context as fits and at least `needed`."""
    first, *rest = (replace(need, context=context) for context in contexts(needed, need.size.context))
    return await choose(first, around, plan=plan, private=private, tight=rest[-1] if rest else None)
