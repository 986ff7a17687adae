"""The report's words in HTML: strangers' text made harmless, figures with their exact values, tables.

Everything is text in, HTML out. A figure is shown short and carries its exact value in a `<data>`
element. Knows nothing of what is reported.
"""

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import NewType

from exo_cli.plain import visible

Html = NewType("Html", str)
UNKNOWN = Html('<span class="quiet" title="not known">–</span>')


def text(words: str) -> Html:
    """Words, ours or a stranger's, without any power over the page."""
    return Html(escape(visible(words)))


def joined(parts: Iterable[Html], between: str = "") -> Html:
    return Html(between.join(parts))


def short(value: float) -> str:
    """About three digits: `0.042`, `7.31`, `48.2`, `1,204`, `3.1e+18`."""
    size = abs(value)
    if size >= 1e12 or 0 < size < 1e-4:
        return f"{value:.3g}"
    if value == int(value):
        return f"{int(value):,}"
    for least, digits in ((1000, 0), (100, 1), (10, 1), (1, 2)):
        if size >= least:
            return f"{value:,.{digits}f}"
    return f"{value:.3g}"


def number(value: float | None, unit: str = "") -> Html:
    """A figure, or a dash where it is not known; its exact value goes along."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    return _data(value, short(value) + (f" {unit}" if unit else ""))


def size(size_bytes: float | None) -> Html:
    """`4.8 GiB`, `512 MiB`, `17 B`."""
    if size_bytes is None or not math.isfinite(size_bytes):
        return UNKNOWN
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size_bytes >= 1024**power:
            return _data(size_bytes, f"{size_bytes / 1024**power:,.1f} {unit}")
    return _data(size_bytes, f"{short(size_bytes)} B")


def span(milliseconds: float | None) -> Html:
    """A time as a person reads it: `38 µs`, `20.5 ms`, `4.2 s`."""
    if milliseconds is None or not math.isfinite(milliseconds):
        return UNKNOWN
    return _data(milliseconds, span_text(milliseconds))


def span_text(milliseconds: float) -> str:
    if 0 < abs(milliseconds) < 0.1:
        return f"{short(milliseconds * 1000)} µs"
    return f"{short(milliseconds)} ms" if abs(milliseconds) < 10_000 else f"{short(milliseconds / 1000)} s"


def _data(value: float, words: str) -> Html:
    return Html(f'<data value="{value!r}">{escape(words)}</data>')


def table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[Html]], *, words: int = 1) -> Html:
    """The first `words` columns hold words; the others figures. The first one names its row."""
    kinds = [f' class="{"words" if at < words else "figure"}"' for at in range(len(heads))]
    top = joined(
        Html(f'<th scope="col"{kind}>{text(head)}</th>') for head, kind in zip(heads, kinds, strict=True)
    )
    body = joined(_row(row, kinds) for row in rows)
    return Html(
        f'<div class="scroll" role="region" tabindex="0" aria-label="{text(caption)}">'
        f"<table><caption>{text(caption)}</caption>"
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _row(row: Sequence[Html], kinds: Sequence[str]) -> Html:
    first, *rest = row
    cells = joined(Html(f"<td{kind}>{cell}</td>") for cell, kind in zip(rest, kinds[1:], strict=True))
    return Html(f'<tr><th scope="row"{kinds[0]}>{first}</th>{cells}</tr>')


def pairs(items: Iterable[tuple[str, Html]]) -> Html:
    """Names and values."""
    return Html(
        "<dl>"
        + "".join(f"<div><dt>{text(name)}</dt><dd>{value}</dd></div>" for name, value in items)
        + "</dl>"
    )


def section(title: str, *parts: Html) -> Html:
    return Html(f"<section><h2>{text(title)}</h2>{joined(parts)}</section>")


def paragraph(*parts: Html, kind: str = "") -> Html:
    return Html(f'<p class="{kind}">{joined(parts)}</p>' if kind else f"<p>{joined(parts)}</p>")


def folded(summary: str, *parts: Html) -> Html:
    """Shown on a click; needs no script."""
    return Html(f"<details><summary>{text(summary)}</summary>{joined(parts)}</details>")
