"""`exo fetch`: the bytes of a model, each of them once; what is here, and whether it is right."""

from pathlib import Path
from typing import Annotated

import typer

from exo_cli.commands.options import INSECURE_WARNING, InsecureFlag, size_bytes
from exo_cli.commands.session import Session, verb
from exo_cli.errors import UsageProblem


def register(app: typer.Typer) -> None:
    app.command("fetch")(fetch)


@verb
def fetch(
    session: Session,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="A name such as llama-3.2-1b, or org/name or org/name@revision on the hub.",
            show_default=False,
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option("--layers", metavar="A:B", help="Only what these layers need; B is not included."),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", metavar="PATH", help="On each node, only what this plan.json gives it."),
    ] = None,
    node: Annotated[
        str | None, typer.Option("--node", metavar="NAME", help="With --plan: on this node alone.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would cost, by node and source; fetch nothing.")
    ] = False,
    limit_rate: Annotated[
        str | None,
        typer.Option("--limit-rate", metavar="SIZE", help="At most so much a second, such as 10MB."),
    ] = None,
    connections: Annotated[
        int, typer.Option("--connections", min=1, max=32, metavar="N", help="To the hub, at once.")
    ] = 4,
    offline: Annotated[
        bool, typer.Option("--offline", help="Ask no hub: what is not here comes from the nodes, or fails.")
    ] = False,
    list_: Annotated[
        bool, typer.Option("--list", help="Show what is on this machine, wherever it lies.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read what is here again and compare it with the hub's sums.")
    ] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove MODEL; without one, whatever is not complete.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove without asking.")] = False,
    export: Annotated[
        Path | None,
        typer.Option("--export", metavar="FOLDER", help="Write MODEL there, for a machine without internet."),
    ] = None,
    import_: Annotated[
        Path | None,
        typer.Option("--import", metavar="FOLDER", help="Take in what --export wrote, and verify it."),
    ] = None,
    insecure: InsecureFlag = False,
) -> int:
    """Fetch a model, or a part of it: exactly what is missing, from wherever it is nearest.

    \b
    Examples:
      exo fetch llama-3.2-1b                       the whole model, into the hub's cache
      exo fetch llama-3.3-70b --dry-run            how much is missing, and where it would come from
      exo fetch llama-3.3-70b --layers 0:16        only what these layers need
      exo fetch llama-3.3-70b --plan plan.json     on every node its part; the hub gives each byte once
      exo fetch --list                             what is here
      exo fetch --verify llama-3.2-1b              read it again and compare

    Whatever interrupts it - Ctrl-C, a full disk, a broken line, the power - the next run goes on where it
    was. A second run asks nobody if everything is there, and exits 0.

    What is whole lies in the hub's standard cache, where mlx-lm and others find it, verified by the hub's
    sums; parts lie in exo's own store until they are. HF_TOKEN, HF_ENDPOINT, HF_HUB_CACHE and
    HF_HUB_OFFLINE mean what they always do. LM Studio's models, and the folders that EXO_MODELS names
    (with a colon between them), are found and used as well.

    Only safetensors, JSON and tokenizer files are fetched. Nothing that a model brings is ever run.
    Without --json, the last line on standard output is the model's directory.
    """
    from exo_cli import config
    from exo_cli.commands.fetch_here import List, Move, Prune, Verify, say
    from exo_cli.commands.fetch_work import Work
    from exo_cli.fetch.stores import Stores

    chosen = [name for name, on in (("--list", list_), ("--verify", verify), ("--prune", prune)) if on]
    chosen += [name for name, path in (("--export", export), ("--import", import_)) if path is not None]
    _one_thing(chosen, model, plan, layers, node, dry_run=dry_run)
    if insecure:
        session.output.warning(INSECURE_WARNING)
    stores = Stores(config.cache_dir() / "weights")
    if list_:
        return say(List(session.output, stores, model))
    if verify:
        return say(Verify(session.output, stores, model))
    if prune:
        return say(Prune(session.output, stores, model, yes=yes))
    if import_ is not None:
        return say(Move(session.output, stores, folder=import_, model=None))
    if export is not None:
        return say(Move(session.output, stores, folder=export, model=model))
    work = Work(
        session=session,
        stores=stores,
        model=model,
        layers=_layers(layers) if layers is not None else None,
        plan=plan,
        node=node,
        dry_run=dry_run,
        offline=offline,
        limit_bytes_per_s=size_bytes(limit_rate.removesuffix("/s"), "--limit-rate") if limit_rate else None,
        connections=connections,
        insecure=insecure,
    )
    return work.run()


def _one_thing(
    chosen: list[str],
    model: str | None,
    plan: Path | None,
    layers: str | None,
    node: str | None,
    *,
    dry_run: bool,
) -> None:
    if len(chosen) > 1:
        raise UsageProblem(f"{chosen[0]} and {chosen[1]} are two things", hint="Do one after the other.")
    fetching = [
        name
        for name, on in (("--plan", plan), ("--layers", layers), ("--node", node), ("--dry-run", dry_run))
        if on
    ]
    if chosen and fetching:
        raise UsageProblem(f"{chosen[0]} has nothing to do with {fetching[0]}", hint="Leave one of them out.")
    if layers is not None and plan is not None:
        raise UsageProblem("--plan says which layers", hint="Leave --layers out, or --plan.")
    if node is not None and plan is None:
        raise UsageProblem("--node needs a plan to say what it is to have", hint="Add --plan PATH.")
    if model is None and plan is None and (not chosen or chosen == ["--export"]):
        raise UsageProblem("which model?", hint="exo fetch MODEL; exo fetch --list shows what is here.")
    if model is not None and chosen == ["--import"]:
        raise UsageProblem("the folder says which model it holds", hint="Leave MODEL out.")


def _layers(text: str) -> tuple[int, int]:
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and int(first) < int(last) < 100_000):
        raise UsageProblem(
            f"'{text}' is no range for --layers", hint="Write it like 0:16: the first sixteen layers."
        )
    return int(first), int(last)
