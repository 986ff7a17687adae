"""Tiny models of many families with random weights, written as directories the way mlx-lm does.

One set of settings that most families understand, and what each family wants beside it. Nothing is
downloaded. Builds a directory once per (family, format) and pytest run.
"""

import importlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.utils
from mlx.utils import tree_flatten, tree_unflatten

from tests.support.tiny_families import COMMON, FAMILIES

Tiny = Callable[..., Path]


def config(family: str) -> dict[str, Any]:
    """A tiny config.json of a family."""
    return {**COMMON, **FAMILIES.get(family, {}), "model_type": family}


def build(
    family: str,
    directory: Path,
    *,
    bits: int | None = None,
    mode: str = "affine",
    group_size: int = 32,
    files: int = 1,
    dtype: mx.Dtype = mx.float32,
    overrides: Iterable[tuple[str, Any]] = (),
    seed: int = 7,
) -> Path:
    """Writes a model directory and gives its path."""
    settings = {**config(family), **dict(overrides)}
    module = importlib.import_module(f"mlx_lm.models.{family}")
    # What vectors are made as may be random too: biases of linears are.
    mx.random.seed(seed)
    model = module.Model(module.ModelArgs.from_dict(settings))
    weights = []
    for number, (path, array) in enumerate(tree_flatten(model.parameters())):
        weights.append((path, _random(array, mx.random.key(seed * 100_003 + number), dtype)))
    model.update(tree_unflatten(weights))
    if bits is not None:
        model, settings = mlx_lm.utils.quantize_model(model, settings, group_size, bits, mode=mode)
    save(dict(tree_flatten(model.parameters())), settings, directory, files=files)
    return directory


def save(
    weights: Mapping[str, mx.array], settings: Mapping[str, Any], directory: Path, *, files: int = 1
) -> None:
    """config.json, the weights in as many files as asked for, and their index."""
    directory.mkdir(parents=True, exist_ok=True)
    names = sorted(weights)
    index = {}
    for number in range(files):
        part = names[number * len(names) // files : (number + 1) * len(names) // files]
        file = "model.safetensors" if files == 1 else f"model-{number + 1:05d}-of-{files:05d}.safetensors"
        mx.save_safetensors(str(directory / file), {name: weights[name] for name in part}, {"format": "mlx"})
        index.update(dict.fromkeys(part, file))
    (directory / "config.json").write_text(json.dumps(settings, indent=1))
    if files > 1:
        total = sum(array.nbytes for array in weights.values())
        document = {"metadata": {"total_size": total}, "weight_map": index}
        (directory / "model.safetensors.index.json").write_text(json.dumps(document))


def _random(array: mx.array, key: mx.array, dtype: mx.Dtype) -> mx.array:
    """Matrices like a trained model's in size; vectors near what they were made as."""
    if not mx.issubdtype(array.dtype, mx.floating):
        return array
    if array.ndim >= 2:
        scale = array.shape[-1] ** -0.5
        made = mx.random.normal(array.shape, key=key) * scale
    else:
        made = array + 0.05 * mx.random.normal(array.shape, key=key)
    cast: mx.array = made.astype(dtype)
    return cast


def reference(directory: Path) -> nn.Module:
    """mlx-lm's own model, whole."""
    model, _ = mlx_lm.utils.load_model(directory)
    return model
