"""Machines that cannot be measured: what their makers say of memory and arithmetic, by the chip's name.

A rate that a node measured with the real kernels always wins over this table; an engine reaches a share of
what a maker says, and that share stands with the other constants (costs). Evidence: makers' figures, not
measured by us. Knows nothing of models.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Chip:
    """What a maker says."""

    bytes_per_s: float
    flop_per_s: float


_CHIPS: Final[tuple[tuple[str, float, float], ...]] = (
    # The name's words, GB/s, TFLOP/s at 16 bits; the more specific before the less.
    ("m1 ultra", 800, 42), ("m1 max", 400, 21), ("m1 pro", 200, 10.6), ("m1", 68, 5.2),
    ("m2 ultra", 800, 54), ("m2 max", 400, 27), ("m2 pro", 200, 13.6), ("m2", 100, 7.2),
    ("m3 ultra", 819, 57), ("m3 max", 400, 28), ("m3 pro", 150, 14.8), ("m3", 100, 8.2),
    ("m4 max", 546, 34), ("m4 pro", 273, 17), ("m4", 120, 8),
    ("rtx 5090", 1792, 419), ("rtx 4090", 1008, 330), ("rtx 3090", 936, 142),
    ("gb10", 273, 125), ("dgx spark", 273, 125),
    ("h200", 4800, 990), ("h100", 3350, 990), ("a100", 2039, 312),
)  # fmt: skip
_GUESS: Final = {"metal": Chip(100e9, 8e12), "cuda": Chip(500e9, 80e12)}
_CORE: Final = Chip(5e9, 30e9)
"""A processor's core, where nothing is known of it."""
_CORES: Final = 8
"""More of them wait for the same memory."""


def chip(name: str) -> Chip | None:
    """By the words of its name; None where the table has none."""
    words = f" {name.casefold()} "
    for known, gigabytes, teraflop in _CHIPS:
        if f" {known} " in words:
            return Chip(gigabytes * 1e9, teraflop * 1e12)
    return None


def guess(backend: str, cores: int) -> Chip:
    """Where even the name says nothing."""
    known = _GUESS.get(backend)
    if known is not None:
        return known
    count = max(1, cores)
    return Chip(_CORE.bytes_per_s * min(count, _CORES), _CORE.flop_per_s * count)
