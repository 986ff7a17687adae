"""What `plan` shows: a plan, two of them compared, models that fit."""

from pathlib import Path
from typing import TYPE_CHECKING

from exo_cli.commands.plan_model import DEFAULT_CONTEXT, Wishes, catalogue_subjects, problem_of, read_topology
from exo_cli.commands.session import Session
from exo_cli.errors import Exit, Unavailable

if TYPE_CHECKING:
    from exo_cli.schemas.plan import Plan
    from exo_cli.schemas.planning import Suggestion


def show(session: Session, plan: "Plan", out: Path | None, format_: str, explain: bool) -> None:
    """On standard output, and in a file if one was asked for."""
    output = session.output
    if out is not None:
        write(out, plan)
        output.note(f"wrote {out}")
    if output.json:
        output.struct(plan)
    elif format_ == "svg":
        from exo_cli.views.plan_svg import svg

        output.write(svg(plan))
    elif output.quiet and format_ == "auto":
        for replica in plan.replicas:
            for stage in replica.stages:
                output.line(stage.ranks[0].node)
    elif format_ == "table" or (format_ == "auto" and (output.terminal or explain)):
        from exo_cli.views.plan_table import render

        width = output.console().width
        output.draw(render(plan, width=width, unicode=output.unicode, explain=explain))
    elif out is None or format_ == "tsv":
        from exo_cli.views.plan_rows import rows

        output.rows(*rows(plan))


def write(path: Path, plan: "Plan") -> None:
    """plan.json, whole or not at all."""
    import msgspec

    from exo_cli import atomic

    data = msgspec.json.format(msgspec.json.encode(plan), indent=2)
    try:
        atomic.replace(path, data + b"\n")
    except OSError as error:
        raise atomic.cannot_write(path, error) from error


def show_differences(session: Session, a: Path, b: Path) -> int:
    from exo_cli.drive.plans import read_plan
    from exo_cli.planning.differ import differences
    from exo_cli.schemas.planning import PlanDiff

    found = differences(read_plan(a), read_plan(b))
    if session.output.json:
        session.output.struct(PlanDiff(differences=found))
    else:
        session.output.rows(
            ("what", str(a), str(b)), [(each.what, each.a or "-", each.b or "-") for each in found]
        )
        if not found:
            session.output.note("the two plans are the same")
    return Exit.OK


def show_suggestions(session: Session, wishes: Wishes, weights_dir: Path) -> int:
    from exo_cli.schemas.planning import Suggestions
    from exo_cli.views.figures import bytes_text
    from exo_cli.views.plan_table import milliseconds_text, tokens_text

    found = suggestions(session, wishes, weights_dir)
    output = session.output
    if output.json:
        context = wishes.context or DEFAULT_CONTEXT
        output.struct(Suggestions(context=context, concurrency=wishes.concurrency, suggestions=tuple(found)))
        return Exit.OK
    if output.quiet:
        for each in found:
            output.line(each.name)
        return Exit.OK
    rows = [
        (
            each.name,
            "here" if each.on_disk else bytes_text(each.download_bytes),
            bytes_text(each.memory_bytes),
            str(len(each.nodes)),
            milliseconds_text(each.ttft_ms),
            tokens_text(each.decode_tokens_per_s),
            tokens_text(each.total_tokens_per_s),
        )
        for each in found
    ]
    output.rows(("model", "download", "memory", "nodes", "first token", "one request", "together"), rows)
    if not found:
        output.hint("No model of the catalogue fits. Start exo serve-shard on more machines.")
    return Exit.OK


def suggestions(session: Session, wishes: Wishes, weights_dir: Path) -> list["Suggestion"]:
    """What fits, on disk first, then the larger first."""
    from exo_cli.planning.planner import find_plan
    from exo_cli.planning.problem import needed_bytes
    from exo_cli.planning.work import work_of
    from exo_cli.schemas.planning import Suggestion

    topology = read_topology(session.topology)
    found = []
    for each in catalogue_subjects(weights_dir):
        work = each.work()
        if wishes.context is not None and wishes.context > work.longest:
            continue
        problem = problem_of(work, topology, wishes)
        if not problem.cluster.places:
            raise Unavailable("no node takes work", hint="Start one with exo serve-shard, then exo discover.")
        plan = find_plan(problem, each.ref, whole=False)
        if plan is None:
            continue
        ranks = [rank for replica in plan.replicas for stage in replica.stages for rank in stage.ranks]
        assert plan.forecast is not None
        stored = work_of(each.config, repository=each.repository, item_bytes=2)
        found.append(
            Suggestion(
                name=each.ref.name,
                on_disk=each.on_disk,
                download_bytes=0 if each.on_disk else stored.weights_bytes,
                memory_bytes=sum(needed_bytes(rank.memory) for rank in ranks),
                nodes=tuple(rank.name or rank.node for rank in ranks),
                ttft_ms=plan.forecast.ttft_ms,
                decode_tokens_per_s=plan.forecast.decode_tokens_per_s,
                total_tokens_per_s=plan.forecast.total_tokens_per_s,
            )
        )
    return sorted(found, key=lambda each: (not each.on_disk, -each.memory_bytes, each.name))
