"""`plan --watch`: plans again whenever the topology file changes, and says why one would move."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from exo_cli.commands.plan_model import Subject, Wishes, problem_of, read_topology
from exo_cli.commands.plan_view import show, write
from exo_cli.commands.session import Session
from exo_cli.errors import DoesNotFit, Unavailable

if TYPE_CHECKING:
    from exo_cli.schemas.plan import Plan
    from exo_cli.schemas.topology import Topology

LOOK_S = 0.5


def follow(session: Session, wanted: Subject, wishes: Wishes, format_: str, out: Path | None) -> int:
    """Until Ctrl-C."""
    current: Plan | None = None
    failure: str | None = None
    known: Topology | None = None
    while True:
        topology = read_topology(session.topology)
        if topology != known:
            known = topology
            try:
                current, failure = _look(session, wanted, wishes, topology, current, format_, out), None
            except (DoesNotFit, Unavailable) as error:
                if error.message != failure:
                    failure, current = error.message, None
                    _refuse(session, error.message)
        time.sleep(LOOK_S)


def _look(
    session: Session,
    wanted: Subject,
    wishes: Wishes,
    topology: "Topology",
    current: "Plan | None",
    format_: str,
    out: Path | None,
) -> "Plan":
    """The plan that stands now."""
    from exo_cli.planning.planner import make_plan
    from exo_cli.planning.revise import why_move
    from exo_cli.schemas.events import line
    from exo_cli.schemas.planning import PlanLine

    problem = problem_of(wanted.work(), topology, wishes)
    plan = make_plan(problem, wanted.ref, variants=wanted.variants())
    why = "the first plan" if current is None else why_move(problem, current, plan)
    if why is None:
        assert current is not None
        return current
    output = session.output
    if output.json:
        if out is not None:
            write(out, plan)
        output.json_line(line(PlanLine(reason=why, plan=plan)))
    else:
        if current is not None:
            output.note(f"would move: {why}")
        show(session, plan, out, format_, explain=False)
    return plan


def _refuse(session: Session, message: str) -> None:
    from exo_cli.schemas.events import line
    from exo_cli.schemas.planning import NoPlanLine

    if session.output.json:
        session.output.json_line(line(NoPlanLine(reason=message)))
    else:
        session.output.warning(message)
