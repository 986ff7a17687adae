"""Attention over bytes: what is kept, what it comes to against float64, and that rows do not meet."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exo_cli.engine.cpu import pack8
from exo_cli.engine.cpu.layout import Floats
from tests.support.kernels import Cache

GROUP = pack8.GROUP


def normal(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def tops(x: Floats) -> np.ndarray:
    """By number, the largest one of its group."""
    groups = np.abs(x.astype(np.float64)).reshape(len(x), -1, GROUP).max(axis=2)
    return np.repeat(groups, GROUP, axis=1)


def right_attention(
    q: Floats, keys: np.ndarray, values: np.ndarray, scale: float, sink: float | None
) -> np.ndarray:
    scores = keys @ q.astype(np.float64) * scale
    if sink is not None:
        scores = np.append(scores, sink)
    weights = np.exp(scores - scores.max())
    weights /= weights.sum()
    found: np.ndarray = weights[: len(keys)] @ values
    return found


@given(
    seed=st.integers(0, 99),
    count=st.integers(1, 70),
    width=st.sampled_from([32, 64, 96, 128]),
    spread=st.floats(-8, 8),
)
def test_every_number_is_kept_to_half_a_step_of_its_group(
    seed: int, count: int, width: int, spread: float
) -> None:
    """A step is a 255th from a group's lowest to its highest number, both kept to 8 bits of their own."""
    k, v = (normal(seed + each, count, width) * np.float32(np.exp(spread)) for each in (0, 1))
    k[0, :GROUP] = 0
    v += np.float32(np.exp(spread) * 10)
    for kept, given_ in zip(Cache(k, v, bits=8).meant(), (k, v), strict=True):
        groups = given_.astype(np.float64).reshape(count, -1, GROUP)
        spans = np.ptp(groups, axis=2) + np.abs(groups.min(axis=2)) * 2**-7
        steps = np.repeat(spans / 255, GROUP, axis=1)
        assert (np.abs(kept[:count] - given_) <= steps / 2 * (1 + 2**-7) + 1e-6 * tops(given_)).all()
        assert not kept[count:].any()


@settings(max_examples=60)
@given(
    seed=st.integers(0, 99),
    count=st.integers(1, 150),
    many=st.integers(1, 19),
    width=st.sampled_from([32, 64, 96, 128]),
    sink=st.none() | st.floats(-3, 3),
    window=st.none() | st.integers(1, 80),
)
def test_attention_over_bytes_and_that_rows_do_not_meet(
    seed: int, count: int, many: int, width: int, sink: float | None, window: int | None
) -> None:
    """Beside what the cache itself loses, a score loses a 32512th of the query's largest numbers."""
    k, v, q = normal(seed, count, width), normal(seed + 1, count, width), normal(seed + 2, many, width)
    cache = Cache(k, v, bits=8)
    keys, values = cache.meant()
    ends = [max(1, count - row) for row in range(many)]
    begins = [max(0, end - window) if window else 0 for end in ends]
    scale = width**-0.5
    together = cache.attended(q, ends, scale, sink, begins)
    for row in range(many):
        seen = slice(begins[row], ends[row])
        right = right_attention(q[row], keys[seen], values[seen], scale, sink)
        lost = scale * (np.abs(keys[seen]) @ (tops(q[row : row + 1])[0] / 32512)).max()
        most = np.abs(values[seen]).max()
        assert np.abs(together[row] - right).max() <= 2 * lost * most + 5e-5
        one = slice(row, row + 1)
        alone = cache.attended(q[one], ends[one], scale, sink, begins[one])
        assert alone.tobytes() == together[one].tobytes()


@pytest.mark.parametrize("width", [64, 128])
def test_what_bytes_cost_beside_the_numbers_themselves(width: int) -> None:
    """The whole error over 500 positions of normal numbers; outputs are some 0.1 large."""
    k, v, q = normal(1, 500, width), normal(2, 500, width), normal(3, 8, width)
    found = Cache(k, v, bits=8).attended(q, [500] * 8, width**-0.5)
    for row in range(8):
        wide = k.astype(np.float64), v.astype(np.float64)
        right = right_attention(q[row], *wide, width**-0.5, None)
        assert np.abs(found[row] - right).max() <= 0.004


def test_numbers_that_are_none_do_not_spread() -> None:
    """What a step gone wrong leaves in the cache stays finite, as in the cache of 16 bits."""
    k = np.full((3, 32), np.inf, np.float32)
    k[1], k[2] = np.nan, 1e-38
    keys, values = Cache(k, -k, bits=8).meant()
    assert np.isfinite(keys).all()
    assert np.isfinite(values).all()
    assert not keys[1].any()
