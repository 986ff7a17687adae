"""Findings as lines: what was seen, what it means, what to do in order, how far that was tried out.

`discover --explain` and `rdma-check` share it. Knows nothing of what a finding is about.
"""

from collections.abc import Iterable, Sequence

from rich.text import Text

from exo_cli.schemas.findings import Finding, Level
from exo_cli.views.cells import Look, Piece
from exo_cli.views.figures import plural

LEVELS: dict[Level, tuple[str, str]] = {
    "failure": ("✗", "red"),
    "warning": ("!", "yellow"),
    "info": ("·", "dim"),
    "ok": ("✓", "green"),
}
_ORDER = list(LEVELS)
COLUMNS = ("level", "id", "seen", "means", "do", "evidence", "source")


def by_level(findings: Iterable[Finding]) -> list[Finding]:
    """Failures first; within a level as they came."""
    return sorted(findings, key=lambda finding: _ORDER.index(finding.level))


def block(
    findings: Sequence[Finding], look: Look, *, sources: bool = False, brief: bool = False
) -> list[Text]:
    """Lines in the order given. `sources` adds where a meaning is from and how far it was tried out;
    `brief` keeps what is well to one line each."""
    if not findings:
        return []
    lines = [look.line(("Findings", "bold"))]
    for finding in findings:
        sign, style = LEVELS[finding.level]
        head: list[Piece] = [" ", (look(f"{sign} {finding.level:<7}"), style), "  "]
        if brief and finding.level == "ok":
            lines += look.paragraph(head, f"{finding.about}: {finding.seen}", most=2)
        else:
            lines += look.paragraph(head, finding.about, style="bold", most=2)
            lines += look.paragraph(["   ", ("seen   ", "dim")], finding.seen)
        if finding.means:
            source = f" ({finding.source})" if finding.source and not sources else ""
            lines += look.paragraph(["   ", ("means  ", "dim")], finding.means + source)
        for number, step in enumerate(numbered(finding)):
            name = "       " if number else "do     "
            lines += look.paragraph(["   ", (name, "dim")], step, style="bold")
        if sources and finding.source and finding.level != "ok":
            lines += look.paragraph(
                ["   ", ("known  ", "dim")], f"{finding.evidence}: {finding.source}", style="dim", most=2
            )
    return lines


def numbered(finding: Finding) -> list[str]:
    """What to do, in order; one step alone has no number."""
    steps = [step for step in (finding.do, *finding.then) if step]
    return steps if len(steps) < 2 else [f"{number}. {step}" for number, step in enumerate(steps, start=1)]


def verdict(findings: Sequence[Finding]) -> str:
    failures, warnings = (
        sum(finding.level == level for finding in findings) for level in ("failure", "warning")
    )
    if failures or warnings:
        parts = [plural(n, word) for n, word in ((failures, "failure"), (warnings, "warning")) if n]
        return " and ".join(parts)
    return "Nothing stands in the way that was looked at."


def cells(finding: Finding) -> dict[str, str]:
    """One finding as a row of a table."""
    return {
        "record": "finding",
        "about": finding.about,
        "level": finding.level,
        "id": finding.id,
        "seen": finding.seen,
        "means": finding.means or "",
        "do": "  ".join(numbered(finding)),
        "evidence": finding.evidence,
        "source": finding.source or "",
    }
