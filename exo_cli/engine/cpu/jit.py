"""How the kernels are compiled and kept: one directory for exactly these sources, this numba, this processor.

numba's own disk cache looks at the function that it compiles and not at what that calls, so the directory's
name is the hash of every source in this package. Import this before any kernel; it imports numba. Knows
nothing of what is computed.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import llvmlite
import numba
from numba import types
from numba.core import config
from numba.core.registry import cpu_target

from exo_cli.engine.cpu import features

HERE: Final = features.here()


def source_key() -> str:
    """The name of the cache: changes with any kernel's source, with numba, LLVM or the processor."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    digest.update(f"{numba.__version__}\0{llvmlite.__version__}\0{HERE.key}".encode())
    return digest.hexdigest()[:24]


def cache_root() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    return Path(base).expanduser() / "exo" / "kernels"


def _can_keep(directory: Path) -> bool:
    """Where nothing can be written, every start compiles anew."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(directory, os.W_OK)


DIRECTORY: Final = cache_root() / source_key()
KEPT: Final = _can_keep(DIRECTORY)
config.CACHE_DIR = str(DIRECTORY)


def is_compiled() -> bool:
    """Whether an earlier start has left compiled kernels; else the first step takes long."""
    return any(DIRECTORY.rglob("*.nbc"))


def ready() -> None:
    """What numba looks up before its first kernel, done now; compiles nothing."""
    cpu_target.typing_context.refresh()
    cpu_target.target_context.refresh()


def kernel(function: Any) -> Any:
    """A function compiled to native code, without the interpreter's lock, kept on disk."""
    return numba.njit(cache=KEPT, nogil=True, error_model="numpy", boundscheck=False)(function)


def inner(function: Any) -> Any:
    """A part of a kernel: compiled with whoever calls it, and kept with it."""
    return numba.njit(nogil=True, error_model="numpy", boundscheck=False)(function)


def apart(numbers: int) -> Callable[[Any], Any]:
    """A part that kernels call by its `.address`, with so many integers: compiled once, by itself."""
    signature = types.void(*([types.int64] * numbers))
    made: Callable[[Any], Any] = numba.cfunc(
        signature, cache=KEPT, nopython=True, error_model="numpy", boundscheck=False
    )
    return made
