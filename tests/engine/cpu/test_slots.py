"""A request's keys and values: room, growth and cutting."""

import numpy as np
import pytest

from exo_cli.engine import caches
from exo_cli.engine.caches import Held, Prefixes
from exo_cli.engine.cpu.slots import STEP, Slot, position_bytes, room_for


def test_room_comes_in_steps_as_it_is_promised() -> None:
    assert STEP == caches.STEP
    assert [room_for(n) for n in (0, 1, 256, 257)] == [256, 256, 256, 512]


def test_what_a_position_takes() -> None:
    """A byte a number, and four for every 32 of them."""
    assert [position_bytes(64, bits) for bits in (16, 8)] == [128, 72]
    assert position_bytes(96, 8) == 108


@pytest.mark.parametrize("bits", [16, 8])
def test_growing_keeps_what_is_held(bits: int) -> None:
    slot = Slot(layers=2, kv_heads=3, width=32, positions=200, bits=bits)
    a_position = position_bytes(32, bits)
    assert slot.capacity == 256
    assert slot.head_bytes == 256 * a_position
    assert slot.layer_bytes * 2 == slot.nbytes == 2 * 2 * 3 * slot.head_bytes
    slot.offset = 200
    slot.numbers[:] = 1 + np.arange(slot.nbytes).reshape(slot.numbers.shape) % 255
    before = slot.numbers.copy()
    slot.reserve(256)
    assert slot.capacity == 256
    slot.reserve(257)
    assert slot.capacity == 512
    # 200 positions lie in seven blocks of 32.
    kept = 224 * a_position
    assert np.array_equal(slot.numbers[..., :kept], before[..., :kept])
    assert not slot.numbers[..., kept:].any()


def test_a_slot_is_cut_and_kept_like_any_cache() -> None:
    slot = Slot(layers=1, kv_heads=1, width=16, positions=20)
    slot.offset = 10
    held = Held([slot], 10, list(range(10)))
    assert caches.rewind(held, 4)
    assert (held.position, slot.offset, held.ids) == (4, 4, [0, 1, 2, 3])
    prefixes = Prefixes(1000)
    prefixes.keep(held.ids, held, 100)
    again = prefixes.take([0, 1, 9])
    assert again is held
    assert slot.offset == 2
