"""A picture of a plan: for each chain a band of layers, for each node its memory.

Self-contained: no script, no font, no address but the namespace; it follows the reader's dark mode. Pure, and
the same plan gives the same picture. Knows nothing of files.
"""

from collections.abc import Iterator
from xml.sax.saxutils import escape

from exo_cli.schemas.plan import Plan, PlannedStage, Replica
from exo_cli.views.cells import Look
from exo_cli.views.figures import bytes_text
from exo_cli.views.plan_table import layers_text, milliseconds_text, name_of, needed_bytes, tokens_text

_WIDTH, _MARGIN, _TOP = 760, 32, 92
_BAND, _ROW = 34, 44
_INNER = _WIDTH - 2 * _MARGIN
_NAME_W, _BAR_W = 170, 360
_PLAIN = Look(unicode=True, width=10_000)
_COLORS = 6

_STYLE = """
text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: #1d2330 }
.page { fill: #fbfbfc } .title { font-size: 18px; font-weight: 600 }
.name { font-size: 13px; font-weight: 600 }
.small { font-size: 11px } .quiet { fill: #667085 } .on { fill: #ffffff; font-size: 11px }
.c0 { fill: #0b6b8a } .c1 { fill: #2f7d4f } .c2 { fill: #8a5a0b } .c3 { fill: #7a3f9d }
.c4 { fill: #a23b3b } .c5 { fill: #4a5a8a }
.kv { fill: #2f9e9e } .rest { fill: #d18a00 } .free { fill: #e6e9ee }
@media (prefers-color-scheme: dark) {
text { fill: #e6e9ef } .page { fill: #14171c } .quiet { fill: #98a1b0 } .free { fill: #313844 }
}
"""


def svg(plan: Plan) -> str:
    """The picture as one XML document."""
    height = _TOP + sum(_height(replica) for replica in plan.replicas) + 40
    title = f"{plan.model.name}: {len(plan.replicas)} " + ("chain" if len(plan.replicas) == 1 else "chains")
    body = [_text(_MARGIN, 40, "title", _fit(title, 70)), _text(_MARGIN, 62, "small quiet", _speed(plan))]
    y = float(_TOP)
    for replica in plan.replicas:
        body += _chain(replica, y)
        y += _height(replica)
    body += _legend(y + 14)
    return "\n".join(
        [
            '<?xml version="1.0" encoding="UTF-8"?>',
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
            f'viewBox="0 0 {_WIDTH} {height}" role="img">',
            f"<title>{escape(_PLAIN(title))}</title>",
            f"<style>{_STYLE}</style>",
            f'<rect class="page" width="{_WIDTH}" height="{height}"/>',
            *body,
            "</svg>",
            "",
        ]
    )


def _height(replica: Replica) -> int:
    return _BAND + 18 + _ROW * len(replica.stages) + 16


def _speed(plan: Plan) -> str:
    told = plan.forecast
    if told is None:
        return f"context {plan.context}"
    speeds = f"{tokens_text(told.decode_tokens_per_s)}, first token {milliseconds_text(told.ttft_ms)}"
    together = "" if plan.concurrency == 1 else f", {tokens_text(told.total_tokens_per_s)} together"
    return f"context {plan.context} · {plan.concurrency} at once · {speeds}{together}"


def _chain(replica: Replica, y: float) -> Iterator[str]:
    count = max(1, replica.stages[-1].layers[1] if replica.stages else 1)
    for number, stage in enumerate(replica.stages):
        first, end = stage.layers
        x, width = _MARGIN + _INNER * first / count, _INNER * (end - first) / count
        yield _rect(f"c{number % _COLORS}", x, y, max(1.0, width - 1), _BAND)
        if width > 60:
            yield _text(x + 6, y + 21, "on", _fit(f"{name_of(stage)} {layers_text(stage.layers)}", width / 7))
    y += _BAND + 18
    largest = max((stage.ranks[0].memory.limit_bytes for stage in replica.stages), default=1) or 1
    for number, stage in enumerate(replica.stages):
        yield from _node(stage, number, y, largest)
        y += _ROW


def _node(stage: PlannedStage, number: int, y: float, largest: int) -> Iterator[str]:
    memory = stage.ranks[0].memory
    yield _text(_MARGIN, y + 13, "name", _fit(name_of(stage), 20))
    yield _text(_MARGIN, y + 28, "small quiet", f"layers {layers_text(stage.layers)}")
    left = float(_MARGIN + _NAME_W)
    yield _rect("free", left, y, _BAR_W * memory.limit_bytes / largest, 16)
    parts = (
        (f"c{number % _COLORS}", memory.weights_bytes),
        ("kv", memory.kv_bytes),
        ("rest", memory.buffers_bytes + memory.base_bytes),
    )
    for kind, size in parts:
        width = _BAR_W * size / largest
        yield _rect(kind, left, y, width, 16)
        left += width
    used = needed_bytes(memory)
    said = f"{bytes_text(used)} of {bytes_text(memory.limit_bytes)}"
    yield _text(_MARGIN + _NAME_W + _BAR_W + 14, y + 12, "small", said)


def _legend(y: float) -> Iterator[str]:
    x = float(_MARGIN)
    for kind, words in (("c0", "weights"), ("kv", "caches"), ("rest", "engine"), ("free", "may use")):
        yield _rect(kind, x, y - 8, 14, 8)
        yield _text(x + 20, y, "small quiet", words)
        x += 100


def _rect(kind: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'


def _fit(text: str, characters: float) -> str:
    return _PLAIN.fit(text, max(1, int(characters)))


def _text(x: float, y: float, kind: str, words: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(_PLAIN(words))}</text>'
