"""A topology as rows of text for awk, cut and spreadsheets: whole values, plain numbers, no units.

`record` comes first and says what a row is. Columns keep their place; new ones come last. A value
that is not known is empty. Control characters are made visible, so a row is always one line. Knows
nothing of files or terminals.
"""

from collections.abc import Sequence

from exo_cli.cluster.advice import names
from exo_cli.plain import visible
from exo_cli.schemas.topology import Link, LoadedStage, Node, Topology
from exo_cli.views.overview import ordered

# `models` holds MODEL:FIRST-END for each loaded stage, END excluded, separated by commas.
NODE_COLUMNS = (
    "record", "name", "id", "state", "role", "endpoint", "host", "chip", "cores", "backend",
    "ram_bytes", "limit_bytes", "free_bytes", "models",
)  # fmt: skip
LINK_COLUMNS = (
    "record", "from", "from_id", "to", "to_id", "interface", "kind", "address",
    "rtt_us_p50", "rtt_us_p99", "bytes_per_s", "limited_by", "error",
)  # fmt: skip
# Both in one table: a link has where it starts in `name` and `id`, and no columns of a node.
COLUMNS = (*NODE_COLUMNS, *LINK_COLUMNS[3:])

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]


def rows(topology: Topology) -> Table:
    """Nodes, then links, in one table of one width."""
    gap = ("",) * len(LINK_COLUMNS[3:])
    nodes = [(*row, *gap) for row in node_rows(topology)[1]]
    hole = ("",) * len(NODE_COLUMNS[3:])
    links = [(*row[:3], *hole, *row[3:]) for row in link_rows(topology)[1]]
    return COLUMNS, [*nodes, *links]


def node_rows(topology: Topology) -> Table:
    return NODE_COLUMNS, [_node(node) for node in ordered(topology)]


def link_rows(topology: Topology) -> Table:
    called = names(topology)
    order = {node.id: index for index, node in enumerate(ordered(topology))}
    last = len(order)
    links = sorted(
        topology.links,
        key=lambda link: (order.get(link.from_, last), order.get(link.to, last), link.from_, link.to),
    )
    return LINK_COLUMNS, [_link(link, called) for link in links]


def _node(node: Node) -> tuple[str, ...]:
    memory = node.memory
    return _safe(
        (
            "node",
            node.name,
            node.id,
            node.state,
            node.role,
            node.endpoint,
            node.host,
            node.chip,
            str(node.cores),
            node.backend,
            str(memory.ram_bytes),
            str(memory.limit_bytes),
            str(memory.free_bytes),
            ",".join(map(_model, node.stages)),
        )
    )


def _model(stage: LoadedStage) -> str:
    first, end = stage.layers
    return f"{stage.model}:{first}-{end}"


def _link(link: Link, called: dict[str, str]) -> tuple[str, ...]:
    return _safe(
        (
            "link",
            called.get(link.from_, ""),
            link.from_,
            called.get(link.to, ""),
            link.to,
            link.interface or "",
            link.kind or "",
            link.address or "",
            _number(link.rtt_us_p50),
            _number(link.rtt_us_p99),
            _number(link.bytes_per_s),
            link.limited_by or "",
            link.error or "",
        )
    )


def _number(value: float | None) -> str:
    """Without exponent, which awk and sort read but people misread."""
    return "" if value is None else f"{value:.1f}".removesuffix(".0")


def _safe(values: Sequence[str]) -> tuple[str, ...]:
    return tuple(map(visible, values))
