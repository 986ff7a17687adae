"""A request's keys and values on one stage: one run of memory, not moved by another's coming or going.

Room is for as many positions as the request may reach; what is not used yet costs nothing, because the
system gives memory when it is first touched. Layer after layer, keys before values, a head after the other.
Looks to `caches` like one of mlx-lm's caches that can be cut. Knows nothing of MLX.
"""

from typing import Final

import numpy as np

from exo_cli.engine.cpu.attend import BLOCK
from exo_cli.engine.cpu.layout import Bytes, own_memory
from exo_cli.engine.cpu.pack8 import position_bytes as in_bytes

STEP: Final = 256
"""Room comes in so many positions, as requests are promised it."""
HALVES: Final = 16
"""Bits of a number that is kept as float16; else it is a byte, as `pack8` has it."""


def room_for(positions: int) -> int:
    """Whole steps, which are whole blocks."""
    return max(1, -(-positions // STEP)) * STEP


def position_bytes(width: int, bits: int) -> int:
    """Of one head's key at one position, or of its value."""
    return 2 * width if bits == HALVES else in_bytes(width)


class Slot:
    """Keys and values of `layers` layers."""

    def __init__(self, layers: int, kv_heads: int, width: int, positions: int, bits: int = HALVES) -> None:
        self._heads = layers, 2 * kv_heads
        self._position_bytes = position_bytes(width, bits)
        self.capacity = 0
        self.offset = 0
        """How many positions are held: others read and cut it."""
        self.numbers: Bytes = np.zeros((*self._heads, 0), np.uint8)
        self.reserve(positions)

    def reserve(self, positions: int) -> None:
        """Room for so many positions in all; what is held stays."""
        capacity = room_for(positions)
        if capacity <= self.capacity:
            return
        layers, heads = self._heads
        size = layers * heads * capacity * self._position_bytes
        fresh = np.frombuffer(own_memory(size), np.uint8, size).reshape(layers, heads, -1)
        # Whole blocks, because that is how positions lie.
        kept = -(-self.offset // BLOCK) * BLOCK * self._position_bytes
        fresh[..., :kept] = self.numbers[..., :kept]
        self.numbers, self.capacity = fresh, capacity

    @property
    def address(self) -> int:
        return int(self.numbers.ctypes.data)

    @property
    def head_bytes(self) -> int:
        """From one head's keys, or values, to the next one's."""
        return self.capacity * self._position_bytes

    @property
    def layer_bytes(self) -> int:
        return self._heads[1] * self.head_bytes

    @property
    def nbytes(self) -> int:
        return int(self.numbers.nbytes)

    def is_trimmable(self) -> bool:
        return True

    def trim(self, n: int) -> int:
        """Forget the last `n` positions."""
        n = min(n, self.offset)
        self.offset -= n
        return n
