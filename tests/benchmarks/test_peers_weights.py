"""Directories with random weights: the same each time, and the same weights in every format."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import load_model

from benchmarks.peers import places, shapes, weights
from exo_cli.models.directory import ModelDirectory
from exo_cli.models.geometry import geometry

TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 256,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}


@pytest.fixture(autouse=True)
def _places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "geometries").mkdir()
    (tmp_path / "geometries" / "tiny.json").write_text(json.dumps(TINY))
    monkeypatch.setattr(shapes, "GEOMETRIES", tmp_path / "geometries")
    monkeypatch.setenv("EXO_PEERS_CACHE", str(tmp_path / "cache"))


def test_every_tensor_of_the_geometry_is_there_and_mlx_lm_loads_it() -> None:
    directory = weights.original("tiny")
    model = ModelDirectory.open(directory)
    assert sum(mx.prod(mx.array(each.shape)).item() for each in model.tensors.values()) == (
        geometry(TINY).total_parameters
    )
    loaded, _ = load_model(directory)
    logits = loaded(mx.array([[1, 2, 3]]))
    assert bool(mx.all(mx.isfinite(logits)).item())


def test_every_format_has_the_same_weights() -> None:
    directory = weights.original("tiny")
    name = "model.layers.1.mlp.down_proj"
    original = _load(directory)[f"{name}.weight"].astype(mx.float32)
    for bits, bound in ((4, 0.12), (8, 0.008)):
        packed = _load(weights.quantized(directory, bits))
        weight, scales, biases = (packed[f"{name}.{part}"] for part in ("weight", "scales", "biases"))
        again = mx.dequantize(weight, scales, biases, group_size=64, bits=bits).astype(mx.float32)
        error = mx.linalg.norm(again - original) / mx.linalg.norm(original)
        assert float(np.array(error)) < bound
        assert scales.dtype == mx.float16


def test_the_same_name_has_the_same_values_in_files_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _load(weights.original("tiny"))
    monkeypatch.setenv("EXO_PEERS_CACHE", str(tmp_path / "another"))
    monkeypatch.setattr(weights, "SHARD_BYTES", 64 << 10)
    directory = weights.original("tiny")
    assert len(list(directory.glob("*.safetensors"))) > 2
    second = _load(directory)
    assert first.keys() == second.keys()
    assert all(mx.array_equal(first[name], second[name]) for name in first)


def test_what_is_there_is_not_made_again() -> None:
    directory = weights.original("tiny")
    before = (directory / "config.json").stat().st_mtime_ns
    assert weights.original("tiny") == directory
    assert (directory / "config.json").stat().st_mtime_ns == before


def test_another_geometry_under_the_same_name_is_not_taken_for_it() -> None:
    weights.original("tiny")
    (shapes.GEOMETRIES / "tiny.json").write_text(json.dumps({**TINY, "num_hidden_layers": 3}))
    with pytest.raises(SystemExit, match="another geometry"):
        weights.original("tiny")


def test_an_unfinished_directory_is_begun_anew() -> None:
    unfinished = places.fresh(places.models() / "tiny-bf16")
    (unfinished / "model-00009.safetensors").write_bytes(b"half of it")
    assert not list(weights.original("tiny").glob("model-00009*"))


def test_a_name_that_nobody_knows() -> None:
    with pytest.raises(SystemExit, match="no geometry is called nothing"):
        weights.original("nothing")


def _load(directory: Path) -> dict[str, mx.array]:
    found: dict[str, mx.array] = {}
    for path in sorted(directory.glob("*.safetensors")):
        held = mx.load(str(path))
        assert isinstance(held, dict)
        found |= held
    return found
