"""The greedy choice: the same token as everywhere, and its logarithm."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo_cli.engine.cpu.likeliest import likeliest
from exo_cli.engine.sampling import choose, is_likeliest
from exo_cli.schemas.sampling import Sampling


@given(count=st.integers(1, 200), spread=st.floats(-3, 5), seed=st.integers(0, 99))
def test_it_is_what_the_sampler_chooses(count: int, spread: float, seed: int) -> None:
    logits = (np.random.default_rng(seed).normal(size=count) * np.exp(spread)).astype(np.float32)
    expected = choose(mx.array(logits), Sampling(), [], position=0)
    token, logprob = likeliest(logits)
    assert token == int(logits.argmax()) == expected.id
    wide = logits.astype(np.float64)
    assert logprob == pytest.approx(wide.max() - np.logaddexp.reduce(wide), abs=1e-6, rel=1e-5)
    # The sampler subtracts numbers of the logits' size.
    assert logprob == pytest.approx(expected.logprob, abs=1e-5 + 1e-6 * float(np.abs(logits).max()))


@pytest.mark.parametrize("strange", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 17, 36])
def test_what_is_no_number_gives_no_number(strange: float, place: int) -> None:
    logits = np.zeros(37, np.float32)
    logits[place] = strange
    assert np.isnan(likeliest(logits)[1])


def test_the_first_of_equals_is_taken() -> None:
    logits = np.zeros(40, np.float32)
    logits[[5, 20, 39]] = 3
    assert likeliest(logits)[0] == 5


@pytest.mark.parametrize(
    "more", [{"temperature": 0.5}, {"logprobs": 2}, {"logit_bias": ((1, 2.0),)}, {"frequency_penalty": 0.1}]
)
def test_everything_else_is_left_to_the_sampler(more: dict[str, object]) -> None:
    assert is_likeliest(Sampling(seed=3, top_p=0.5))
    assert not is_likeliest(Sampling(**more))  # type: ignore[arg-type]
