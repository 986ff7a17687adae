"""Choosing tokens: mlx-lm's definitions, chance from (seed, position), rows that do not meet."""

import math
from collections import Counter

import mlx.core as mx
import mlx_lm.sample_utils as theirs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from exo_cli.engine.sampling import choose, choose_each, counter_key, filtered, penalised
from exo_cli.schemas.sampling import Sampling

VOCABULARY = 40


@pytest.fixture(autouse=True)
def _no_compiler() -> None:
    mx.disable_compile()


def logits(seed: int, spread: float = 2.0) -> mx.array:
    made: mx.array = mx.random.normal((VOCABULARY,), key=mx.random.key(seed)) * spread
    return made


def normal(row: mx.array) -> mx.array:
    made: mx.array = row - mx.logsumexp(row)
    return made


def kept(row: mx.array) -> set[int]:
    found = row.tolist()
    assert isinstance(found, list)
    return {token for token, value in enumerate(found) if isinstance(value, float) and value > -math.inf}


SEEDS = st.integers(0, 2**20)


@given(SEEDS, st.floats(0.01, 0.999))
def test_top_p_keeps_what_mlx_lm_keeps(seed: int, top_p: float) -> None:
    row = normal(logits(seed))
    assert kept(filtered(row, Sampling(top_p=top_p))) == kept(theirs.apply_top_p(row[None], top_p)[0])


@given(SEEDS, st.floats(0.001, 1.0))
def test_min_p_keeps_what_mlx_lm_keeps(seed: int, min_p: float) -> None:
    row = normal(logits(seed))
    assert kept(filtered(row, Sampling(min_p=min_p))) == kept(theirs.apply_min_p(row[None], min_p)[0])


@given(SEEDS, st.integers(1, VOCABULARY - 1))
def test_top_k_keeps_what_mlx_lm_keeps(seed: int, top_k: int) -> None:
    row = normal(logits(seed))
    mine = kept(filtered(row, Sampling(top_k=top_k)))
    assert len(mine) == top_k
    assert mine == kept(theirs.apply_top_k(row[None], top_k)[0])


@given(SEEDS, st.floats(0.3, 0.95), st.floats(0.01, 0.2), st.integers(1, 20))
def test_filters_come_in_mlx_lms_order(seed: int, top_p: float, min_p: float, top_k: int) -> None:
    row = normal(logits(seed))
    expected = theirs.apply_top_k(theirs.apply_min_p(theirs.apply_top_p(row[None], top_p), min_p), top_k)[0]
    assert kept(filtered(row, Sampling(top_p=top_p, min_p=min_p, top_k=top_k))) == kept(expected)


def test_filters_that_are_off_change_nothing() -> None:
    row = normal(logits(1))
    for sampling in (Sampling(), Sampling(top_p=0.0), Sampling(top_k=VOCABULARY), Sampling(top_k=10**6)):
        assert mx.array_equal(filtered(row, sampling), row)


@given(
    SEEDS,
    st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=30),
    st.floats(0.5, 2.0),
    st.floats(-2.0, 2.0),
    st.floats(-2.0, 2.0),
    st.integers(1, 25),
    st.dictionaries(st.integers(0, VOCABULARY - 1), st.floats(-5, 5), max_size=4),
)
def test_penalties_are_mlx_lms(
    seed: int,
    ids: list[int],
    repetition: float,
    presence: float,
    frequency: float,
    window: int,
    bias: dict[int, float],
) -> None:
    sampling = Sampling(
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
        penalty_window=window,
        logit_bias=tuple(bias.items()),
    )
    expected = logits(seed)[None]
    for processor in theirs.make_logits_processors(
        bias or None, repetition, window, presence, window, frequency, window
    ):
        expected = processor(mx.array(ids), expected)
    assert mx.allclose(penalised(logits(seed), sampling, ids), expected[0], atol=1e-5)


def test_a_window_of_nothing_looks_back_over_everything() -> None:
    ids = [3, *range(10, 35), 5]
    short = penalised(logits(0), Sampling(presence_penalty=1.0, penalty_window=2), ids)
    whole = penalised(logits(0), Sampling(presence_penalty=1.0), ids)
    assert short[3].item() == logits(0)[3].item()
    assert whole[3].item() == pytest.approx(logits(0)[3].item() - 1)


def test_ids_that_the_model_does_not_have_are_nothing() -> None:
    sampling = Sampling(presence_penalty=1.0, logit_bias=((VOCABULARY + 7, 9.0), (-1, 9.0)))
    assert mx.array_equal(penalised(logits(0), sampling, [VOCABULARY, -1]), logits(0))


def test_greedy_takes_the_likeliest_and_its_probability() -> None:
    row = logits(4)
    found = choose(row, Sampling(), [], position=0)
    assert found.id == mx.argmax(row).item()
    assert found.logprob == pytest.approx(mx.max(normal(row)).item())
    assert choose(row, Sampling(temperature=1e-9, seed=3), [], position=5).id == found.id


def test_bias_and_penalties_move_the_greedy_choice() -> None:
    row = logits(4)
    best = choose(row, Sampling(), [], position=0).id
    assert choose(row, Sampling(logit_bias=((7, 100.0),)), [], position=0).id == 7
    assert choose(row, Sampling(frequency_penalty=50.0), [best], position=0).id != best
    assert choose(row, Sampling(frequency_penalty=50.0), [], position=0).id == best


def test_the_likeliest_are_told_best_first() -> None:
    row = logits(4)
    found = choose(row, Sampling(temperature=1.0, logprobs=5), [], position=0)
    values = normal(row).tolist()
    assert isinstance(values, list)
    best = sorted(range(VOCABULARY), key=lambda token: -float(str(values[token])))[:5]
    assert [token for token, _ in found.top] == best
    assert [value for _, value in found.top] == pytest.approx([float(str(values[token])) for token in best])
    assert len(choose(row, Sampling(logprobs=999), [], position=0).top) == VOCABULARY


def test_chance_follows_the_probabilities() -> None:
    row = mx.array([0.0, 1.0, 2.0, -math.inf])
    sampling = Sampling(temperature=2.0, seed=11)
    n = 2500
    drawn = choose_each([row] * n, [sampling] * n, [[]] * n, range(n))
    counts = Counter(each.id for each in drawn)
    weights = [math.exp(value / 2) for value in (0.0, 1.0, 2.0)]
    for token, weight in enumerate(weights):
        assert counts[token] / n == pytest.approx(weight / sum(weights), abs=0.04)
    assert counts[3] == 0


def test_only_what_the_filters_keep_is_drawn() -> None:
    row = logits(9)
    sampling = Sampling(temperature=3.0, top_k=3, seed=1)
    may = kept(filtered(normal(row), sampling))
    assert {choose(row, sampling, [], position=n).id for n in range(60)} <= may


def test_the_same_seed_and_position_draw_the_same_token_whatever_was_drawn_before() -> None:
    row, sampling = logits(9, 0.5), Sampling(temperature=1.0, seed=5)
    first = [choose(row, sampling, [], position=n).id for n in range(40)]
    mx.random.seed(99)
    mx.eval(mx.random.normal((3,)))
    again = [choose(row, sampling, [], position=n).id for n in reversed(range(40))]
    assert first == again[::-1]
    other = [choose(row, replace(sampling, seed=6), [], position=n).id for n in range(40)]
    assert first != other
    assert len(set(first)) > 5


def test_keys_differ_by_seed_and_by_position() -> None:
    keys = [counter_key(seed, position) for seed in (0, 1, 2**64 - 1) for position in (0, 1, 2**31 - 1)]
    assert len({str(key.tolist()) for key in keys}) == 9
    # seed + 1 at one position is not the seed at the next one
    assert counter_key(1, 0).tolist() != counter_key(0, 1).tolist()
    # what a replay on another machine depends on
    assert counter_key(7, 42).tolist() == counter_key(7 + 2**64, 42).tolist()


@st.composite
def samplings(draw: st.DrawFn) -> Sampling:
    return Sampling(
        temperature=draw(st.sampled_from([0.0, 0.5, 1.3])),
        top_p=draw(st.sampled_from([1.0, 0.8])),
        top_k=draw(st.sampled_from([0, 5])),
        min_p=draw(st.sampled_from([0.0, 0.05])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.2])),
        presence_penalty=draw(st.sampled_from([0.0, 0.7])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.7])),
        penalty_window=draw(st.sampled_from([0, 3])),
        logit_bias=draw(st.sampled_from([(), ((3, 4.0),)])),
        seed=draw(st.integers(0, 2**64 - 1)),
        logprobs=draw(st.sampled_from([0, 2])),
    )


@given(st.lists(st.tuples(samplings(), SEEDS, st.integers(0, 1000)), min_size=2, max_size=6))
def test_a_row_gives_the_same_token_alone_as_among_others(rows: list[tuple[Sampling, int, int]]) -> None:
    batch = mx.stack([logits(seed) for _, seed, _ in rows])
    ids = [[seed % VOCABULARY, 3, 3, 8, 1] for _, seed, _ in rows]
    together = choose_each(list(batch), [row[0] for row in rows], ids, [row[2] for row in rows])
    alone = [
        choose(logits(seed), sampling, seen, position=position)
        for (sampling, seed, position), seen in zip(rows, ids, strict=True)
    ]
    assert together == alone


def test_logits_that_are_no_numbers_show() -> None:
    assert math.isnan(choose(mx.full((8,), math.nan), Sampling(), [], position=0).logprob)


def test_half_precision_logits_are_taken_as_they_are() -> None:
    row = logits(3).astype(mx.bfloat16)
    found = choose(row, Sampling(), [], position=0)
    assert found.id == mx.argmax(row).item()
    assert found.logprob == pytest.approx(mx.max(normal(row.astype(mx.float32))).item(), rel=1e-5)
