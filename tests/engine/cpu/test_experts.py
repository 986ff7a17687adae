"""Which experts a row goes to, the order in which they take their rows, and which mixtures are known."""

from typing import Any

import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.models.gpt_oss import SwigluOAI

from exo_cli.engine.cpu import experts, mixtures, recognise, start
from exo_cli.engine.cpu.expand import NotNative
from exo_cli.engine.cpu.jit import inner
from exo_cli.engine.cpu.layout import Floats
from exo_cli.engine.cpu.plan import Experts
from exo_cli.engine.loading import load_stage, look, open_stage
from exo_cli.models.directory import ModelDirectory
from tests.support.tiny_models import Tiny

CHOICE = np.dtype([("expert", np.int64), ("weight", np.float32), ("rest", np.float32)])


@inner
def _choose(routed: int, count: int, top: int, shares: int, chosen: int) -> None:
    experts.choose(routed, count, top, shares, chosen)


@inner
def _by_expert(chosen: int, items: int, count: int, ends: int, turns: int, order: int) -> int:
    used: int = experts.by_expert(chosen, items, count, ends, turns, order)
    return used


def chosen(scores: Floats, top: int, shares: bool = False) -> Any:
    out = np.zeros(top, CHOICE)
    _choose(scores.ctypes.data, len(scores), top, int(shares), out.ctypes.data)
    return out


@given(
    seed=st.integers(0, 99),
    count=st.integers(1, 70),
    top=st.integers(1, 70),
    shares=st.booleans(),
    steps=st.sampled_from([2, 1000]),
)
def test_the_best_are_chosen_and_weigh_what_softmax_says(
    seed: int, count: int, top: int, shares: bool, steps: int
) -> None:
    """Few steps make equals: of those the one that comes first."""
    top = min(top, count)
    numbers = np.round(np.random.default_rng(seed).normal(size=count) * steps) / steps * 4
    scores = numbers.astype(np.float32)
    found = chosen(scores, top, shares)
    right = np.argsort(-scores, kind="stable")[:top]
    assert np.array_equal(found["expert"], right)
    powers = np.exp(scores.astype(np.float64) - scores.max())
    weights = powers[right] / (powers.sum() if shares else powers[right].sum())
    assert (np.abs(found["weight"] - weights) <= 5e-6 * weights).all()


def test_what_is_not_a_number_chooses_experts_that_there_are() -> None:
    found = chosen(np.full(5, np.nan, np.float32), 3)
    assert ((found["expert"] >= 0) & (found["expert"] < 5)).all()


@given(seed=st.integers(0, 99), rows=st.integers(1, 40), count=st.integers(2, 20), top=st.integers(1, 4))
def test_rows_of_one_expert_lie_together_and_in_their_order(
    seed: int, rows: int, count: int, top: int
) -> None:
    chance, top = np.random.default_rng(seed), min(top, count)
    choices = np.zeros(rows * top, CHOICE)
    choices["expert"] = np.concatenate([chance.permutation(count)[:top] for _ in range(rows)])
    ends, turns = np.zeros(count + 1, np.int64), np.zeros((count, 3), np.int64)
    order = np.zeros(rows * top, np.int64)
    places = (each.ctypes.data for each in (ends, turns, order))
    used = _by_expert(choices.ctypes.data, rows * top, count, *places)
    assert np.array_equal(order, np.argsort(choices["expert"], kind="stable"))
    assert [turn[0] for turn in turns[:used]] == sorted(set(choices["expert"]))
    for expert, begin, end in turns[:used]:
        assert (choices["expert"][order[begin:end]] == expert).all()
    assert sum(end - begin for _, begin, end in turns[:used]) == rows * top


@pytest.mark.parametrize("mode", ["affine", "mxfp4"])
def test_a_router_that_lies_in_a_file_is_read(mode: str, tiny: Tiny) -> None:
    directory = tiny("qwen3_moe", bits=4, mode=mode)
    skeleton = look(ModelDirectory.open(directory))
    straight, *_ = start.native(open_stage(skeleton, 0, 2), 96, "", lambda *_: None)
    stage = load_stage(skeleton, 0, 2).stage
    for ours, theirs in zip(straight.decoder.layers, recognise.decoder(stage).layers, strict=True):
        assert isinstance(ours.mlp, Experts)
        assert isinstance(theirs.mlp, Experts)
        assert ours.mlp.router.tiles.any()
        assert np.array_equal(ours.mlp.router.tiles, theirs.mlp.router.tiles)
        assert np.array_equal(ours.mlp.each[3].down.tiles, theirs.mlp.each[3].down.tiles)


def mlp(family: str, tiny: Tiny) -> Any:
    return load_stage(look(ModelDirectory.open(tiny(family))), 0, 1).stage.model.layers[0]["mlp"]


def test_a_mixture_is_found_by_its_parts(tiny: Tiny) -> None:
    found = mixtures.mixture_of(mlp("gpt_oss", tiny), "gpt_oss")
    assert found is not None
    assert (found.count, found.top, found.shares, found.clamped) == (4, 2, False, True)
    assert mixtures.mixture_of(mlp("llama", tiny), "llama") is None


def test_weights_that_are_not_made_1_in_all_are_noticed(tiny: Tiny) -> None:
    one = mlp("qwen3_moe", tiny)
    for normed in (True, False):
        one.norm_topk_prob = normed
        found = mixtures.mixture_of(one, "qwen3_moe")
        assert found is not None
        assert found.shares is not normed


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda one: setattr(one, "shared", nn.Linear(4, 4)), "other parts"),
        (lambda one: setattr(one.experts, "activation", SwigluOAI(limit=5.0)), "another function"),
        (lambda one: setattr(one.experts, "activation", nn.GELU()), "another function"),
        (lambda one: setattr(one, "num_experts_per_tok", 5), "5 of 4"),
    ],
)
def test_a_mixture_that_differs_is_refused(change: Any, why: str, tiny: Tiny) -> None:
    one = mlp("gpt_oss", tiny)
    change(one)
    with pytest.raises(NotNative, match=why):
        mixtures.mixture_of(one, "gpt_oss")
