"""Tiny model directories, built once a run and shared by the engine's tests."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.support.tiny_models import Tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> "Tiny":
    """`tiny(family, bits=4)`: the directory of such a model. MLX's compiler is off: it starts g++."""
    import mlx.core as mx

    from tests.support import tiny_models

    mx.disable_compile()
    root = tmp_path_factory.mktemp("models")
    built: dict[str, Path] = {}

    def build(family: str, **options: Any) -> Path:
        key = f"{family}-{sorted(options.items())}"
        if key not in built:
            built[key] = tiny_models.build(family, root / str(len(built)), **options)
        return built[key]

    return build
