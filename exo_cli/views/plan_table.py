"""A plan as a person looks at it: a bar for each node with its layers and memory, and the words below.

Names are strangers' words and go through `Look`. Knows nothing of how a plan was found.
"""

from collections.abc import Iterator, Sequence

from rich.console import Group
from rich.text import Text

from exo_cli.schemas.plan import Forecast, Plan, PlannedStage, RankMemory
from exo_cli.views.cells import Look, stack, widest
from exo_cli.views.figures import bytes_text

_NAME_MOST = 20
_BAR_LEAST, _BAR_MOST = 10, 40
_PARTS = (("weights_bytes", "█", "green"), ("kv_bytes", "▓", "cyan"), ("rest", "▒", "yellow"))
_PLAIN_PARTS = {"█": "#", "▓": "=", "▒": "+", "·": "."}


def render(plan: Plan, *, width: int, unicode: bool, explain: bool) -> Group:
    """The whole picture; `explain`: with everything that is known of the choice."""
    look = Look(unicode=unicode, width=width)
    blocks: list[Sequence[Text]] = [list(_head(plan, look)), *_chains(plan, look), list(_speed(plan, look))]
    if explain:
        blocks += [list(_worth(plan, look)), list(_others(plan, look)), list(_left_out(plan, look))]
    return stack(blocks)


def layers_text(layers: tuple[int, int]) -> str:
    """As people count: the last one included."""
    first, end = layers
    return str(first) if end == first + 1 else f"{first}-{end - 1}"


def needed_bytes(memory: RankMemory) -> int:
    return memory.weights_bytes + memory.kv_bytes + memory.buffers_bytes + memory.base_bytes


def name_of(stage: PlannedStage) -> str:
    rank = stage.ranks[0]
    return rank.name or rank.node


def tokens_text(tokens_per_s: float) -> str:
    return f"{tokens_per_s:.0f} tok/s" if tokens_per_s >= 99.5 else f"{tokens_per_s:.1f} tok/s"


def milliseconds_text(ms: float) -> str:
    return f"{ms / 1000:.2f} s" if ms >= 1000 else f"{ms:.0f} ms" if ms >= 9.95 else f"{ms:.2g} ms"


def _head(plan: Plan, look: Look) -> Iterator[Text]:
    requests = "1 request" if plan.concurrency == 1 else f"{plan.concurrency} requests at once"
    yield look.line((look(plan.model.name), "bold"), f", context {plan.context}, {requests}")
    yield from look.paragraph([], plan.reason)


def _chains(plan: Plan, look: Look) -> Iterator[list[Text]]:
    stages = [stage for replica in plan.replicas for stage in replica.stages]
    names = widest((look(name_of(stage)) for stage in stages), most=_NAME_MOST, least=4)
    ranges = widest((layers_text(stage.layers) for stage in stages), most=12)
    bar = max(_BAR_LEAST, min(_BAR_MOST, look.width - names - ranges - 40))
    largest = max((stage.ranks[0].memory.limit_bytes for stage in stages), default=1)
    for number, replica in enumerate(plan.replicas, 1):
        lines = []
        if len(plan.replicas) > 1:
            count = replica.concurrency or plan.concurrency
            lines.append(look.line((f"replica {number}: {count} of the requests", "dim")))
        for stage in replica.stages:
            lines.append(_stage(stage, look, names, ranges, bar, largest))
        yield lines
    if stages:
        keys = [(look(mark) if look.unicode else _PLAIN_PARTS[mark], style) for _, mark, style in _PARTS]
        words = ("weights", "caches", "engine")
        pieces = [(f"{mark[0]} {word}", mark[1]) for mark, word in zip(keys, words, strict=True)]
        yield look.flow(names + ranges + 4, [*pieces, (look("· may use"), "dim")])


def _stage(stage: PlannedStage, look: Look, names: int, ranges: int, bar: int, largest: int) -> Text:
    memory = stage.ranks[0].memory
    pieces: list[str | tuple[str, str]] = [
        look.pad(name_of(stage), names),
        "  ",
        look.pad(layers_text(stage.layers), ranges, right=True),
        "  ",
    ]
    sizes = {
        "weights_bytes": memory.weights_bytes,
        "kv_bytes": memory.kv_bytes,
        "rest": memory.buffers_bytes + memory.base_bytes,
    }
    done = total = 0
    for key, mark, style in _PARTS:
        total += sizes[key]
        end = round(bar * min(1.0, total / largest))
        pieces.append(((mark if look.unicode else _PLAIN_PARTS[mark]) * (end - done), style))
        done = end
    limit = max(done, round(bar * memory.limit_bytes / largest))
    pieces.append((("·" if look.unicode else ".") * (limit - done), "dim"))
    used = needed_bytes(memory)
    share = used / max(1, memory.limit_bytes)
    said = f"  {bytes_text(used)} of {bytes_text(memory.limit_bytes)} ({share:.0%})"
    return look.line(*pieces, " " * (bar - limit), said)


def _speed(plan: Plan, look: Look) -> Iterator[Text]:
    told = plan.forecast
    if told is None:
        yield look.line("no forecast")
        return
    yield look.line(
        "first token ",
        (milliseconds_text(told.ttft_ms), "bold"),
        f" after {told.prompt_tokens} tokens of prompt",
    )
    together = "" if plan.concurrency == 1 else f", {tokens_text(told.total_tokens_per_s)} together"
    yield look.line((tokens_text(told.decode_tokens_per_s), "bold"), f" for one request{together}")
    yield from _where(plan, told, look)
    if plan.binding:
        yield from look.paragraph(["limited by "], plan.binding)
    if told.basis != "measured":
        what = {"table": "makers' figures", "guessed": "guesses"}.get(told.basis or "", "nothing")
        yield from look.paragraph(
            [], f"Not every figure was measured: the weakest are {what}.", style="yellow"
        )
    if plan.gap:
        yield from look.paragraph(
            [], f"A better plan, if there is one, is better by {plan.gap:.1%} at the most."
        )


def _where(plan: Plan, told: Forecast, look: Look) -> Iterator[Text]:
    stages = [stage for replica in plan.replicas for stage in replica.stages]
    if len(stages) < 2:
        return
    names = widest((look(name_of(stage)) for stage in stages), most=_NAME_MOST, least=4)
    for stage, each in zip(stages, told.stages, strict=False):
        figures = (("computes", each.compute_ms), ("wire", each.wire_ms), ("waits", each.wait_ms))
        said = ", ".join(f"{word} {milliseconds_text(ms)}" for word, ms in figures)
        yield look.line(("  " + look.pad(name_of(stage), names) + f"  {said}", "dim"))


def _worth(plan: Plan, look: Look) -> Iterator[Text]:
    for each in plan.worth:
        with_it, without = (
            "nothing fits" if speed is None else tokens_text(speed)
            for speed in (each.with_tokens_per_s, each.without_tokens_per_s)
        )
        yield from look.paragraph([], f"without {each.name}: {without}; with it: {with_it}")


def _others(plan: Plan, look: Look) -> Iterator[Text]:
    for other in plan.alternatives:
        speeds = f"{tokens_text(other.total_tokens_per_s)}, first token {milliseconds_text(other.ttft_ms)}"
        yield from look.paragraph(["instead: "], f"{other.layout} ({speeds})")


def _left_out(plan: Plan, look: Look) -> Iterator[Text]:
    for each in plan.left_out:
        yield from look.paragraph([], f"{each.name} takes no part: {each.reason}")
