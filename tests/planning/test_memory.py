"""The accounting against what engines really load: each stage's weights and caches, byte for byte."""

import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from exo_cli.engine import caches, loading
from exo_cli.engine.compute import MlxCompute
from exo_cli.engine.stage import warm
from exo_cli.errors import BadData
from exo_cli.models.directory import ModelDirectory
from exo_cli.models.families import FAMILIES
from exo_cli.planning.packing import packing
from exo_cli.planning.problem import needed_bytes
from exo_cli.planning.work import KV_STEP, Work, work_of, work_of_sizes
from tests.planning.clusters import GB, cluster, place, problem, work
from tests.support import tiny_models
from tests.support.tiny_models import Tiny

# Written as families of other names by their publishers; their tensors are the same.
LOADED = sorted(set(FAMILIES) - {"kimi_k2", "mistral"})
WIDE: list[tuple[str, Any]] = [("hidden_size", 128), ("intermediate_size", 192)]


def planned(directory: Path) -> Work:
    return work_of(ModelDirectory.open(directory).config)


def same_bytes(directory: Path) -> None:
    """Every stage between allowed cuts weighs what was planned."""
    skeleton = loading.look(ModelDirectory.open(directory))
    found = planned(directory)
    bounds = [0, *skeleton.anatomy.allowed, skeleton.anatomy.n_layers]
    for first, last in pairwise(bounds):
        loaded = loading.load_stage(skeleton, first, last)
        assert found.stage_weights_bytes(first, last) == loaded.weights_bytes, (first, last)
    whole = loading.load_stage(skeleton, 0, skeleton.anatomy.n_layers)
    assert found.weights_bytes == whole.weights_bytes


def published(directory: Path, to: Path) -> Path:
    """Gemma 3 as it is published: without a head, which is the embedding; mlx-lm's fresh one has both."""
    config = ModelDirectory.open(directory).config
    if not str(config["model_type"]).startswith("gemma3"):
        return directory
    arrays = mx.load(str(directory / "model.safetensors"))
    assert isinstance(arrays, dict)
    tiny_models.save({name: each for name, each in arrays.items() if "lm_head" not in name}, config, to)
    return to


@pytest.mark.parametrize("family", LOADED)
def test_plain_weights(family: str, tiny: Tiny, tmp_path: Path) -> None:
    same_bytes(published(tiny(family), tmp_path / "m"))


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "deepseek_v3", "gemma3", "gpt_oss", "qwen3_next"])
@pytest.mark.parametrize(("bits", "group"), [(4, 64), (8, 32)])
def test_packed_weights(family: str, bits: int, group: int, tiny: Tiny, tmp_path: Path) -> None:
    overrides = tuple(WIDE if family == "llama" else ())
    made = tiny(family, bits=bits, group_size=group, dtype=mx.bfloat16, overrides=overrides)
    same_bytes(published(made, tmp_path / "m"))


def test_weights_with_scales_of_a_byte(tiny: Tiny) -> None:
    same_bytes(tiny("qwen3_moe", bits=4, mode="mxfp4", group_size=32, dtype=mx.bfloat16))


@pytest.mark.parametrize("family", LOADED)
@pytest.mark.parametrize("tokens", [1, 300, 2000])
def test_caches(family: str, tokens: int, tiny: Tiny) -> None:
    directory = tiny(family)
    skeleton = loading.look(ModelDirectory.open(directory))
    loaded = loading.load_stage(skeleton, 0, skeleton.anatomy.n_layers)
    compute: MlxCompute = warm(loaded)[0]
    found = planned(directory).stage_kv_bytes(0, skeleton.anatomy.n_layers, tokens)
    assert found == compute.kv_bytes(tokens)
    assert caches.STEP == KV_STEP


def test_tied_embeddings_lie_on_both_ends(tiny: Tiny) -> None:
    found = planned(tiny("llama", overrides=(("tie_word_embeddings", True),)))
    assert found.tied
    apart = found.stage_weights_bytes(0, 2) + found.stage_weights_bytes(2, 4)
    assert apart - found.weights_bytes == found.embedding.weights_bytes


def test_what_a_config_says_of_its_packing() -> None:
    assert packing({}, item_bytes=4).format == "float32"
    assert packing({}, item_bytes=2).format == "bfloat16"
    assert packing({}, repository="org/Name-8B-4bit", item_bytes=4).format == "affine4"
    assert packing({}, repository="org/Name-48bits", item_bytes=4).scheme is None
    experts = packing({}, repository="org/gpt-oss-20b-MXFP4-Q8", item_bytes=4)
    assert experts.format == "mxfp4"
    block = {
        "bits": 4,
        "group_size": 64,
        "model.layers.1.mlp.gate": {"bits": 8, "group_size": 32},
        "a": False,
    }
    found = packing({"quantization": block}, item_bytes=4)
    assert found.paths["layers.1.mlp.gate"] == dataclasses.replace(found.scheme, bits=8, group=32)  # type: ignore[type-var]
    assert found.paths["a"] is None


@pytest.mark.parametrize(
    "block", [{"bits": 4, "mode": "new"}, {"bits": 7}, {"bits": 4, "group_size": 48}, {}]
)
def test_a_packing_that_is_not_known(block: dict[str, Any]) -> None:
    with pytest.raises(BadData, match="how the model is quantized is not known here"):
        packing({"quantization": {**block, "x": 1}}, item_bytes=4)


def test_a_model_of_which_only_sizes_are_known() -> None:
    sizes = work_of_sizes((10, 20, 30), first=5, last=7, kv_bytes_per_token=64, width=8, longest=4096)
    assert [sizes.stage_weights_bytes(*each) for each in ((0, 1), (1, 2), (1, 3), (0, 3))] == [15, 20, 57, 72]
    assert sizes.stage_kv_bytes(0, 3, 1) == 3 * KV_STEP * 64
    assert sizes.cuts == (0, 1, 2, 3)


def test_the_items_of_an_account() -> None:
    made = problem(work(4, 1.0, ends=0.5, kv=1000), cluster(place("a", 10)), context=1000)
    memory = made.memory(0, 1, 4, 3)
    assert memory.weights_bytes == int(3.5 * GB)
    assert memory.kv_bytes == 3 * 3 * 1024 * 1000 * 4
    assert memory.base_bytes == made.cluster.places[0].base_bytes
    assert memory.limit_bytes == 10 * GB
    assert needed_bytes(memory) > memory.weights_bytes + memory.kv_bytes + memory.base_bytes


def test_accounting_of_the_engines_that_were_measured() -> None:
    """benchmarks/results/memory.json, within 3 %: Llama-3.2-1B's geometry, five stages."""
    import json

    measured = json.loads(Path("benchmarks/results/memory.json").read_text())
    config = {
        "model_type": "llama",
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "intermediate_size": 8192,
        "vocab_size": 128_256,
        "tie_word_embeddings": True,
        "quantization": {"group_size": 64, "bits": 4},
    }
    made = problem(work_of(config), cluster(place("a", 10, backend="cpu")), context=256)
    for row in measured["results"]:
        first, last = row["layers"]
        memory = made.memory(0, first, last, 1)
        assert memory.weights_bytes == row["own_tensors_bytes"]
        told = needed_bytes(memory) - memory.kv_bytes
        assert told == pytest.approx(row["resident_after_answer_bytes"], rel=0.03)


@pytest.mark.parametrize(("family", "units", "latent"), [("llama", 2, False), ("deepseek_v3", 4, True)])
def test_into_how_many_parts_heads_can_be_shared(family: str, units: int, latent: bool) -> None:
    found = work_of(tiny_models.config(family))
    assert (found.units, found.latent) == (units, latent)
    assert found.layers[0].attention_flop > 0
