"""The likeliest token of a row of logits, and the logarithm of its probability. Knows nothing of sampling."""

from typing import Final

import numpy as np

from exo_cli.engine.cpu import lanes
from exo_cli.engine.cpu.jit import kernel
from exo_cli.engine.cpu.layout import Floats
from exo_cli.engine.cpu.rows import exp

_ZERO: Final = np.float32(0)
_LEAST: Final = np.float32(-3.4e38)


@kernel
def _likeliest(logits: int, count: int, out: int) -> int:
    """Where the first of the largest is; to `out` its logarithm, no number if any of the logits is none."""
    most = lanes.fill(_LEAST)
    strange = lanes.fill(_ZERO)
    whole = count // 16
    for place in range(whole):
        here = lanes.load(logits + 64 * place)
        most = lanes.larger(here, most)
        strange = lanes.add(strange, lanes.subtract(here, here))
    top = lanes.highest(most)
    wrong = lanes.total(strange)
    for place in range(16 * whole, count):
        one = lanes.peek(logits + 4 * place)
        top = max(top, one)
        wrong += one - one
    by = lanes.fill(top)
    sums = lanes.fill(_ZERO)
    for place in range(whole):
        sums = lanes.add(sums, exp(lanes.subtract(lanes.load(logits + 64 * place), by)))
    rest = _ZERO
    for place in range(16 * whole, count):
        rest += np.exp(lanes.peek(logits + 4 * place) - top)
    lanes.poke(out, -np.log(lanes.total(sums) + rest) + wrong)
    for place in range(count):
        if lanes.peek(logits + 4 * place) == top:
            return place
    return 0


def likeliest(logits: Floats) -> tuple[int, float]:
    """Of one row, contiguous."""
    out = np.empty(1, np.float32)
    token = _likeliest(logits.ctypes.data, len(logits), out.ctypes.data)
    return int(token), float(out[0])
