"""Weights where their file has them: mapped into memory, read when somebody looks at them, kept by nobody.

A layer of MLX gets an `OnDisk` beside its arrays, which are then never read, if these are a file's tensors as
they lie there. What its weights are asked for one by one is in its memory only once, and not for long. Knows
nothing of who takes them, nor of what they mean.
"""

import contextlib
import mmap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from exo_cli.engine.loading import Opened
from exo_cli.errors import BadData
from exo_cli.models.safetensors import TensorInfo

KINDS: Final = (nn.Linear, nn.Embedding, nn.QuantizedLinear, nn.QuantizedEmbedding)
NAMES: Final = ("weight", "scales", "biases")
STORED: Final[dict[str, type[np.generic]]] = {
    "U32": np.uint32,
    "F32": np.float32,
    "F16": np.uint16,
    "BF16": np.uint16,
}
"""As numpy has them; it knows no bfloat16, so numbers of 16 bits are their bits."""
AHEAD: Final = 8
"""So many layers of MLX before their turn, about a decoder layer, files are asked for."""
_ATTRIBUTE: Final = "on_disk"


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file; its numbers may begin at any byte."""

    numbers: NDArray[Any] = field(repr=False)
    dtype: str
    _mapping: mmap.mmap = field(repr=False)
    _info: TensorInfo

    def ask(self) -> None:
        """It will be read soon."""
        self._advise("MADV_WILLNEED")

    def leave(self) -> None:
        """It has been read; the file's pages no longer count as ours."""
        self._advise("MADV_DONTNEED")

    def _advise(self, name: str) -> None:
        advice = getattr(mmap, name, None)
        start = self._info.start - self._info.start % mmap.PAGESIZE
        if advice is not None and self._info.end > start:
            with contextlib.suppress(OSError):
                self._mapping.madvise(advice, start, self._info.end - start)


@dataclass(slots=True)
class OnDisk:
    """The tensors of a linear layer or an embedding, but for its bias."""

    path: str
    tensors: dict[str, Tensor]
    following: "OnDisk | None" = None

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def begin(self) -> None:
        """It is being read; what comes later is asked for."""
        if self.following is not None:
            for tensor in self.following.tensors.values():
                tensor.ask()

    def end(self) -> None:
        for tensor in self.tensors.values():
            tensor.leave()


def attach(opened: Opened) -> frozenset[str]:
    """Give its layers their `OnDisk` where they can have one; gives the weights that then need no reading."""
    found = list(_found(opened))
    for number, (module, one) in enumerate(found):
        one.following = found[number + AHEAD][1] if number + AHEAD < len(found) else None
        setattr(module, _ATTRIBUTE, one)
    return frozenset(f"{one.path}.{name}" for _, one in found for name in one.tensors)


def detach(opened: Opened) -> None:
    """From now on nobody finds them."""
    for module in opened.stage.model.modules():
        if _ATTRIBUTE in vars(module):
            delattr(module, _ATTRIBUTE)


def of(module: nn.Module) -> OnDisk | None:
    found = vars(module).get(_ATTRIBUTE)
    return found if isinstance(found, OnDisk) else None


def _found(opened: Opened) -> Iterator[tuple[nn.Module, OnDisk]]:
    mappings: dict[str, mmap.mmap | None] = {}
    place = opened.skeleton.directory.path
    for path, module in opened.stage.model.named_modules():
        names = [name for name in NAMES if name in module]
        infos = [opened.same.get(f"{path}.{name}") for name in names]
        if type(module) not in KINDS or getattr(module, "mode", "affine") != "affine" or not names:
            continue
        tensors = {}
        for name, info in zip(names, infos, strict=True):
            if info is None or info.dtype not in STORED or f"{path}.{name}" not in opened.mine:
                break
            if info.file not in mappings:
                mappings[info.file] = _mapped(place / info.file, opened.skeleton.directory.tensors.values())
            mapping = mappings[info.file]
            if mapping is None:
                break
            tensors[name] = _tensor(mapping, info)
        else:
            yield module, OnDisk(path, tensors)


def _mapped(file: Path, infos: Iterable[TensorInfo]) -> mmap.mmap | None:
    """The file in our memory, as far as it was touched; None where the system does not do that."""
    try:
        with file.open("rb") as opened:
            mapping = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):
        return None
    if len(mapping) < max(info.end for info in infos if info.file == file.name):
        raise BadData(f"{file.name} changed while the model was being loaded")
    return mapping


def _tensor(mapping: mmap.mmap, info: TensorInfo) -> Tensor:
    kind = STORED[info.dtype]
    count = info.nbytes // np.dtype(kind).itemsize
    numbers = np.frombuffer(mapping, kind, count, info.start).reshape(info.shape)
    return Tensor(numbers, info.dtype, mapping, info)
