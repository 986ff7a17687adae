"""`exo discover` on a terminal: nodes, links, what would help, and one line that sums it up.

Pure: the width, the clock and what the terminal can show are arguments. States and marks are words
or signs as well as colours, so nothing is lost without colour. Knows nothing of how it was found.
"""

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import RenderableType
from rich.text import Text

from exo_cli.cluster.advice import Advice, names
from exo_cli.schemas.topology import Node, Topology
from exo_cli.views.cells import Look, Piece, stack, widest
from exo_cli.views.figures import age_text
from exo_cli.views.link_matrix import links
from exo_cli.views.overview import hardware_text, memory_split, memory_text, models_text, ordered, summary

_DOTS = {
    "ready": ("●", "green"),
    "draining": ("◐", "yellow"),
    "suspect": ("◐", "yellow"),
    "dead": ("○", "red"),
}
_STATE = 8
_NAME = 24
_BAR_LEAST, _BAR_MOST = 10, 28
_STALE_MS = 60_000


def render(
    topology: Topology,
    *,
    width: int,
    unicode: bool,
    now_unix_ms: int,
    self_host: str | None = None,
    advice: Sequence[Advice] = (),
) -> RenderableType:
    """The whole picture, no line wider than `width`."""
    look = Look(unicode=unicode, width=width)
    if not topology.nodes:
        return stack([_nobody(look)])
    return stack(
        [
            _nodes(topology, look, now_unix_ms, self_host),
            links(topology, look),
            _help(advice, look),
            look.paragraph([], summary(topology), style="bold"),
        ]
    )


def _nobody(look: Look) -> list[Text]:
    steps = (
        ("exo serve-shard", "on every machine that should take part"),
        ("exo discover --explain", "why a machine is not seen"),
    )
    lines = [look.line("No node answered. Next:"), Text("")]
    for command, why in steps:
        lines.append(look.line("  ", (f"{command:<24}", "bold"), (why, "dim")))
    return lines


# -- nodes -----------------------------------------------------------------------------------------


def _nodes(topology: Topology, look: Look, now_unix_ms: int, self_host: str | None) -> list[Text]:
    nodes = ordered(topology)
    called = names(topology)
    name_width = widest(
        (look(called[node.id]) for node in nodes), most=min(_NAME, max(look.width // 5, 4)), least=4
    )
    numbers = _numbers(nodes)
    numbers_width = max(map(len, numbers), default=0)
    fixed = 3 + name_width + 2 + _STATE + 2 + 2 + numbers_width
    details = _Details(nodes, look, now_unix_ms, self_host)
    bar_width = min(look.width - fixed, _BAR_MOST)
    one_line = fixed + _BAR_LEAST + 3 + details.width <= look.width
    if one_line:
        bar_width = min(look.width - fixed - 3 - details.width, _BAR_MOST)
    if bar_width < _BAR_LEAST:
        bar_width = 0
        numbers = [number.split(" (")[0] for number in numbers]
    lines = [_heading(look, fixed - numbers_width - 2, bar_width)]
    for node, number in zip(nodes, numbers, strict=True):
        sign, color = _DOTS[node.state]
        gone = node.state == "dead"
        head: list[Piece] = [
            " ",
            (look(sign), color),
            " ",
            (look.pad(called[node.id], name_width), "dim" if gone else "bold"),
            "  ",
            (f"{node.state:<{_STATE}}", "" if node.state == "ready" else color),
            "  ",
        ]
        memory = _absent(node, now_unix_ms, bar_width + 2 + numbers_width) or [
            *_bar(node, look, bar_width),
            (f"{number:<{numbers_width}}", ""),
        ]
        tail = details.pieces(node)
        if one_line:
            lines.append(look.line(*head, *memory, *(piece for part in tail for piece in ("  ", part))))
        else:
            lines += [look.line(*head, *memory), *look.flow(3, tail)]
    return lines


def _heading(look: Look, before: int, bar_width: int) -> Text:
    title = ("Nodes", "bold")
    if not bar_width:
        return look.line(title)
    legend: list[Piece] = [
        (look("█"), "dim"), (" used  ", "dim"), (look("░"), "green"), (" free for models  ", "dim"),
        (look("╌"), "dim"), (" beyond the limit", "dim"),
    ]  # fmt: skip
    return look.line(title, " " * (before - cell_len(title[0])), *legend)


def _numbers(nodes: Sequence[Node]) -> list[str]:
    """`21.4 free of 24.0 GiB (limit 18.0)`, with the numbers of all nodes under each other."""
    texts = [memory_text(node) for node in nodes]
    free, whole = (max((len(text[column]) for text in texts), default=0) for column in (0, 1))
    return [f"{a:>{free}} free of {b:>{whole}} GiB{rest}" for a, b, rest in texts]


def _absent(node: Node, now_unix_ms: int, width: int) -> list[Piece] | None:
    """Instead of memory, for a node whose memory is nobody's to use."""
    if node.state == "dead":
        return [(f"last seen {age_text(node.seen_unix_ms, now_unix_ms)} ago".ljust(width), "dim")]
    if node.memory.ram_bytes <= 0:
        return [("memory unknown".ljust(width), "dim")]
    return None


def _bar(node: Node, look: Look, width: int) -> list[Piece]:
    if not width:
        return []
    used, usable = memory_split(node).marks(width)
    return [
        (look("█") * used, "dim"),
        (look("░") * (usable - used), "green"),
        (look("╌") * (width - usable), "dim"),
        "  ",
    ]


class _Details:
    """The quiet half of a node: hardware, where it listens, what it holds."""

    def __init__(self, nodes: Sequence[Node], look: Look, now_unix_ms: int, self_host: str | None) -> None:
        self._look = look
        self._texts = {id(node): self._columns(node) for node in nodes}
        columns = list(zip(*self._texts.values(), strict=True))
        self._widths = [
            widest(column, most=most) for column, most in zip(columns, (18, 9, 8, 28), strict=True)
        ]
        self._extra = {id(node): _extra(node, look, now_unix_ms, self_host) for node in nodes}
        extra = max(
            (sum(cell_len(text) + 2 for text, _ in pieces) for pieces in self._extra.values()), default=0
        )
        self.width = sum(self._widths) + 2 * 3 + extra

    def _columns(self, node: Node) -> tuple[str, ...]:
        return tuple(self._look(text) for text in (*hardware_text(node), node.endpoint))

    def pieces(self, node: Node) -> list[tuple[str, str]]:
        chip, cores, backend, endpoint = self._widths
        texts = self._texts[id(node)]
        padded = [
            self._look.pad(texts[0], chip),
            self._look.pad(texts[1], cores, right=True),
            self._look.pad(texts[2], backend),
            self._look.pad(texts[3], endpoint),
        ]
        return [("  ".join(padded), "dim"), *self._extra[id(node)]]


def _extra(node: Node, look: Look, now_unix_ms: int, self_host: str | None) -> list[tuple[str, str]]:
    extra: list[tuple[str, str]] = []
    if self_host and node.host == self_host:
        extra.append(("this machine", "dim"))
    if node.role == "announce":
        extra.append(("announces only", "dim"))
    if node.state == "suspect" or (node.state != "dead" and now_unix_ms - node.seen_unix_ms > _STALE_MS):
        extra.append((f"silent for {age_text(node.seen_unix_ms, now_unix_ms)}", "yellow"))
    for stage in node.stages:
        style = {"failed": "red", "ready": "cyan"}.get(stage.state, "yellow")
        extra.append((look(models_text(stage)), "dim" if node.state == "dead" else style))
    return extra


# -- advice ----------------------------------------------------------------------------------------


def _help(advice: Sequence[Advice], look: Look) -> list[Text]:
    if not advice:
        return []
    lines = [look.line(("What would help", "bold"))]
    for item in advice:
        about = look.fit(_arrows(item.about), max(look.width // 2, 8))
        lines += look.paragraph([" ", (about, "yellow"), ": "], _arrows(item.seen), most=4)
        lines += look.paragraph([("   " + look("→") + " ", "dim")], _arrows(item.do), style="", most=6)
    return lines


def _arrows(text: str) -> str:
    """Advice is written in ASCII."""
    return text.replace("<->", "↔").replace("->", "→")
