"""mlx_lm without what a stage never uses: transformers and the hub's client cost half an engine's start.

mlx_lm's own `__init__` imports its generator and its tokenizers, and these transformers. Here the package
is known before that is run: its models are imported as ever, and whoever asks the package itself for
something else gets it, because then its `__init__` is run after all. A family that needs more than the
models therefore gets it, only more slowly. Knows nothing of models.
"""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final

PACKAGE: Final = "mlx_lm"
_UNUSED: Final = {f"{PACKAGE}.tokenizer_utils": ("TokenizerWrapper", "load")}
_HUB: Final = {"huggingface_hub": ("snapshot_download",)}
"""What mlx_lm.utils takes from elsewhere for things that a stage does not do."""


def install() -> None:
    """Make mlx_lm a package whose `__init__` waits until somebody needs it; imports nothing."""
    if PACKAGE in sys.modules:
        return
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.loader is None:
        return  # whoever imports it is told so
    loader = spec.loader
    package = importlib.util.module_from_spec(spec)

    def missing(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {PACKAGE!r} has no attribute {name!r}")
        del package.__dict__["__getattr__"]
        loader.exec_module(package)
        return getattr(package, name)

    package.__dict__["__getattr__"] = missing
    sys.modules[PACKAGE] = package


def utilities() -> ModuleType:
    """mlx_lm.utils; the functions that this module puts off import the real ones when they are called."""
    known = sys.modules.get(f"{PACKAGE}.utils")
    if known is not None:
        return known
    try:
        with _put_off({**_UNUSED, **_HUB}):
            return importlib.import_module(f"{PACKAGE}.utils")
    except (ImportError, AttributeError, TypeError):
        # Another mlx_lm may want more of them than is known here.
        return importlib.import_module(f"{PACKAGE}.utils")


@contextmanager
def _put_off(names: dict[str, tuple[str, ...]]) -> Iterator[None]:
    """While it lasts, modules that nobody has imported yet are small ones with functions of these names."""
    ours = {name: _small(name, functions) for name, functions in names.items() if name not in sys.modules}
    sys.modules.update(ours)
    try:
        yield
    finally:
        for name, module in ours.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
            package, _, last = name.rpartition(".")
            if package and getattr(sys.modules.get(package), "__dict__", {}).get(last) is module:
                delattr(sys.modules[package], last)


def _small(name: str, functions: tuple[str, ...]) -> ModuleType:
    module = ModuleType(name)
    for function in functions:
        setattr(module, function, _later(name, function))
    return module


def _later(module: str, function: str) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(module), function)(*args, **kwargs)

    return call
