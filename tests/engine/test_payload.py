"""Taking a layer's output apart, packing it into one tensor, and putting it together again."""

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo_cli.engine.payload import Payload, Slot, flatten, unflatten
from exo_cli.errors import BadData


@st.composite
def slots(draw: st.DrawFn) -> Slot:
    rest = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
    batch, token = draw(st.permutations(range(len(rest) + 2)))[:2]
    return Slot(batch, token, rest, draw(st.sampled_from([mx.float32, mx.bfloat16, mx.float16])))


def tensor(slot: Slot, batch: int, tokens: int, seed: int) -> mx.array:
    shape = list(slot.rest)
    for axis, size in sorted([(slot.batch_axis, batch), (slot.token_axis, tokens)]):
        shape.insert(axis, size)
    return mx.random.normal(tuple(shape), key=mx.random.key(seed)).astype(slot.dtype)


@given(st.lists(slots(), min_size=1, max_size=3), st.integers(1, 3), st.integers(1, 4))
def test_what_is_packed_comes_out_again(all_slots: list[Slot], batch: int, tokens: int) -> None:
    tensors = tuple(tensor(slot, batch, tokens, seed) for seed, slot in enumerate(all_slots))
    _, template = flatten(tensors)
    payload = Payload(template, tuple(all_slots))
    payload.check(tensors, batch, tokens)
    packed = payload.pack(tensors)
    assert packed.shape == (batch, tokens, payload.width)
    again = payload.unpack(packed)
    for before, after in zip(tensors, again, strict=True):
        assert before.dtype == after.dtype
        assert mx.array_equal(before, after)


def test_rows_of_the_packed_tensor_are_rows_of_the_step() -> None:
    """A frame's rows are tokens: each must hold its own token's numbers and no other's."""
    keys = Slot(0, 2, (2, 3), mx.float32)
    payload = Payload(flatten(mx.zeros(1))[1], (keys,))
    made = tensor(keys, 2, 5, 0)
    packed = payload.pack((made,))
    assert mx.array_equal(packed[1, 3], made[1, :, 3, :].reshape(-1))


def test_outputs_that_nobody_reads_are_not_sent() -> None:
    given_out = (mx.ones((1, 2, 4)), [mx.zeros((9,)), None], {"n": 3})
    leaves, template = flatten(given_out)
    payload = Payload(template, (Slot(0, 1, (4,), mx.float32), None))
    assert len(leaves) == 2
    (sent,) = payload.take(given_out)
    back = payload.give((sent,))
    assert mx.array_equal(back[0], given_out[0])
    assert back[1:] == ([None, None], {"n": 3})


def test_a_form_that_changes_is_refused() -> None:
    payload = Payload(flatten((mx.ones(1), None))[1], (Slot(0, 1, (4,), mx.float32),))
    with pytest.raises(BadData, match="another form"):
        payload.take((mx.ones(1), 7))
    with pytest.raises(BadData, match="wide"):
        payload.unpack(mx.zeros((1, 2, 5)))


def test_nests_of_every_kind_come_back() -> None:
    value = {"a": [mx.ones(1), (mx.zeros(2), "x")], "b": 2.5}
    leaves, template = flatten(value)
    again = unflatten(template, leaves)
    assert again["a"][0] is leaves[0]
    assert again["a"][1][1] == "x"
    assert isinstance(again["a"][1], tuple)
    assert again["b"] == 2.5
