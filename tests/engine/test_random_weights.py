"""Random weights made in memory: those of the written directory, whole or in parts, and no byte more."""

import gc
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from exo_cli.engine import loading, random_weights
from exo_cli.engine import stage as stages
from exo_cli.engine.core import StageCore
from exo_cli.engine.random_weights import unpacked
from exo_cli.errors import BadData, DoesNotFit, ExoError
from exo_cli.models import random_values
from exo_cli.models.random_model import RandomModel
from tests.support import parity
from tests.support.chain import Chain
from tests.support.random_models import LAYERS, ROWS, small

MEMORY = 1 << 28


@pytest.fixture(autouse=True)
def _uncompiled() -> None:
    mx.disable_compile()


def run(model: RandomModel, cuts: Sequence[int]) -> tuple[list[int], list[mx.array]]:
    with unpacked(model) as (directory, origin):
        return parity.chain(loading.look(directory, origin=origin), cuts)


def load(
    model: RandomModel, layers: tuple[int, int] = (0, LAYERS), **options: Any
) -> tuple[StageCore[Any], dict[str, Any]]:
    settings = {"memory_bytes": MEMORY, "progress": lambda *_: None, "layers_in_model": LAYERS, **options}
    return stages.load("", layers=layers, random=model, **settings)


@pytest.mark.parametrize(
    ("family", "bits"),
    [*((family, 4) for family in sorted(ROWS)), ("gemma3", 32), ("kimi_k2", 32), ("llama", 3)],
)
def test_every_family_says_what_mlx_lm_says_over_the_written_directory(
    family: str, bits: int, tmp_path: Path
) -> None:
    # In float32, in which mlx-lm and `exact` compute alike.
    made = small(family, tmp_path, bits=bits, torch_dtype="float32")
    made.write(tmp_path / "written")
    expected = parity.unsplit(tmp_path / "written")
    assert parity.differences(expected, run(made, ())) is None
    with unpacked(made) as (directory, origin):
        allowed = loading.look(directory, origin=origin).anatomy.allowed
    assert allowed
    assert run(made, allowed)[0] == expected[0]
    # Natural: neither flat nor wild, and not one token for ever.
    last = expected[1][-1][0, -1]
    assert bool(mx.isfinite(last).all().item())
    assert 0.5 < mx.std(last).item() < 8  # type: ignore[operator]
    assert len(set(expected[0])) > 2


def test_another_seed_is_another_model(tmp_path: Path) -> None:
    one, two = (run(small("llama", tmp_path, seed=seed), ())[0] for seed in (1, 2))
    assert one != two


def test_an_engine_loads_it_like_any_other(tmp_path: Path) -> None:
    made = small("qwen3", tmp_path)
    made.write(tmp_path / "written")
    heard: list[tuple[str, int, int]] = []
    core, ready = load(made, (1, 4), progress=lambda *said: heard.append(said))
    _, from_files = stages.load(
        str(tmp_path / "written"),
        layers=(1, 4),
        layers_in_model=LAYERS,
        memory_bytes=MEMORY,
        progress=lambda *_: None,
    )
    assert (core.first, core.last) == (False, True)
    for figure in ("weights_bytes", "allowed_cuts", "shares_steps"):
        assert ready[figure] == from_files[figure]
    assert ready["weights_bytes"] + ready["base_bytes"] + ready["kv_budget_bytes"] <= MEMORY
    assert heard[:4] == [("make", done, 3) for done in range(4)]
    assert heard[-1] == ("warm-up", 1, 1)


def test_stages_answer_together(tmp_path: Path) -> None:
    made = small("qwen3_moe", tmp_path, torch_dtype="float32")
    made.write(tmp_path / "written")
    computes = [load(made, ends)[0].compute for ends in pairwise((0, 1, 3, 4))]
    chain = Chain(computes, budget=MEMORY)
    driven = chain.open(1, parity.PROMPT, 6)
    chain.run()
    expected, _ = parity.unsplit(tmp_path / "written")
    assert driven.tokens == expected[:6]


@pytest.mark.parametrize(
    ("options", "kind", "problem"),
    [
        ({"memory_bytes": 10_000}, DoesNotFit, "bytes for its weights alone"),
        ({"layers_in_model": 5}, BadData, "has 4 layers, not 5"),
        ({"layers": (0, 5)}, BadData, "0 to 5"),
    ],
)
def test_what_is_refused_is_refused_before_anything_is_made(
    options: dict[str, Any],
    kind: type[ExoError],
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(random_weights, "pieces")
    with pytest.raises(kind, match=problem):
        load(small("llama", tmp_path), **options)


def test_settings_that_mlx_lm_cannot_use_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"config\.json"):
        load(small("llama", tmp_path, rope_scaling={"rope_type": "llama3"}))


@pytest.mark.parametrize("bits", [4, 16])
def test_no_more_than_a_layer_is_in_memory_twice(bits: int, tmp_path: Path) -> None:
    # Layers of a megabyte and more, and many of them, so that one more is not lost in the noise.
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 12, "vocab_size": 1024}
    made = small("llama", tmp_path, bits=bits, **sizes)
    with unpacked(made) as (directory, origin):
        skeleton = loading.look(directory, origin=origin)
        gc.collect()
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        loaded = loading.load_stage(skeleton, 0, 12)
        peak = mx.get_peak_memory() - before
        a_layer = loaded.weights_bytes / 12
    assert loaded.weights_bytes <= mx.get_active_memory() - before < loaded.weights_bytes + a_layer / 4
    assert peak < loaded.weights_bytes + 1.6 * a_layer


def test_a_part_makes_its_own_tensors_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = small("mistral", tmp_path)
    asked: list[str] = []

    def watched(tensor: Any, seed: int) -> Any:
        asked.append(tensor.name)
        return random_values.pieces(tensor, seed)

    monkeypatch.setattr(random_weights, "pieces", watched)
    load(made, (1, 2))
    assert asked
    assert all(name.startswith("model.layers.1.") for name in asked)
    assert len(asked) == len(set(asked))
