"""`exo plan`: how a model would be split, whether it fits, how fast it would be, and why."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from exo_cli.commands.options import KvBitsOption, count_of, kv_bits_of, share_of
from exo_cli.commands.plan_model import Subject, Wishes, problem_of, read_topology, subject
from exo_cli.commands.session import Session, verb
from exo_cli.errors import Exit, Unavailable, UsageProblem

if TYPE_CHECKING:
    from exo_cli.planning.problem import Parallel, Problem
    from exo_cli.schemas.plan import Plan


def register(app: typer.Typer) -> None:
    app.command("plan")(plan)


@verb
def plan(
    session: Session,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="A name such as llama-3.3-70b, a repository of the hub, a directory, or a config.json.",
            show_default=False,
        ),
    ] = None,
    to: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="PATH", help="Write plan.json there.")
    ] = None,
    objective: Annotated[
        Literal["latency", "throughput", "first-token", "balanced"],
        typer.Option(
            "--objective",
            help="A token's time, tokens a second of all requests, the first token, or whole requests.",
        ),
    ] = "balanced",
    context: Annotated[
        str | None,
        typer.Option(
            "--context", metavar="N", help="Tokens a request may have, like 32k.", show_default="8192"
        ),
    ] = None,
    concurrency: Annotated[
        int, typer.Option("--concurrency", min=1, max=4096, metavar="N", help="Requests at once.")
    ] = 1,
    prompt_tokens: Annotated[
        str | None,
        typer.Option(
            "--prompt-tokens",
            metavar="N",
            help="How long a prompt the forecast is for.",
            show_default="512",
        ),
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            "--layers",
            metavar="NODE=A:B",
            help="Give a node layers A up to B, the latter excluded. Repeatable.",
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", metavar="NODE", help="Plan without this node. Repeatable."),
    ] = None,
    min_nodes: Annotated[
        int, typer.Option("--min-nodes", min=1, metavar="N", help="Use so many nodes at least.")
    ] = 1,
    max_nodes: Annotated[
        int | None, typer.Option("--max-nodes", min=1, metavar="N", help="Use so many nodes at most.")
    ] = None,
    parallel: Annotated[
        Literal["auto", "pipeline", "replicas", "tensor", "hybrid"],
        typer.Option(
            "--parallel",
            help="One chain of stages, whole copies, or whatever is best. tensor and hybrid are refused: "
            "no engine shares layers between machines yet.",
        ),
    ] = "auto",
    only_link: Annotated[
        Literal["thunderbolt", "ethernet", "wifi", "infiniband"] | None,
        typer.Option("--only-link", metavar="KIND", help="Use only links of this kind between machines."),
    ] = None,
    headroom: Annotated[
        str,
        typer.Option(
            "--headroom", metavar="SHARE", help="Of a node's free memory, what is left to its system."
        ),
    ] = "10%",
    kv_bits: KvBitsOption = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say also what each node is worth, and what else there was.")
    ] = False,
    format_: Annotated[
        Literal["auto", "table", "tsv", "svg"],
        typer.Option("--format", help="auto is a table on a terminal and tab-separated lines elsewhere."),
    ] = "auto",
    suggest: Annotated[
        bool, typer.Option("--suggest", help="List the models of the catalogue that fit this cluster.")
    ] = False,
    diff: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--diff", metavar="A B", help="Compare two plan files.", show_default=False),
    ] = None,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Stay, and plan again when the topology changes; Ctrl-C ends it."),
    ] = False,
) -> int:
    """Plan how a model is split over the nodes, and say how fast it would be.

    \b
    Examples:
      exo plan llama-3.3-70b
      exo plan llama-3.3-70b -o plan.json --context 32k --concurrency 8
      exo plan qwen3-235b --objective throughput --explain
      exo plan --suggest
      exo plan --diff old.json new.json
      exo discover --json | exo plan llama-3.3-70b --topology - --json | jq .forecast

    Reads the topology file and measures nothing; exo discover writes it. A model need not be here to be
    planned: of one that is neither here nor in the catalogue, the hub is asked for its config.json. The
    bars are memory: weights, caches for the context and the requests, the engine itself, and what the node
    may use. Tables count layers with the last one included (0-11 are twelve); --layers and JSON do not
    (0:12). Exit 79 says that nothing fits, with the nearest miss and what would make it fit.
    """
    from exo_cli import config
    from exo_cli.commands import plan_view

    wishes = Wishes(
        objective=objective,
        context=None if context is None else count_of(context, "--context"),
        concurrency=concurrency,
        prompt=None if prompt_tokens is None else count_of(prompt_tokens, "--prompt-tokens"),
        layers=tuple(layers or ()),
        exclude=tuple(exclude or ()),
        min_nodes=min_nodes,
        max_nodes=max_nodes,
        parallel=_parallel(parallel),
        only_link=only_link,
        headroom=share_of(headroom, "--headroom"),
        kv_bits=kv_bits_of(kv_bits),
    )
    weights_dir = config.cache_dir() / "weights"
    _check_ways(model, suggest, diff is not None, watch, to)
    if session.output.json and format_ != "auto":
        raise UsageProblem("--format and --json do not go together", hint="Leave one of them out.")
    if diff is not None:
        return plan_view.show_differences(session, *diff)
    if suggest:
        return plan_view.show_suggestions(session, wishes, weights_dir)
    if watch and str(session.topology) == "-":
        raise UsageProblem("--watch needs a topology file", hint="Leave --topology - out.")
    assert model is not None
    wanted = subject(model, weights_dir)
    if watch:
        from exo_cli.commands.plan_watch import follow

        return follow(session, wanted, wishes, format_, to)
    problem = problem_of(wanted.work(), read_topology(session.topology), wishes)
    plan_view.show(session, made(problem, wanted), to, format_, explain)
    return Exit.OK


def _parallel(asked: str) -> "Parallel | None":
    """As the planner calls it; what no engine runs is not planned."""
    if asked in ("tensor", "hybrid"):
        raise Unavailable(
            f"--parallel {asked}: layers cannot be shared between nodes yet, only dealt out whole",
            hint="Take --parallel pipeline, or leave it out; exo plan says what that is worth.",
        )
    if asked == "pipeline":
        return "pipeline"
    return "replicas" if asked == "replicas" else None


def made(problem: "Problem", wanted: Subject) -> "Plan":
    """The plan, or DoesNotFit."""
    from exo_cli.planning.planner import make_plan

    fewer: tuple[Literal[8], ...] = (8,) if problem.work.kv_bits is None else ()
    return make_plan(problem, wanted.ref, variants=wanted.variants(), kv_bits=fewer)


def _check_ways(model: str | None, suggest: bool, diff: bool, watch: bool, out: Path | None) -> None:
    """One thing at a time; an option that was typed is never ignored."""
    ways = [name for name, on in (("--suggest", suggest), ("--diff", diff), ("--watch", watch)) if on]
    if len(ways) > 1:
        raise UsageProblem(f"{ways[0]} and {ways[1]} do not go together", hint="Leave one of them out.")
    alone = next((name for name in ways if name != "--watch"), None)
    if alone is None and model is None:
        raise UsageProblem(
            "no model is named", hint="exo plan llama-3.3-70b; exo plan --suggest lists what fits."
        )
    if alone is not None and (model is not None or out is not None):
        what = "a model" if model is not None else "--output"
        raise UsageProblem(f"{alone} and {what} do not go together", hint="Leave one of them out.")
