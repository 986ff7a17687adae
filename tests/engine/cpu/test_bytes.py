"""A stage whose caches are bytes: near to the one of 16 bits, and the same however it is cut or grouped."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from exo_cli.engine.caches import Prefixes
from exo_cli.engine.cpu import recognise
from exo_cli.engine.cpu.compute import NativeCompute
from exo_cli.engine.loading import load_stage, look
from exo_cli.engine.scheduler import Row
from exo_cli.models.directory import ModelDirectory
from exo_cli.wire.frames import TensorData
from tests.support import parity
from tests.support.chain import Chain
from tests.support.tiny_models import Tiny

LAYERS = 4
TOKENS = [(37 * place + 5) % 96 for place in range(75)]
CHUNKS = (40, 1, 1, 7, 1, 1, 1, 23)
WIDE = (("head_dim", 32),)


def native(
    directory: Path, first: int = 0, last: int = LAYERS, *, threads: int = 2, bits: Literal[8, 16] = 8
) -> NativeCompute:
    stage = load_stage(look(ModelDirectory.open(directory)), first, last).stage
    made = replace(recognise.decoder(stage), kv_bits=bits)
    return NativeCompute(stage, made, Prefixes(1 << 24), threads=threads, vocabulary=96)


def through(computes: Sequence[NativeCompute], chunks: Sequence[int]) -> np.ndarray:
    """The logits after each chunk, through a chain."""
    held = [compute.request(len(TOKENS)) for compute in computes]
    found, at = [], 0
    for n in chunks:
        tensor: TensorData | None = None
        ids = TOKENS[at : at + n]
        for compute, mine in zip(computes[:-1], held, strict=False):
            tensor = compute.run([(mine, Row(1, at, n))], ids, tensor)
        found += computes[-1].logits([(held[-1], Row(1, at, n))], ids, tensor)
        at += n
    return np.array([np.array(each) for each in found])


def test_logits_are_near_to_those_over_16_bits(tiny: Tiny) -> None:
    """Random weights: a spread of 1, off by what a byte a key and a value costs in four layers."""
    directory = tiny("qwen3", overrides=WIDE)
    right = through([native(directory, bits=16)], CHUNKS)
    found = through([native(directory)], CHUNKS)
    assert not np.array_equal(found, right)
    assert np.abs(found - right).max() <= 0.05 * right.std()


def test_any_cut_chunking_and_number_of_threads_gives_the_same_bits(tiny: Tiny) -> None:
    directory = tiny("llama", bits=4, overrides=WIDE)
    whole = through([native(directory, threads=1)], CHUNKS)
    for cuts in ((2,), (1, 2, 3)):
        bounds = pairwise((0, *cuts, LAYERS))
        computes = [native(directory, *ends, threads=1 + number % 3) for number, ends in enumerate(bounds)]
        assert np.array_equal(through(computes, CHUNKS), whole)
    compute = native(directory, threads=3)
    for chunks in ((75,), (1,) * 75, (2, 3, 70), (74, 1)):
        assert np.array_equal(through([compute], chunks)[-1], whole[-1])


def test_batches_and_kept_prefixes_give_the_tokens_of_one_request_alone(tiny: Tiny) -> None:
    """Through the real cores; what is right is what one request alone says."""
    directory = tiny("llama", bits=4, overrides=WIDE)

    def answers(bounds: tuple[int, ...], *, together: bool) -> list[list[int]]:
        chain = Chain([native(directory, *ends) for ends in pairwise(bounds)], budget=1 << 30)
        seen = []
        for number, prompt in enumerate(parity.ASKED):
            seen.append(chain.open(number, prompt, parity.NEW, keep_prefix=True))
            if not together:
                chain.run()
        chain.run()
        again = chain.open(100, [*parity.ASKED[0], *seen[0].tokens, 3, 4], parity.NEW)
        chain.run()
        assert again.prefix == len(parity.ASKED[0]) + parity.NEW - 1
        return [each.tokens for each in (*seen, again)]

    expected = answers((0, LAYERS), together=False)
    assert all(len(tokens) == parity.NEW for tokens in expected)
    assert answers((0, LAYERS), together=True) == expected
    assert answers((0, 1, 3, LAYERS), together=True) == expected


@pytest.mark.parametrize("window", [8, 40])
def test_windows(window: int, tiny: Tiny) -> None:
    kinds = ["full_attention", "sliding_attention"] * 2
    overrides = (("layer_types", kinds), ("sliding_window", window), *WIDE)
    directory = tiny("llama", overrides=overrides)
    right = through([native(directory, bits=16)], CHUNKS)
    found = through([native(directory)], CHUNKS)
    assert np.abs(found - right).max() <= 0.05 * right.std()
    split = [native(directory, 0, 2), native(directory, 2, LAYERS)]
    assert np.array_equal(through(split, (75,))[-1], found[-1])
