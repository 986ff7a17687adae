"""Every test runs with a home of its own and without the caller's settings."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

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
    return home
