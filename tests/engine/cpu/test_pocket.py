"""The embedded model, trained and 4-bit: our kernels against `exact` over the same tokens."""

import json
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import exo_cli
from exo_cli.engine.caches import Prefixes
from exo_cli.engine.compute import MlxCompute, Request
from exo_cli.engine.cpu import recognise
from exo_cli.engine.cpu.compute import NativeCompute
from exo_cli.engine.loading import load_stage, look
from exo_cli.engine.scheduler import Row
from exo_cli.models.directory import ModelDirectory
from exo_cli.text.chat import Language

POCKET = Path(exo_cli.__file__).parent / "models" / "pocket"
QUESTIONS = Path(__file__).parents[2] / "models" / "pocket_questions.jsonl"
ASKED = 12
ANSWER = 24
BOUND = 0.25
"""Logits are off by no more where the model knows what it says; nearer choices may fall either way."""


@pytest.mark.process
def test_the_same_choices_and_the_same_perplexity() -> None:
    """With caches of 16 bits and of 8."""
    mx.disable_compile()
    skeleton = look(ModelDirectory.open(POCKET))
    layers = skeleton.anatomy.n_layers
    exact = MlxCompute(load_stage(skeleton, 0, layers).stage, (), Prefixes(0), shares=True)
    stage = load_stage(skeleton, 0, layers).stage
    whole = recognise.decoder(stage)
    each = [NativeCompute(stage, made, Prefixes(0), threads=2) for made in (whole, replace(whole, kv_bits=8))]
    language = Language.load(POCKET)
    right: list[np.ndarray] = []
    found: tuple[list[np.ndarray], ...] = ([], [])
    said: list[int] = []
    for line in QUESTIONS.read_text(encoding="utf-8").splitlines()[:ASKED]:
        question = json.loads(line)["question"]
        ids = list(language.chat([{"role": "user", "content": question}]).ids)
        ours = [fast.request(len(ids) + ANSWER) for fast in each]
        theirs = Request(exact.stage.make_caches())
        for at in range(len(ids) + ANSWER - 1):
            row = Row(1, at, 1)
            right.append(np.array(exact.logits([(theirs, row)], [ids[at]], None)[0], np.float64))
            for fast, held, made in zip(each, ours, found, strict=True):
                made.append(np.array(fast.logits([(held, row)], [ids[at]], None)[0], np.float64))
            if at + 1 == len(ids):
                ids.append(int(right[-1].argmax()))
            said.append(ids[at + 1])
    a = np.array(right)
    ordered = np.sort(a, axis=1)
    clear = ordered[:, -1] - ordered[:, -2] > 2 * BOUND
    assert clear.mean() > 0.6
    for logits in found:
        b = np.array(logits)
        agreed = a.argmax(axis=1) == b.argmax(axis=1)
        assert agreed[clear].mean() >= 0.99
        assert abs(_perplexity(b, said) / _perplexity(a, said) - 1) <= 0.005


def _perplexity(logits: np.ndarray, said: list[int]) -> float:
    logs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    return float(np.exp(-logs[np.arange(len(said)), said].mean()))
