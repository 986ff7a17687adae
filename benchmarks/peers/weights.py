"""Random weights at a real model's geometry, and directories as mlx-lm writes them, one tensor at a time.

The bfloat16 directory is the original: every format of every side is made from it. Knows nothing of GGUF
and of who runs what.
"""

import json
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import mlx.core as mx
import numpy as np

from benchmarks.peers import places
from benchmarks.peers.shapes import config_of
from exo_cli.models.directory import ModelDirectory
from exo_cli.models.geometry import geometry

GROUP: Final = 64
SHARD_BYTES: Final = 1 << 30
_DTYPES: Final = {"BF16": mx.bfloat16, "F16": mx.float16, "F32": mx.float32}


def original(name: str) -> Path:
    """The bfloat16 directory of a geometry, made if it is not there."""
    config = config_of(name)
    directory = places.models() / f"{name}-bf16"
    if not _is_of(directory, config):
        tensors = ((key, array.astype(mx.bfloat16)) for key, array in _random(config))
        write(directory, tensors, {**config, "torch_dtype": "bfloat16"})
    return directory


def quantized(source: Path, bits: int) -> Path:
    """The same weights in MLX's affine format, made if they are not there; scales are 16 bits wide."""
    stem = source.name.rpartition("-")[0]
    directory = source.with_name(f"{stem}-affine{bits}")
    model = ModelDirectory.open(source)
    config = {**model.config, "quantization": {"group_size": GROUP, "bits": bits}, "torch_dtype": "float16"}
    if not _is_of(directory, config):
        write(directory, _quantized(model, bits), config)
    return directory


def write(directory: Path, tensors: Iterator[tuple[str, mx.array]], config: dict[str, Any]) -> None:
    """An mlx-lm directory in files of bounded size; complete or not there at all."""
    unfinished = places.fresh(directory)
    index: dict[str, str] = {}
    held: dict[str, mx.array] = {}
    size, total, number = 0, 0, 0

    def flush() -> None:
        nonlocal size, number
        number += 1
        file = f"model-{number:05}.safetensors"
        mx.save_safetensors(str(unfinished / file), held, metadata={"format": "mlx"})
        index.update(dict.fromkeys(held, file))
        held.clear()
        size = 0

    for name, array in tensors:
        mx.eval(array)
        held[name] = array
        size, total = size + array.nbytes, total + array.nbytes
        if size >= SHARD_BYTES:
            flush()
    if held:
        flush()
    listing = {"metadata": {"total_size": total}, "weight_map": index}
    (unfinished / "model.safetensors.index.json").write_text(json.dumps(listing), encoding="utf-8")
    (unfinished / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    unfinished.rename(directory)


def _is_of(directory: Path, config: dict[str, Any]) -> bool:
    """Whether the directory is complete and was made from this geometry."""
    if not (directory / "config.json").exists():
        return False
    found = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    if {**found, "torch_dtype": None} == {**config, "torch_dtype": None}:
        return True
    raise SystemExit(f"{directory} was made from another geometry; remove it to have it made anew")


def _random(config: dict[str, Any]) -> Iterator[tuple[str, mx.array]]:
    """Of natural size, so that nothing overflows or becomes a denormal number on the way."""
    for name, weight in geometry(config).weights():
        full = name if name.startswith("lm_head") else f"model.{name}"
        if not weight.is_matrix:
            yield full, mx.ones(weight.shape, mx.float32)
            continue
        # The same values for the same name, whatever was made before it.
        chance = np.random.default_rng(zlib.crc32(name.encode()))
        values = chance.standard_normal(weight.shape, dtype=np.float32)
        values *= np.float32(weight.shape[-1] ** -0.5)
        yield full, mx.array(values)


def _quantized(model: ModelDirectory, bits: int) -> Iterator[tuple[str, mx.array]]:
    for name, read in tensors(model):
        array = read().astype(mx.float32)
        if array.ndim == 1:
            yield name, array.astype(mx.float16)
            continue
        stem = name.removesuffix(".weight")
        weight, scales, biases = mx.quantize(array, group_size=GROUP, bits=bits)
        yield name, weight
        yield f"{stem}.scales", scales.astype(mx.float16)
        yield f"{stem}.biases", biases.astype(mx.float16)


def tensors(model: ModelDirectory) -> Iterator[tuple[str, Callable[[], mx.array]]]:
    """Every tensor of a directory that is not quantized, read when it is asked for."""
    for name, info in model.tensors.items():

        def read(name: str = name, file: str = info.file) -> mx.array:
            held = mx.load(str(model.path / file))
            assert isinstance(held, dict)
            return held[name]

        if info.dtype not in _DTYPES:
            raise SystemExit(f"{name} in {model.path} is {info.dtype}; the original has to be a float type")
        yield name, read


def main() -> None:
    """`python -m benchmarks.peers.weights (GEOMETRY | --from DIRECTORY) BITS ...`: what is not there yet."""
    words = sys.argv[1:]
    source = Path(words.pop(1)) if words[0] == "--from" else original(words[0])
    for bits in map(int, words[1:]):
        if bits < 16:
            quantized(source, bits)


if __name__ == "__main__":
    main()
