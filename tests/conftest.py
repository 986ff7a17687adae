"""Every test runs with a home of its own and without the caller's settings; and a fixture for tiny models."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.support.tiny_models import Tiny

# A test never measures time: a busy machine is no failure.
settings.register_profile("exo", deadline=None)
settings.load_profile("exo")

_KEPT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "USER", "LOGNAME", "VIRTUAL_ENV", "CI")


@pytest.fixture(autouse=True)
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty HOME, no EXO_*, HF_*, XDG_*, proxy or terminal settings; returns the home."""
    home = tmp_path / "home"
    home.mkdir()
    for name in list(os.environ):
        if name not in _KEPT and not name.startswith(("PYTEST", "COV")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    # Nobody is there: no test asks the real hub.
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    # What MLX computes, so that tokens can be compared with mlx-lm's and no home compiles kernels of its own.
    # Tests of the default leave this out.
    monkeypatch.setenv("EXO_NUMERICS", "exact")
    return home


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> "Tiny":
    """`tiny(family, bits=4)`: such a model's directory, built once. MLX's compiler is off: it starts g++."""
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
