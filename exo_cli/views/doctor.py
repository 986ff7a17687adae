"""`exo rdma-check`: the machines, the cable matrix, what was measured, what was found.

Rows of the matrix are where a cable is plugged in, columns where it goes; a cell names the port in the
row's machine. Pure. Knows nothing of how anything was found.
"""

from rich.console import RenderableType
from rich.text import Text

from exo_cli.plain import visible
from exo_cli.schemas.doctor import Cable, Collective, RdmaCheck, RdmaNode
from exo_cli.views import findings as findings_view
from exo_cli.views.cells import Look, Piece, stack, widest
from exo_cli.views.figures import bytes_text, rate_text, round_trip_text

COLUMNS = ("record", "about", *findings_view.COLUMNS)
_NAME = 16
_GAP = 2


def render(check: RdmaCheck, *, unicode: bool, width: int) -> RenderableType:
    """The whole answer, no line wider than `width`."""
    look = Look(unicode=unicode, width=width)
    word, style = ("yes", "green") if check.would_work else ("no", "red")
    found = findings_view.verdict(check.findings)
    return stack(
        [
            _nodes(check, look),
            _cables(check, look),
            _collective(check.collective, look),
            findings_view.block(check.findings, look, sources=True, brief=True),
            [
                *look.paragraph([], found, style="bold"),
                *look.paragraph(
                    [("RDMA would work: ", "bold"), (word, f"bold {style}"), "  "],
                    f"MLX would use {check.uses}",
                ),
            ],
        ]
    )


def rows(check: RdmaCheck) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """One table for awk: `record` is `node`, `cable`, `missing-cable`, `collective`, `finding` or `verdict`;
    what does not apply is empty."""
    table: list[dict[str, str]] = [
        {"record": "node", "about": node.name, "seen": _node_text(node)} for node in check.nodes
    ]
    table += [
        {"record": "cable", "about": f"{cable.a} - {cable.b}", "id": _state(cable), "seen": _ends(cable)}
        for cable in check.cables
    ]
    table += [{"record": "missing-cable", "about": f"{a} - {b}"} for a, b in check.missing_cables]
    if check.collective is not None:
        one = check.collective
        table.append(
            {"record": "collective", "about": one.where, "id": one.backend or "", "seen": _figures(one)}
        )
    table += map(findings_view.cells, check.findings)
    verdict = "ok" if check.would_work else "failure"
    table.append({"record": "verdict", "level": verdict, "seen": check.uses})
    return COLUMNS, [tuple(visible(row.get(column, "")) for column in COLUMNS) for row in table]


# -- machines --------------------------------------------------------------------------------------


def _nodes(check: RdmaCheck, look: Look) -> list[Text]:
    if not check.nodes:
        return []
    name = widest((look(node.name) for node in check.nodes), most=_NAME, least=4)
    lines = [look.line(("Machines", "bold"))]
    for node in check.nodes:
        lines += look.paragraph([" ", (look.pad(node.name, name), "bold"), "  "], _node_text(node))
        for port in node.ports if len(check.nodes) == 1 else ():
            parts = [
                port.device or "no RDMA device",
                f"Thunderbolt {port.receptacle}" if port.receptacle else "",
                port.state or "",
                port.rate or "",
                f"with {port.peer}" if port.peer else "",
            ]
            lines += look.paragraph(["   "], ", ".join(filter(None, parts)), style="dim", most=2)
    return lines


def _node_text(node: RdmaNode) -> str:
    system = node.os or "a system that could not be read"
    if node.build:
        system += f" ({node.build})"
    generation = {"thunderbolt-5": "Thunderbolt 5", "thunderbolt-4": "Thunderbolt 4"}
    parts = [
        system,
        node.chip or "",
        generation.get(node.thunderbolt or "", ""),
        f"MLX {node.mlx}" if node.mlx else "",
    ]
    return ", ".join(filter(None, parts))


# -- cables ----------------------------------------------------------------------------------------


def _cables(check: RdmaCheck, look: Look) -> list[Text]:
    names = [node.name for node in check.nodes if node.platform == "darwin"]
    if len(names) < 2:
        return []
    named = widest((look(name) for name in names), most=_NAME, least=4)
    texts = {(a, b): _cell(check, a, b) for a in names for b in names}
    column = max(named, widest((look(text) for text, _ in texts.values()), most=_NAME))
    lines: list[Text]
    if 1 + named + len(names) * (_GAP + column) > look.width:
        lines = _list(check, look)
    else:
        lines = [
            look.line(("Cables", "bold"), ("  the port in the row's machine, by what is at its end", "dim"))
        ]
        heads = [(" " * _GAP + look.pad(name, column), "dim") for name in names]
        lines.append(look.line(" " * (1 + named), *heads))
        for a in names:
            pieces: list[Piece] = [" ", look.pad(a, named)]
            for b in names:
                text, style = texts[a, b]
                pieces += [" " * _GAP, (look.pad(text, column), style)]
            lines.append(look.line(*pieces))
    for a, b in check.missing_cables:
        lines.append(look.line(" ", ("missing", "red"), f"  {look(a)} - {look(b)}"))
    shape = "a mesh" if check.mesh else "no mesh, but a ring" if check.ring else "neither a mesh nor a ring"
    return [*lines, look.line((f" {shape}", "dim"))]


def _cell(check: RdmaCheck, a: str, b: str) -> tuple[str, str]:
    """What stands at that place, and how it looks."""
    if a == b:
        return "·", "dim"
    between = [cable for cable in check.cables if {cable.a, cable.b} == {a, b}]
    if not between:
        return "none", "red"
    ports = "+".join(cable.a_interface if cable.a == a else cable.b_interface for cable in between)
    states = {_state(cable) for cable in between}
    worst = next((state for state in ("hub", "down") if state in states), None)
    if worst is not None:
        return f"{ports} {worst}", "yellow"
    return ports, "green" if states == {"active"} else ""


def _state(cable: Cable) -> str:
    if cable.hub:
        return "hub"
    return "unknown" if cable.active is None else "active" if cable.active else "down"


def _ends(cable: Cable) -> str:
    return f"{cable.a} {cable.a_interface} - {cable.b} {cable.b_interface}"


def _list(check: RdmaCheck, look: Look) -> list[Text]:
    """Where the matrix is too wide."""
    lines = [look.line(("Cables", "bold"))]
    for cable in check.cables:
        lines.append(look.line(" ", look(_ends(cable)), (f"  {_state(cable)}", "dim")))
    return lines


# -- figures ---------------------------------------------------------------------------------------


def _collective(one: Collective | None, look: Look) -> list[Text]:
    if one is None:
        return []
    head = look.line(("Collective", "bold"), (f"  {one.backend}, {look(one.where)}", "dim"))
    style = "red" if one.error else ""
    return [head, *look.paragraph([" "], _figures(one), style=style)]


def _figures(one: Collective) -> str:
    if one.error is not None:
        return f"no figure after {one.seconds:.1f} s: {one.error}"
    return (
        f"{one.ranks} ranks: an all-sum of 4 B takes {round_trip_text(one.latency_us_p50)} "
        f"(p99 {round_trip_text(one.latency_us_p99)}, {one.rounds} rounds), "
        f"one of {bytes_text(one.message_bytes)} runs at {rate_text(one.bytes_per_s)}"
    )
