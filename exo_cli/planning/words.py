"""Figures and lists as the planner's sentences have them. Knows nothing of plans."""

from collections.abc import Iterable, Sequence


def gigabytes(size_bytes: float) -> str:
    """`12.1 GB`; as people buy memory, not in powers of two."""
    return f"{size_bytes / 1e9:.1f} GB"


def per_second(tokens: float) -> str:
    """`14.1 tok/s`, `880 tok/s`."""
    return f"{tokens:.0f} tok/s" if tokens >= 99.5 else f"{tokens:.1f} tok/s"


def listed(parts: Iterable[str], last: str = "and") -> str:
    """`a`, `a and b`, `a, b and c`."""
    said = list(parts)
    return said[0] if len(said) == 1 else f"{', '.join(said[:-1])} {last} {said[-1]}" if said else ""


def some(parts: Sequence[str], most: int, rest: str) -> str:
    """The first so many, and how many more there are."""
    if len(parts) <= most:
        return listed(parts)
    return listed([*parts[:most], f"{len(parts) - most} {rest}"])


def layers(first: int, last: int) -> str:
    """As people count: the last one included."""
    return f"{first}" if last == first + 1 else f"{first}-{last - 1}"
