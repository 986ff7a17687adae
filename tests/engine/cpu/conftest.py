"""The kernels of all tests are compiled once and kept beside pytest's own cache."""

import os
from pathlib import Path

_SHARED = Path(__file__).parents[3] / ".pytest_cache" / "kernels"


def _share() -> None:
    """Where compiled kernels lie is decided when they are imported, and every test has a home of its own."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(_SHARED)
    try:
        import exo_cli.engine.cpu.jit  # noqa: F401
    finally:
        if before is None:
            del os.environ["XDG_CACHE_HOME"]
        else:
            os.environ["XDG_CACHE_HOME"] = before


_share()
