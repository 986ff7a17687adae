"""A model with random weights, written as a directory in mlx-lm's layout.

A piece of a tensor is in memory at a time. config.json comes last: without it nobody takes what is there
for a model. Knows nothing of how numbers are drawn.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from exo_cli import atomic
from exo_cli.errors import CannotCreate
from exo_cli.models.random_values import pieces

if TYPE_CHECKING:
    from exo_cli.models.random_model import RandomModel

_INDEX = "model.safetensors.index.json"


def write(model: "RandomModel", directory: Path) -> None:
    """Write it to a directory that is new or empty; what was begun and failed is removed."""
    table = model.directory(directory)
    written: list[Path] = []
    path = directory
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise CannotCreate(f"{directory} is not empty", hint="Name a directory that is new or empty.")
        for header in table.files:
            path = directory / header.file
            written.append(path)
            with path.open("xb") as out:
                out.write(model.headers[header.file])
                for info in header.tensors:
                    for items in pieces(model.tensors[info.name], model.seed):
                        items.tofile(out)
        weights = {info.name: info.file for info in table.tensors.values()}
        document = {
            "metadata": {"total_size": table.weights_bytes},
            "weight_map": dict(sorted(weights.items())),
        }
        path = directory / _INDEX
        written.append(path)
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        path = directory / "config.json"
        written.append(path)
        path.write_bytes(model.config)
    except BaseException as error:
        for each in written:
            each.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise atomic.cannot_write(path, error) from error
        raise
