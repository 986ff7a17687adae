"""`exo unload`: let go of a model, or of everything."""

from typing import Annotated

import typer

from exo_cli.commands.options import INSECURE_WARNING, InsecureFlag
from exo_cli.commands.session import Session, verb
from exo_cli.errors import Exit, NotFound


def register(app: typer.Typer) -> None:
    app.command("unload")(unload)


@verb
def unload(
    session: Session,
    model: Annotated[
        str, typer.Argument(metavar="[MODEL]", help="As exo ps shows it; everything if left out.")
    ] = "",
    insecure: InsecureFlag = False,
) -> int:
    """Let go of a model on every node, and free its memory.

    \b
    Examples:
      exo unload llama-3.3-70b
      exo unload

    An answer that still runs on it goes on elsewhere, and may load it there again. A MODEL that no node
    holds is an error (66); without MODEL, having nothing to let go is none.
    """
    import asyncio

    from exo_cli.cluster.remote import shards
    from exo_cli.cluster.remote import unload as let_go
    from exo_cli.cluster.topology_file import TopologyFile
    from exo_cli.schemas.events import line
    from exo_cli.trust.keyring import KeyringSource
    from exo_cli.views.figures import bytes_text, plural

    output = session.output
    if insecure:
        output.warning(INSECURE_WARNING)
    nodes = shards(TopologyFile(session.topology).read())
    answers = asyncio.run(let_go(nodes, KeyringSource(insecure), model))
    for answer in answers:
        if answer.error is not None:
            output.warning(f"{answer.node} did not answer: {answer.error}")
        if output.json:
            output.json_line(line(answer))
        elif answer.stages:
            freed = bytes_text(answer.freed_bytes)
            output.note(f"{answer.node}: {plural(len(answer.stages), 'stage')}, {freed} freed")
    if model and not any(answer.stages for answer in answers):
        raise NotFound(f"no node holds {model}", hint="exo ps shows what is loaded.")
    if not any(answer.stages or answer.error for answer in answers):
        output.note("nothing was loaded")
    return Exit.OK
