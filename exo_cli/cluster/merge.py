"""Putting what was just learned into what was known, by counters and never by another machine's clock.

A record is ordered by its node's (boot, seq): the higher one stands. Of two with the same counters
the incoming one stands, since who hands it in has judged the node's state just now. Times in
records were read on this machine; the newer is kept. Pure: knows nothing of files, sockets or the
clock, which is an argument.
"""

from collections.abc import Collection, Iterable

import msgspec

from exo_cli.schemas.topology import Link, Node, Topology

DEAD_KEPT_MS = 24 * 60 * 60 * 1000
"""A dead node is shown for a day, then forgotten."""


def merge_nodes(old: Iterable[Node], new: Iterable[Node]) -> tuple[Node, ...]:
    """One record for each id, in order of (name, id). Two ids may have the same name."""
    nodes: dict[str, Node] = {}
    for group in (old, new):
        for node in group:
            known = nodes.get(node.id)
            nodes[node.id] = node if known is None else _newer_node(known, node)
    return tuple(sorted(nodes.values(), key=lambda node: (node.name, node.id)))


def merge_links(old: Iterable[Link], new: Iterable[Link]) -> tuple[Link, ...]:
    """One record for each ordered pair, in order of (from, to)."""
    links: dict[tuple[str, str], Link] = {}
    for group in (old, new):
        for link in group:
            pair = (link.from_, link.to)
            known = links.get(pair)
            links[pair] = link if known is None else _newer_link(known, link)
    return tuple(links[pair] for pair in sorted(links))


def merge(
    old: Topology,
    nodes: Iterable[Node],
    links: Iterable[Link],
    *,
    gone: Collection[str] = (),
    now_unix_ms: int,
) -> Topology:
    """`old` with the news in it, without the nodes in `gone`, those dead for a day, and their links."""
    left = frozenset(gone)
    kept = tuple(
        node
        for node in merge_nodes(old.nodes, nodes)
        if node.id not in left and not _forgotten(node, now_unix_ms)
    )
    ids = {node.id for node in kept}
    return msgspec.structs.replace(
        old,
        nodes=kept,
        links=tuple(link for link in merge_links(old.links, links) if link.from_ in ids and link.to in ids),
    )


def _newer_node(known: Node, incoming: Node) -> Node:
    ours, theirs = (known.boot, known.seq), (incoming.boot, incoming.seq)
    if ours != theirs:
        return known if ours > theirs else incoming
    return msgspec.structs.replace(incoming, seen_unix_ms=max(known.seen_unix_ms, incoming.seen_unix_ms))


def _newer_link(known: Link, incoming: Link) -> Link:
    ours, theirs = (known.boot, known.seq), (incoming.boot, incoming.seq)
    if ours != theirs:
        return known if ours > theirs else incoming
    measured = max(known.measured_unix_ms, incoming.measured_unix_ms)
    return msgspec.structs.replace(incoming, measured_unix_ms=measured)


def _forgotten(node: Node, now_unix_ms: int) -> bool:
    return node.state == "dead" and now_unix_ms - node.seen_unix_ms > DEAD_KEPT_MS
