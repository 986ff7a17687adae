"""Norms, rotation, the gate and attention, each against float64 with a bound."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exo_cli.engine.cpu import lanes, rows
from exo_cli.engine.cpu.jit import inner
from exo_cli.engine.cpu.layout import Floats
from tests.support.kernels import Cache


@inner
def _exp(x: int, out: int) -> None:
    lanes.store(out, rows.exp(lanes.load(x)))


@inner
def _gate(x: int, y: int, out: int) -> None:
    lanes.store(out, rows.gate(lanes.load(x), lanes.load(y)))


@inner
def _clamped(x: int, y: int, out: int) -> None:
    lanes.store(out, rows.clamped_gate(lanes.load(x), lanes.load(y)))


@inner
def _norm(x: int, weight: int, width: int, eps: float, out: int) -> None:
    rows.norm(x, weight, width, np.float32(eps), out)


@inner
def _rotate(x: int, turns: int, half: int, paired: int) -> None:
    rows.rotate(x, turns, half, paired)


def normal(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@settings(max_examples=50)
@given(st.lists(st.floats(-87, 88, width=32), min_size=16, max_size=16))
def test_exp_is_right_to_two_units_in_the_last_place(numbers: list[float]) -> None:
    x, out = np.array(numbers, np.float32), np.zeros(16, np.float32)
    _exp(x.ctypes.data, out.ctypes.data)
    right = np.exp(x.astype(np.float64))
    assert (np.abs(out - right) <= 2 * np.spacing(right.astype(np.float32))).all()


def test_exp_of_what_is_too_small_or_too_large_stays_a_number() -> None:
    x, out = np.array([-1e30, 1e30, -200, 200] * 4, np.float32), np.zeros(16, np.float32)
    _exp(x.ctypes.data, out.ctypes.data)
    assert np.isfinite(out).all()
    assert (out[::2] < 1e-37).all()


@given(seed=st.integers(0, 99), spread=st.floats(-2, 2))
def test_the_gate(seed: int, spread: float) -> None:
    x, y, out = normal(seed, 16) * np.float32(np.exp(spread)), normal(seed + 1, 16), np.zeros(16, np.float32)
    _gate(x.ctypes.data, y.ctypes.data, out.ctypes.data)
    right = x.astype(np.float64) / (1 + np.exp(-x.astype(np.float64))) * y
    assert (np.abs(out - right) <= 3e-6 * np.abs(right) + 1e-30).all()


@given(seed=st.integers(0, 99), spread=st.floats(-2, 4))
def test_the_clamped_gate(seed: int, spread: float) -> None:
    by = np.float32(np.exp(spread))
    x, y, out = normal(seed, 16) * by, normal(seed + 1, 16) * by, np.zeros(16, np.float32)
    _clamped(x.ctypes.data, y.ctypes.data, out.ctypes.data)
    a, b = np.minimum(x.astype(np.float64), 7), np.clip(y.astype(np.float64), -7, 7)
    right = (b + 1) * a / (1 + np.exp(-1.702 * a))
    # What is added to 1 may leave little: the sum is rounded as a number near 1 is.
    assert (np.abs(out - right) <= 3e-6 * np.abs(right) + 2e-7 * np.abs(a) + 1e-30).all()


@given(seed=st.integers(0, 99), width=st.integers(1, 20).map(lambda n: 16 * n))
def test_a_norm(seed: int, width: int) -> None:
    x, weight, out = normal(seed, width), normal(seed + 1, width), np.zeros(width, np.float32)
    _norm(x.ctypes.data, weight.ctypes.data, width, 1e-5, out.ctypes.data)
    wide = x.astype(np.float64)
    right = wide / np.sqrt((wide**2).mean() + 1e-5) * weight
    assert (np.abs(out - right) <= 3e-6 * np.abs(right) + 1e-30).all()


@pytest.mark.parametrize("paired", [False, True])
@given(seed=st.integers(0, 99), half=st.sampled_from([4, 8, 16, 24, 32, 64]))
def test_a_rotation(seed: int, half: int, paired: bool) -> None:
    x, angles = normal(seed, 2 * half + 16), normal(seed + 1, half)
    turns = np.concatenate([np.cos(angles), np.sin(angles)]).astype(np.float32)
    right = x.astype(np.float64)
    first = np.arange(half) * 2 if paired else np.arange(half)
    second = first + 1 if paired else first + half
    a, b, cos, sin = right[first].copy(), right[second].copy(), turns[:half], turns[half:]
    right[first], right[second] = a * cos - b * sin, a * sin + b * cos
    _rotate(x.ctypes.data, turns.ctypes.data, half, int(paired))
    assert np.abs(x - right).max() <= 2e-6
    assert np.array_equal(x[2 * half :], right[2 * half :].astype(np.float32))


def right_attention(
    q: Floats, k: Floats, v: Floats, seen: slice, scale: float, sink: float | None
) -> np.ndarray:
    keys, values = (each[seen].astype(np.float16).astype(np.float64) for each in (k, v))
    scores = keys @ q.astype(np.float64) * scale
    if sink is not None:
        scores = np.append(scores, sink)
    weights = np.exp(scores - scores.max())
    weights /= weights.sum()
    found: np.ndarray = weights[: len(keys)] @ values
    return found


@settings(max_examples=60)
@given(
    seed=st.integers(0, 99),
    count=st.integers(1, 150),
    many=st.integers(1, 19),
    width=st.sampled_from([16, 64, 80, 128]),
    sink=st.none() | st.floats(-3, 3),
    window=st.none() | st.integers(1, 80),
)
def test_attention_and_that_rows_do_not_meet(
    seed: int, count: int, many: int, width: int, sink: float | None, window: int | None
) -> None:
    """Keys and values are float16; beside that there is only float32's rounding, position by position."""
    k, v, q = normal(seed, count, width), normal(seed + 1, count, width), normal(seed + 2, many, width)
    cache = Cache(k, v)
    ends = [max(1, count - row) for row in range(many)]
    begins = [max(0, end - window) if window else 0 for end in ends]
    together = cache.attended(q, ends, width**-0.5, sink, begins)
    for row in range(many):
        right = right_attention(q[row], k, v, slice(begins[row], ends[row]), width**-0.5, sink)
        assert np.abs(together[row] - right).max() <= 5e-5
        one = slice(row, row + 1)
        alone = cache.attended(q[one], ends[one], width**-0.5, sink, begins[one])
        assert alone.tobytes() == together[one].tobytes()


def test_keys_that_float16_cannot_hold_do_not_become_infinite() -> None:
    cache = Cache(np.full((3, 16), 1e6, np.float32), np.full((3, 16), -1e6, np.float32))
    out = cache.attended(np.zeros((1, 16), np.float32), [3], 1.0)
    assert np.allclose(out, -65504)
