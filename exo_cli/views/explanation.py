"""`exo discover --explain`: what each interface carried, who is a stranger, what was found.

Pure: the findings come with their words. Failures come first. Knows nothing of how anything was
counted or probed.
"""

from collections.abc import Mapping

from rich.console import RenderableType
from rich.text import Text

from exo_cli.plain import visible
from exo_cli.schemas.findings import Explanation, InterfaceCount
from exo_cli.views import findings as findings_view
from exo_cli.views.cells import Look, Piece, stack, widest
from exo_cli.views.figures import plural

_COUNT = 9
_STRANGERS = 12

COLUMNS = (
    "record", "about", "kind", "name", "sent", "received", "accepted", "dropped", "reasons",
    *findings_view.COLUMNS,
)  # fmt: skip


def render(explanation: Explanation, *, unicode: bool, width: int) -> RenderableType:
    """The whole answer, no line wider than `width`."""
    look = Look(unicode=unicode, width=width)
    findings = findings_view.by_level(explanation.findings)
    return stack(
        [
            _interfaces(explanation, look),
            _strangers(explanation, look),
            findings_view.block(findings, look),
            look.paragraph([], findings_view.verdict(findings), style="bold"),
        ]
    )


def rows(explanation: Explanation) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """One table for awk: `record` is `interface`, `stranger` or `finding`; what does not apply is empty.

    `reasons` holds REASON=COUNT, separated by commas. A stranger's fingerprint is in `id`, its
    packets in `received`. What could not be sent is among the reasons, as `send:REASON`.
    """
    table: list[dict[str, str]] = []
    for interface in explanation.interfaces:
        reasons = {**{f"send:{why}": n for why, n in interface.send_errors.items()}, **interface.dropped}
        table.append(
            {
                "record": "interface",
                "about": interface.interface,
                "kind": interface.kind,
                "sent": str(interface.sent),
                "received": str(interface.received),
                "accepted": str(interface.accepted),
                "dropped": str(sum(interface.dropped.values())),
                "reasons": ",".join(f"{why}={n}" for why, n in sorted(reasons.items())),
            }
        )
    for stranger in explanation.strangers:
        table.append(
            {
                "record": "stranger",
                "about": stranger.address,
                "name": stranger.name,
                "received": str(stranger.packets),
                "reasons": stranger.reason,
                "id": stranger.fingerprint,
            }
        )
    table += map(findings_view.cells, findings_view.by_level(explanation.findings))
    return COLUMNS, [tuple(visible(row.get(column, "")) for column in COLUMNS) for row in table]


# -- interfaces ------------------------------------------------------------------------------------


def _interfaces(explanation: Explanation, look: Look) -> list[Text]:
    interfaces = explanation.interfaces
    if not interfaces:
        return [look.line(("Interfaces", "bold"), ("  none was used", "dim"))]
    name = widest((look(one.interface) for one in interfaces), most=16, least=9)
    kind = widest((look(one.kind) for one in interfaces), most=11)
    titles = "".join(f"{title:>{_COUNT}}" for title in ("sent", "received", "accepted", "dropped"))
    lines = [
        look.line(("Interfaces", "bold"), (" " * (1 + name + 2 + kind - len("Interfaces")) + titles, "dim"))
    ]
    for one in interfaces:
        dropped = sum(one.dropped.values())
        lines.append(
            look.line(
                " ",
                (look.pad(one.interface, name), "bold"),
                (f"  {look.pad(one.kind, kind)}", "dim"),
                _count(one.sent, "yellow" if one.sent == 0 else ""),
                _count(one.received),
                _count(one.accepted, "green" if one.accepted else ""),
                _count(dropped, "yellow" if dropped else "dim"),
            )
        )
        lines += _below(one, look)
    return lines


def _count(number: int, style: str = "") -> Piece:
    text = str(number) if number < 10**7 else f"{number / 1e6:.0f}M"
    return f"{text[:_COUNT]:>{_COUNT}}", style


def _below(one: InterfaceCount, look: Look) -> list[Text]:
    lines = []
    if one.addresses:
        lines += look.paragraph(["   "], ", ".join(one.addresses), style="dim", most=3)
    if one.send_errors:
        lines += look.paragraph(["   ", ("not sent  ", "red")], _reasons(one.send_errors), most=3)
    if one.dropped:
        lines += look.paragraph(["   ", ("dropped   ", "yellow")], _reasons(one.dropped), most=4)
    return lines


def _reasons(counts: Mapping[str, int]) -> str:
    """`12 own echo, 3 signature`: the most frequent first."""
    return ", ".join(f"{n} {why}" for why, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])))


# -- strangers -------------------------------------------------------------------------------------


def _strangers(explanation: Explanation, look: Look) -> list[Text]:
    strangers = sorted(explanation.strangers, key=lambda one: (-one.packets, one.address))
    if not strangers:
        return []
    lines = look.paragraph(
        [("Strangers", "bold"), "  "],
        "nodes of other clusters; what they say of themselves is not proven",
        style="dim",
    )
    shown = strangers[:_STRANGERS]
    address = widest((look(one.address) for one in shown), most=max(look.width // 4, 12))
    name = widest((look(one.name or "–") for one in shown), most=max(look.width // 5, 8))
    for one in shown:
        head: list[Piece] = [
            " ",
            look.pad(one.address, address),
            "  ",
            look.pad(one.name or "–", name),
            (f"  key {look.pad(one.fingerprint, 8)}  ", "dim"),
        ]
        lines.append(look.line(*head, look(one.reason), (f"  {plural(one.packets, 'packet')}", "dim")))
    if len(strangers) > len(shown):
        lines.append(look.line((f" and {len(strangers) - len(shown)} more", "dim")))
    return lines
