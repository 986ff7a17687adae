"""Caches of 8 bits, in the engine: as mlx-lm has them and in our kernels, counted as planned, or refused."""

import asyncio
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import QuantizedKVCache

from exo_cli.engine import stage as stages
from exo_cli.engine.caches import parts
from exo_cli.engine.compute import MlxCompute
from exo_cli.engine.core import Open
from exo_cli.engine.cpu import jit
from exo_cli.engine.scheduler import Row
from exo_cli.errors import BadData, Exit
from exo_cli.models.directory import ModelDirectory
from exo_cli.planning.work import work_of
from exo_cli.schemas.sampling import Sampling
from exo_cli.trust.keyring import KeyringSource
from tests.support import parity
from tests.support.cluster import loaded, shards
from tests.support.tiny_models import Tiny

LAYERS = 4
TOKENS = [(37 * place + 5) % 96 for place in range(45)]
WIDE = (("head_dim", 64),)


def load(directory: Path, **options: Any) -> tuple[MlxCompute, dict[str, Any]]:
    settings = {"memory_bytes": 1 << 30, "progress": lambda *_: None, "kv_bits": 8, **options}
    core, ready = stages.load(str(directory), layers=(0, LAYERS), layers_in_model=LAYERS, **settings)
    assert isinstance(core.compute, MlxCompute)
    return core.compute, ready


def asked(prompt: list[int], limit: int) -> Open:
    """A request of so many positions in all."""
    return Open(1, 0, tuple(prompt), Sampling(), limit - len(prompt))


def logits(compute: MlxCompute, *chunks: int) -> np.ndarray:
    """What is said after each chunk of one request."""
    held, _ = compute.begin(asked(TOKENS, len(TOKENS)))
    found, at = [], 0
    for n in chunks:
        found += compute.logits([(held, Row(1, at, n))], TOKENS[at : at + n], None)
        at += n
    return np.array(mx.stack(found))


@pytest.mark.parametrize("numerics", ["exact", "fast"])
def test_they_take_what_is_planned_and_cost_little(numerics: str, tiny: Tiny) -> None:
    directory = tiny("qwen3", overrides=WIDE)
    compute, ready = load(directory, numerics=numerics)
    assert ready["numerics"] == numerics
    work = work_of(ModelDirectory.open(directory).config).with_kv_bits(8)
    for tokens in (1, 256, 300):
        assert compute.kv_bytes(tokens) == work.stage_kv_bytes(0, LAYERS, tokens)
    right = logits(load(directory, kv_bits=None)[0], 20, 1, 24)
    found = logits(compute, 20, 1, 24)
    assert not np.array_equal(found, right)
    assert np.abs(found - right).max() <= 0.05 * right.std()


@pytest.mark.parametrize("numerics", ["exact", "fast"])
def test_what_is_allocated_is_what_is_promised(numerics: str, tiny: Tiny) -> None:
    compute = load(tiny("qwen3", overrides=WIDE), numerics=numerics)[0]
    held, _ = compute.begin(asked(TOKENS, 320))
    for at in range(0, 320, 64):
        compute.logits([(held, Row(1, at, 64))], [1 + at % 7] * 64, None)
    assert sum(cache.nbytes for cache in parts(held.caches)) == compute.kv_bytes(320)


def test_mlx_lms_own_caches_are_cut_and_kept_as_prefixes(tiny: Tiny) -> None:
    compute, _ = load(tiny("qwen3", overrides=WIDE))
    held, start = compute.begin(asked(TOKENS, len(TOKENS)))
    assert start == 0
    assert {type(cache) for cache in held.caches} == {QuantizedKVCache}
    compute.logits([(held, Row(1, 0, 30))], TOKENS[:30], None)
    compute.end(held, TOKENS[:30])
    again, start = compute.begin(asked([*TOKENS[:20], 1, 2], 60))
    assert start == 20
    [last] = compute.logits([(again, Row(2, 20, 2))], [1, 2], None)
    fresh, _ = compute.begin(asked([*TOKENS[:20], 1, 2], 60))
    compute.logits([(fresh, Row(3, 0, 20))], TOKENS[:20], None)
    [right] = compute.logits([(fresh, Row(3, 20, 2))], [1, 2], None)
    assert np.array_equal(np.array(last), np.array(right))


@pytest.mark.parametrize("numerics", ["exact", "fast"])
@pytest.mark.parametrize(
    ("family", "overrides", "why"),
    [
        ("gemma3_text", (), "RotatingKVCache"),
        ("deepseek_v3", (), ""),
        ("qwen3", (("head_dim", 48),), "divisible"),
    ],
)
def test_a_model_that_cannot_have_them_is_refused_with_the_reason(
    family: str, overrides: Any, why: str, numerics: str, tiny: Tiny
) -> None:
    with pytest.raises(BadData, match=f"8-bit caches are not for this model: .*{why}") as caught:
        load(tiny(family, overrides=overrides), numerics=numerics)
    assert caught.value.exit == Exit.BAD_DATA
    assert "--kv-bits" in str(caught.value.hint)


@pytest.mark.process
@pytest.mark.parametrize("numerics", ["exact", "fast"])
def test_a_plan_that_says_so_gets_them_on_every_stage(
    numerics: str, tiny: Tiny, clean_environment: Path
) -> None:
    """Through real engines: the same tokens in one stage and in two."""
    directory = tiny("qwen3", overrides=WIDE)
    # Each engine would compile the kernels again.
    kernels = clean_environment / ".cache" / "exo"
    kernels.mkdir(parents=True)
    (kernels / "kernels").symlink_to(jit.DIRECTORY.parent)
    source = KeyringSource()

    async def main() -> None:
        with shards(clean_environment, "a", "b") as nodes:
            said = []
            for bounds in ((0, LAYERS), (0, 1, LAYERS)):
                over = nodes[: len(bounds) - 1]
                settings: dict[str, Any] = {"numerics": numerics, "kv_bits": 8}
                async with loaded(source, directory, bounds, over, **settings) as chain:
                    said.append([await chain.tokens(prompt, 8) for prompt in parity.ASKED])
            assert said[0] == said[1]

    asyncio.run(main())
