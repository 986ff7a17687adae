"""Numbers as people read them: sizes, rates, round trips, ages. Knows nothing of layout or colour.

Every text is ASCII except the sign for micro, and of bounded length whatever the number.
"""

import math

from exo_cli.plain import duration_text

GIB = 2**30


def gib(size_bytes: float) -> str:
    """A size in GiB without its unit, for columns: `24.0`."""
    return f"{min(max(size_bytes, 0), 2**60) / GIB:.1f}"


def bytes_text(size_bytes: float) -> str:
    """`24.0 GiB`, `512 MiB`, `17 B`."""
    size = max(size_bytes, 0)
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        # The next unit starts at ten of it for TiB: machines are compared in GiB.
        if size >= 1024**power * (10 if power == 4 else 1):
            value = min(size / 1024**power, 9999.0)
            return f"{value:.1f} {unit}" if power >= 3 else f"{value:.0f} {unit}"
    return f"{size:.0f} B"


def rate_text(bytes_per_s: float | None) -> str:
    """`1.10 GB/s`, `12.5 MB/s`; at most nine characters."""
    if bytes_per_s is None or not math.isfinite(bytes_per_s) or bytes_per_s < 0:
        return "?"
    for scale, unit in ((1e12, "TB/s"), (1e9, "GB/s"), (1e6, "MB/s")):
        # From a tenth of a unit on: 0.11 GB/s is a gigabit line, 12.5 MB/s a tenth of one.
        if bytes_per_s >= scale * (0.9995 if unit == "TB/s" else 0.0995):
            return f"{_three(bytes_per_s / scale)} {unit}"
    return f"{_three(bytes_per_s / 1e3)} kB/s"


def round_trip_text(us: float | None) -> str:
    """`0.21 ms`, `54.0 ms`, `4 µs`, `1.20 s`; at most eight characters."""
    if us is None or not math.isfinite(us) or us < 0:
        return "?"
    if us < 9.5:
        return f"{us:.0f} µs"
    if us < 999_500:
        return f"{_three(us / 1e3)} ms"
    return f"{_three(us / 1e6)} s"


def age_text(then_unix_ms: int, now_unix_ms: int) -> str:
    """`12 s`, `5 min`, `3 days`; a clock that went back counts as no time at all."""
    return duration_text(max(now_unix_ms - then_unix_ms, 0) / 1000)


def plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _three(value: float) -> str:
    """Three digits, so that columns of them line up."""
    if value < 9.995:
        return f"{value:.2f}"
    return f"{value:.1f}" if value < 99.95 else f"{min(value, 999):.0f}"
