"""Medians and ratios out of the runs, and the table as text. Pure."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.peers.cases import Case, Metric, Row

UNITS: Final[dict[Metric, str]] = {
    "decode_tokens_per_s": "tok/s",
    "prefill_tokens_per_s": "tok/s",
    "first_token_s": "s",
    "resident_bytes": "MB",
    "anonymous_bytes": "MB",
}


@dataclass(frozen=True, slots=True)
class Run:
    """One measurement: what it gave, or why it gave nothing."""

    group: str
    round: int
    case: Case
    found: Mapping[str, Any]
    problem: str | None
    seconds: float
    busy_before: float
    """The share of the machine that others used just before."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A case's median over its rounds."""

    case: Case
    metric: Metric
    value: float | None
    values: tuple[float, ...]
    note: str
    """Why there is none, or what was less than asked for."""


@dataclass(frozen=True, slots=True)
class Result:
    """A row with its figures."""

    row: Row
    ours: Figure
    theirs: Figure

    @property
    def ratio(self) -> float | None:
        if self.ours.value is None or not self.theirs.value:
            return None
        return self.ours.value / self.theirs.value

    @property
    def met(self) -> bool | None:
        """Whether what must be is; None where nothing must, or nothing is known."""
        if self.row.must is None or self.ratio is None:
            return None
        return self.ratio <= self.row.must if self.row.less_is_better else self.ratio >= self.row.must

    @property
    def document(self) -> dict[str, Any]:
        return {
            "title": self.row.title,
            "group": self.row.group,
            "metric": self.row.metric,
            "ratio": _rounded(self.ratio),
            "must": self.row.must,
            "goal": self.row.goal,
            "less_is_better": self.row.less_is_better,
            "met": self.met,
            "ours": _side(self.ours),
            "theirs": _side(self.theirs),
        }


def results(rows: Iterable[Row], runs: Sequence[Run]) -> list[Result]:
    """Every row with the medians of its own group's runs."""
    found = []
    for row in rows:
        figures = [figure(case, row, runs) for case in row.theirs]
        known = [each for each in figures if each.value is not None]
        order = min if row.less_is_better else max
        best = order(known, key=lambda each: each.value or 0.0) if known else figures[0]
        found.append(Result(row, figure(row.ours, row, runs), best))
    return found


def figure(case: Case, row: Row, runs: Iterable[Run]) -> Figure:
    """One case's median, of the runs of the row's group."""
    mine = [run for run in runs if run.group == row.group and run.case == case]
    metric = row.metric
    values = tuple(float(run.found[metric]) for run in mine if run.found.get(metric))
    if not values:
        why = next((run.problem or run.found.get("skipped") for run in mine), None)
        return Figure(case, metric, None, (), str(why or "not measured"))
    return Figure(case, metric, statistics.median(values), values, _less(case, mine))


def _less(case: Case, runs: Sequence[Run]) -> str:
    """What a slow side did less than asked."""
    parts = []
    asked = {"prompt_tokens": case.work.prompt if case.work.kind == "prefill" else 0}
    asked["gen_tokens"] = case.work.gen if case.work.kind == "decode" else 0
    for key, count in asked.items():
        done = min((run.found[key] for run in runs if run.found.get(key) is not None), default=count)
        if done < count:
            parts.append(f"{done} of {count} tokens")
    return ", ".join(parts)


def text(found: Sequence[Result]) -> str:
    """The table, aligned, with what it could not say below it."""
    head = ("", "exo", "other", "", "ratio", "must", "goal", "")
    lines: list[tuple[str, ...]] = [head]
    notes = []
    for number, result in enumerate(found):
        if number and found[number - 1].row.group != result.row.group:
            lines.append(("",) * len(head))
        sign = "≤" if result.row.less_is_better else "≥"
        must = f"{sign} {result.row.must:g}" if result.row.must is not None else ""
        goal = f"{result.row.goal:g}" if result.row.goal is not None else ""
        verdict = {True: "met", False: "missed", None: ""}[result.met]
        ratio = "–" if result.ratio is None else f"{result.ratio:.3g} ×"
        ours, theirs = _shown(result.ours), _shown(result.theirs)
        unit = UNITS[result.row.metric]
        lines.append((result.row.title, ours, theirs, unit, ratio, must, goal, verdict))
        for name, side in (("exo", result.ours), (result.theirs.case.side, result.theirs)):
            if side.note:
                notes.append(f"{result.row.title}: {name}: {side.note}")
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    aligned = [
        "  ".join(
            cell.ljust(width) if column in (0, 3, 7) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([*aligned, *([""] if notes else []), *notes])


def _shown(side: Figure) -> str:
    if side.value is None:
        return "–"
    value = side.value / 1e6 if UNITS[side.metric] == "MB" else side.value
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _side(side: Figure) -> dict[str, Any]:
    return {
        "case": side.case.label,
        "median": _rounded(side.value),
        "values": [_rounded(value) for value in side.values],
        "note": side.note or None,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")
