"""Model directories written by hand, byte by byte, without a tensor library."""

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CONFIG: dict[str, Any] = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2}


def write_model(
    directory: Path,
    *,
    files: Mapping[str, Sequence[str]],
    config: Mapping[str, Any] | None = None,
    index: bool = False,
) -> Path:
    """A directory whose tensors, of four bytes each, lie in the files that are named."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({**CONFIG, **(config or {})}))
    for file, tensors in files.items():
        (directory / file).write_bytes(safetensors(tensors))
    if index:
        found = {tensor: file for file, tensors in files.items() for tensor in tensors}
        write_index(directory, found)
    return directory


def write_index(directory: Path, weight_map: Mapping[str, Any]) -> None:
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def safetensors(tensors: Sequence[str]) -> bytes:
    header = {
        name: {"dtype": "F32", "shape": [1], "data_offsets": [4 * n, 4 * n + 4]}
        for n, name in enumerate(tensors)
    }
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(4 * len(tensors))
