"""The families that the installed mlx-lm has modules for, and which of them run on this machine.

Only mlx_lm's own modules are imported, never a model's. Knows nothing of weights.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from contextlib import redirect_stdout
from functools import lru_cache
from io import StringIO
from typing import Any, Final

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.models

from exo_cli.engine.lean import utilities
from exo_cli.errors import BadData
from exo_cli.models.safetensors import shown

_MLX_LM: Final = utilities()

METAL_ONLY: Final = frozenset({"bitnet", "muse_spark"})
"""Families with kernels that are written for Metal."""

NOT_ON_CPU: Final = {"phi3small": "MLX's CPU build damages its own memory when it runs this family"}

_HELPERS: Final = {
    "base",
    "cache",
    "pipeline",
    "switch_layers",
    "rope_utils",
    "activations",
    "mla",
    "ssm",
} | {
    "gated_delta",
    "bitlinear_layers",
}


def families() -> tuple[str, ...]:
    """The model types that the installed mlx-lm has a module for."""
    found = (module.name for module in pkgutil.iter_modules(mlx_lm.models.__path__))
    return tuple(sorted(set(found) - _HELPERS))


def refused_families() -> dict[str, str]:
    """Which of mlx-lm's families do not run on this machine, and why."""
    found = dict.fromkeys(METAL_ONLY, "its kernels are written for Metal")
    if mx.metal.is_available():
        found = {}
    return found | (NOT_ON_CPU if mx.default_device() == mx.Device(mx.cpu, 0) else {})


def check_kernels(model_type: str) -> None:
    if model_type in METAL_ONLY and not mx.metal.is_available():
        raise BadData(f"{model_type} runs on Macs alone: its kernels are written for Metal")


def check_backend(model_type: str) -> None:
    reason = NOT_ON_CPU.get(model_type)
    if reason is not None and mx.default_device() == mx.Device(mx.cpu, 0):
        raise BadData(f"{model_type} does not run on this machine's CPU: {reason}")


def classes(config: Mapping[str, Any]) -> tuple[type[nn.Module], Any]:
    """The family's Model and ModelArgs; only out of modules that mlx-lm brought along."""
    name = module_name(config)
    try:
        with redirect_stdout(StringIO()):
            module = importlib.import_module(f"mlx_lm.models.{name}")
    except SystemExit as error:
        raise BadData(
            f"mlx-lm's module for {name} needs a package that is not installed",
            hint="Run another family; exo does not install packages for models.",
        ) from error
    except ImportError as error:
        raise BadData(f"mlx-lm's module for {name} cannot be imported: {error}"[:300]) from error
    return module.Model, module.ModelArgs


def module_name(config: Mapping[str, Any]) -> str:
    model_type = str(config["model_type"])
    architectures = config.get("architectures") or ()
    if isinstance(architectures, str):
        architectures = (architectures,)
    for architecture in architectures:
        special = _MLX_LM.MODEL_ARCHITECTURE_REMAPPING.get((model_type, architecture))
        if special is not None:
            return str(special)
    name = str(_MLX_LM.MODEL_REMAPPING.get(model_type, model_type))
    if name not in _known():
        raise BadData(
            f"this exo has no architecture called {shown(model_type)}",
            hint="Update exo, or choose a model of another family.",
        )
    return name


@lru_cache(maxsize=1)
def _known() -> frozenset[str]:
    return frozenset(families())
