"""Where the harness keeps what is made once: programs, environments, models. Nothing of it is in the tree.

`EXO_PEERS_CACHE` says another place. Knows nothing of what lies there.
"""

import os
import shutil
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).resolve().parents[2]
RESULTS: Final = REPOSITORY / "benchmarks" / "results"


def cache() -> Path:
    """The folder of everything that is kept between runs."""
    given = os.environ.get("EXO_PEERS_CACHE")
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "exo" / "peers"
    return Path(given).resolve() if given else usual


def models() -> Path:
    """Made models, a directory for each geometry, format and side."""
    return cache() / "models"


def home() -> Path:
    """The home of our own processes, kept so that a second run finds compiled kernels."""
    return cache() / "home"


def fresh(path: Path) -> Path:
    """An empty directory beside `path`, to be renamed to it when it is complete."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    return unfinished
