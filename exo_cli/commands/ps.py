"""`exo ps`: which models run where, and how they do."""

from typing import TYPE_CHECKING

import typer

from exo_cli.commands.options import INSECURE_WARNING, InsecureFlag
from exo_cli.commands.session import Session, verb
from exo_cli.errors import Exit

if TYPE_CHECKING:
    from exo_cli.schemas.running import Running


def register(app: typer.Typer) -> None:
    app.command("ps")(ps)


@verb
def ps(session: Session, insecure: InsecureFlag = False) -> int:
    """Show which models run where, and what memory is left.

    \b
    Examples:
      exo ps
      exo ps --json | jq '.stages[] | {node, model, layers, tokens_per_s}'

    The last column is what its node could still give to other models. A stage whose engine ended is
    named with the reason, below the table. There the last layer is included (0-3 are four); in JSON it is not
    ([0,4]). The topology file says which nodes to ask; `exo discover` writes it, and so does every node.
    """
    import asyncio

    from exo_cli.cluster.remote import running, shards
    from exo_cli.cluster.topology_file import TopologyFile
    from exo_cli.schemas.events import line
    from exo_cli.trust.keyring import KeyringSource

    output = session.output
    if insecure:
        output.warning(INSECURE_WARNING)
    nodes = shards(TopologyFile(session.topology).read())
    found = asyncio.run(running(nodes, KeyringSource(insecure)))
    for node in found.nodes:
        if node.error is not None:
            output.warning(f"{node.node} did not answer: {node.error}")
    for stage in found.stages:
        if stage.failure is not None:
            output.warning(f"{stage.node}: {stage.failure}")
    if output.json:
        output.json_line(line(found))
    elif output.quiet:
        for stage in found.stages:
            output.line(stage.stage_id)
    else:
        output.rows(*table(found))
        if not nodes:
            output.hint("No node is known. Start one with exo serve-shard, then exo discover.")
    return Exit.OK


_HEADER = (
    "node",
    "model",
    "layers",
    "state",
    "requests",
    "tokens/s",
    "kv used",
    "kv free",
    "weights",
    "idle",
    "node free",
)


def table(found: "Running") -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A row a stage, and one for every node that holds none."""
    from exo_cli.plain import duration_text
    from exo_cli.views.figures import bytes_text

    free = {node.node_id: bytes_text(node.free_bytes) for node in found.nodes}
    rows = []
    for stage in found.stages:
        rows.append(
            (
                stage.node,
                stage.model,
                f"{stage.layers[0]}-{stage.layers[1] - 1}",
                stage.state,
                str(stage.requests),
                f"{stage.tokens_per_s:.1f}",
                bytes_text(stage.kv_used_bytes),
                bytes_text(stage.kv_budget_bytes - stage.kv_used_bytes),
                bytes_text(stage.weights_bytes),
                duration_text(stage.idle_s),
                free.get(stage.node_id, "-"),
            )
        )
    holding = {stage.node_id for stage in found.stages}
    for node in found.nodes:
        if node.node_id not in holding and node.error is None:
            rows.append((node.node, "-", "-", "idle", "0", *("-",) * 5, free[node.node_id]))
    return _HEADER, sorted(rows)
