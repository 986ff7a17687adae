"""A request's keys and values on one stage: one run of memory, not moved by another's coming or going.

Room is for as many positions as the request may reach; what is not used yet costs nothing, because the
system gives memory when it is first touched. Layer after layer, keys before values, a head after the other.
Looks to `caches` like one of mlx-lm's caches that can be cut. Knows nothing of MLX.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from exo_cli.engine.cpu.attend import BLOCK
from exo_cli.engine.cpu.layout import own_memory

Halves = NDArray[np.float16]
ITEM_BYTES: Final = 2


def room_for(positions: int) -> int:
    """Whole blocks."""
    return max(1, -(-positions // BLOCK)) * BLOCK


class Slot:
    """Keys and values of `layers` layers."""

    def __init__(self, layers: int, kv_heads: int, width: int, positions: int) -> None:
        self._sizes = layers, kv_heads, width
        self.capacity = 0
        self.offset = 0
        """How many positions are held: others read and cut it."""
        self.numbers: Halves = np.zeros((layers, 2, kv_heads, 0), np.float16)
        self.reserve(positions)

    def reserve(self, positions: int) -> None:
        """Room for so many positions in all; what is held stays."""
        capacity = room_for(positions)
        if capacity <= self.capacity:
            return
        layers, kv_heads, width = self._sizes
        count = layers * 2 * kv_heads * capacity * width
        fresh = np.frombuffer(own_memory(max(1, count * ITEM_BYTES)), np.float16, count)
        fresh = fresh.reshape(layers, 2, kv_heads, capacity * width)
        # Whole blocks, because that is how keys lie.
        kept = min(room_for(self.offset), self.capacity) * width if self.offset else 0
        fresh[..., :kept] = self.numbers[..., :kept]
        self.numbers, self.capacity = fresh, capacity

    @property
    def address(self) -> int:
        return int(self.numbers.ctypes.data)

    @property
    def layer_bytes(self) -> int:
        _, kv_heads, width = self._sizes
        return 2 * kv_heads * self.capacity * width * ITEM_BYTES

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
