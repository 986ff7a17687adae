"""A request's keys and values: room, growth and cutting."""

import numpy as np

from exo_cli.engine import caches
from exo_cli.engine.caches import Held, Prefixes
from exo_cli.engine.cpu.slots import Slot, room_for


def test_room_comes_in_whole_blocks() -> None:
    assert [room_for(n) for n in (0, 1, 32, 33)] == [32, 32, 32, 64]


def test_growing_keeps_what_is_held() -> None:
    slot = Slot(layers=2, kv_heads=3, width=16, positions=40)
    assert slot.capacity == 64
    assert slot.layer_bytes * 2 == slot.nbytes == 2 * 2 * 3 * 64 * 16 * 2
    slot.offset = 40
    slot.numbers[:] = np.arange(slot.numbers.size, dtype=np.float32).reshape(slot.numbers.shape) % 1000
    before = slot.numbers.copy()
    slot.reserve(64)
    assert slot.capacity == 64
    slot.reserve(65)
    assert slot.capacity == 96
    assert np.array_equal(slot.numbers[..., : 64 * 16], before)
    assert not slot.numbers[..., 64 * 16 :].any()


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
