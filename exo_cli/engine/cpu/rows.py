"""What happens to one row between two products: norms, packing to int8, rotation, the gate's function.

All of it row by row and in one fixed order, so that a row's numbers are the same alone and among others.
Addresses come in as integers; sizes are multiples of 16. Knows nothing of layers or threads.
"""

from typing import Any, Final

import numpy as np

from exo_cli.engine.cpu import lanes
from exo_cli.engine.cpu.jit import inner

_ZERO: Final = np.float32(0)
_ONE: Final = np.float32(1)
_MOST: Final = np.float32(127)
_LOG2E: Final = np.float32(1.44269504088896341)
_LN2_HIGH: Final = np.float32(0.693359375)
_LN2_LOW: Final = np.float32(-2.12194440e-4)
_LOWEST: Final = np.float32(-87.0)
_HIGHEST: Final = np.float32(88.0)
STEEP: Final = 1.702
LIMIT: Final = 7.0
"""Of the clamped gate."""
_STEEP: Final = np.float32(STEEP)
_LIMIT: Final = np.float32(LIMIT)
_C: Final = tuple(
    np.float32(each) for each in (1.9875691e-4, 1.3981999e-3, 8.3334519e-3, 4.1665796e-2, 1.6666665e-1, 0.5)
)
_C0, _C1, _C2, _C3, _C4, _C5 = _C


def record_bytes(width: int, group: int) -> int:
    """How long a row for a product is, in whole cache lines.

    Packed: its bytes, a scale and a sum a group. A group of 0: as float32, not packed.
    """
    size = width + 8 * (width // group) if group else 4 * width
    return -(-size // 64) * 64


@inner
def exp(x: Any) -> Any:
    """e to the x in every lane, within 2 units in the last place; 0 never, and no infinity."""
    x = lanes.smaller(lanes.larger(x, lanes.fill(_LOWEST)), lanes.fill(_HIGHEST))
    whole = lanes.nearest(lanes.multiply(x, lanes.fill(_LOG2E)))
    x = lanes.fma(whole, lanes.fill(-_LN2_HIGH), x)
    x = lanes.fma(whole, lanes.fill(-_LN2_LOW), x)
    y = lanes.fill(_C0)
    y = lanes.fma(y, x, lanes.fill(_C1))
    y = lanes.fma(y, x, lanes.fill(_C2))
    y = lanes.fma(y, x, lanes.fill(_C3))
    y = lanes.fma(y, x, lanes.fill(_C4))
    y = lanes.fma(y, x, lanes.fill(_C5))
    y = lanes.fma(y, lanes.multiply(x, x), lanes.add(x, lanes.fill(_ONE)))
    return lanes.power(y, whole)


@inner
def root_mean_square(x: int, width: int, eps: float) -> float:
    """What an RMS norm multiplies a row with."""
    one = lanes.fill(_ZERO)
    two = lanes.fill(_ZERO)
    three = lanes.fill(_ZERO)
    four = lanes.fill(_ZERO)
    at = x
    for _ in range(width // 64):
        a, b, c, d = lanes.load(at), lanes.load(at + 64), lanes.load(at + 128), lanes.load(at + 192)
        one = lanes.fma(a, a, one)
        two = lanes.fma(b, b, two)
        three = lanes.fma(c, c, three)
        four = lanes.fma(d, d, four)
        at += 256
    for _ in range(width % 64 // 16):
        a = lanes.load(at)
        one = lanes.fma(a, a, one)
        at += 64
    squares = lanes.total(lanes.add(lanes.add(one, two), lanes.add(three, four)))
    factor: float = _ONE / np.sqrt(squares / np.float32(width) + eps)
    return factor


@inner
def norm(x: int, weight: int, width: int, eps: float, y: int) -> None:
    """An RMS norm of a row; `y` may be `x`."""
    factor = lanes.fill(root_mean_square(x, width, eps))
    for place in range(width // 16):
        at = 64 * place
        lanes.store(
            y + at, lanes.multiply(lanes.multiply(lanes.load(x + at), factor), lanes.load(weight + at))
        )


@inner
def pack_group(x: int, group: int, out: int, scale_at: int, sum_at: int) -> None:
    """One group to int8: bytes, and the scale and the sum of what the bytes stand for."""
    most = lanes.fill(_ZERO)
    for place in range(group // 16):
        most = lanes.larger(lanes.magnitude(lanes.load(x + 64 * place)), most)
    top = lanes.highest(most)
    scale = top / _MOST
    # A group of numbers that are next to nothing is nothing: dividing by it would leave float32.
    alive = scale > np.float32(1e-30)
    inverse = lanes.fill(_MOST / top if alive else _ZERO)
    sums = lanes.fill(_ZERO)
    for place in range(group // 16):
        whole = lanes.nearest(lanes.multiply(lanes.load(x + 64 * place), inverse))
        lanes.store_bytes(out + 16 * place, whole)
        sums = lanes.add(sums, whole)
    scale = scale if alive else _ZERO
    lanes.poke(scale_at, scale)
    lanes.poke(sum_at, lanes.total(sums) * scale)


@inner
def pack_row(x: int, width: int, group: int, out: int) -> None:
    """A row as `dots` wants it."""
    if group == 0:
        for place in range(width // 16):
            lanes.store(out + 64 * place, lanes.load(x + 64 * place))
        return
    groups = width // group
    scales = out + width
    sums = scales + 4 * groups
    for number in range(groups):
        at = number * group
        pack_group(x + 4 * at, group, out + at, scales + 4 * number, sums + 4 * number)


@inner
def pack_part(x: int, width: int, group: int, number: int, out: int) -> None:
    """One group of a row that is made group by group; `group` 0: 16 numbers, not packed."""
    if group == 0:
        lanes.store(out + 64 * number, lanes.load(x))
        return
    scales = out + width
    at = 4 * number
    pack_group(x, group, out + number * group, scales + at, scales + 4 * (width // group) + at)


@inner
def gate(x: Any, y: Any) -> Any:
    """silu(x) * y in every lane."""
    below = lanes.add(lanes.fill(_ONE), exp(lanes.subtract(lanes.fill(_ZERO), x)))
    return lanes.multiply(lanes.divide(x, below), y)


@inner
def clamped_gate(x: Any, y: Any) -> Any:
    """The same as gpt-oss has it: steeper, both kept within bounds, and 1 added to what is gated."""
    x = lanes.smaller(x, lanes.fill(_LIMIT))
    y = lanes.smaller(lanes.larger(y, lanes.fill(-_LIMIT)), lanes.fill(_LIMIT))
    below = lanes.add(lanes.fill(_ONE), exp(lanes.multiply(x, lanes.fill(-_STEEP))))
    return lanes.multiply(lanes.add(y, lanes.fill(_ONE)), lanes.divide(x, below))


@inner
def rotate(x: int, turns: int, half: int, paired: int) -> None:
    """Rotary positions of one head in place: `half` cosines, then `half` sines at `turns`.

    `paired`: neighbours turn together, else the head's first half with its second.
    """
    if paired:
        for place in range(half):
            at = x + 8 * place
            a, b = lanes.peek(at), lanes.peek(at + 4)
            cos, sin = lanes.peek(turns + 4 * place), lanes.peek(turns + 4 * (half + place))
            lanes.poke(at, a * cos - b * sin)
            lanes.poke(at + 4, a * sin + b * cos)
        return
    vectors = half // 16
    for place in range(vectors):
        at = x + 64 * place
        a, b = lanes.load(at), lanes.load(at + 4 * half)
        cos, sin = lanes.load(turns + 64 * place), lanes.load(turns + 4 * half + 64 * place)
        lanes.store(at, lanes.subtract(lanes.multiply(a, cos), lanes.multiply(b, sin)))
        lanes.store(at + 4 * half, lanes.add(lanes.multiply(a, sin), lanes.multiply(b, cos)))
    for place in range(16 * vectors, half):
        at = x + 4 * place
        a, b = lanes.peek(at), lanes.peek(at + 4 * half)
        cos, sin = lanes.peek(turns + 4 * place), lanes.peek(turns + 4 * (half + place))
        lanes.poke(at, a * cos - b * sin)
        lanes.poke(at + 4 * half, a * sin + b * cos)
