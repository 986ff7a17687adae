"""By how much rotary positions turn: a growing table of cosines and sines, asked of whoever defines them.

Knows nothing of MLX: `made(first, last)` gives the rows of positions `first` to `last` (excluded).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from exo_cli.engine.cpu.layout import Floats

STEP: Final = 512


@dataclass(slots=True)
class Turns:
    """`half` cosines, then `half` sines a position."""

    half: int
    paired: bool
    """Whether neighbours turn together, or a head's first half with its second."""
    made: Callable[[int, int], Floats] = field(repr=False)
    table: Floats = field(default_factory=lambda: np.zeros((0, 0), np.float32), repr=False)

    def up_to(self, positions: int) -> Floats:
        """The table with at least so many positions."""
        have = len(self.table)
        if positions > have:
            new = self.made(have, -(-positions // STEP) * STEP)
            assert new.shape[1] == 2 * self.half
            self.table = np.concatenate([self.table, new]) if have else np.ascontiguousarray(new)
        return self.table
