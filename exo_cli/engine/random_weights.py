"""Random weights in place of a checkpoint's: made in memory, a layer at a time, where files would be read.

A tensor begins as nothing but a shape, as one does that will be read from a file; just before it is
computed its buffer is filled, a piece at a time, so that a stage never takes more than it will take in the
end, and one layer beside it. Knows nothing of which tensors a stage needs, nor of how numbers are drawn.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import mlx.core as mx
import numpy as np

from exo_cli.engine.loading import DTYPES
from exo_cli.errors import SystemFailure
from exo_cli.models.directory import ModelDirectory
from exo_cli.models.random_model import RandomModel
from exo_cli.models.random_values import STORED, pieces
from exo_cli.models.safetensors import TensorInfo

_BUFFERS = {np.uint8: mx.uint8, np.uint16: mx.uint16, np.uint32: mx.uint32}


class RandomOrigin:
    """Where the tensors of a random model come from."""

    def __init__(self, model: RandomModel) -> None:
        self._model = model
        self._empty: dict[str, mx.array] = {}

    def arrays(self, directory: ModelDirectory, needed: Iterable[TensorInfo]) -> dict[str, mx.array]:
        found = {}
        for info in needed:
            # Integers as wide: numpy, which fills them, has no bfloat16.
            # On the CPU, as what is read from files: numpy has to reach it.
            buffer = mx.zeros(info.shape, _BUFFERS[STORED[info.dtype]], stream=mx.cpu)
            self._empty[info.name] = buffer
            found[info.name] = buffer.view(DTYPES[info.dtype])
        return found

    def prepare(self, names: Iterable[str]) -> None:
        for name in sorted(names):
            buffer = self._empty.pop(name, None)
            if buffer is None:
                continue  # another weight is made of it as well
            mx.eval(buffer)
            # MLX lends its memory; what is written there is what the array holds.
            items = np.array(buffer, copy=False).reshape(-1)
            at = 0
            for piece in pieces(self._model.tensors[name], self._model.seed):
                items[at : at + piece.size] = piece
                at += piece.size


@contextmanager
def unpacked(model: RandomModel) -> Iterator[tuple[ModelDirectory, RandomOrigin]]:
    """A directory with the configuration alone, which mlx-lm wants to read, and the tensors' origin."""
    with ExitStack() as undo:
        try:
            path = Path(undo.enter_context(TemporaryDirectory(prefix="exo-random-")))
            (path / "config.json").write_bytes(model.config)
        except OSError as error:
            raise SystemFailure(
                f"no temporary directory can be made: {(error.strerror or str(error)).lower()}",
                hint="Free some space where TMPDIR points to.",
            ) from error
        yield model.directory(path), RandomOrigin(model)
