"""Where other programs of this user keep models: LM Studio, and folders that the user names.

LM Studio has publisher/model below its folder; EXO_MODELS names further folders, with a colon between
them, and models lie in these at any of the first three levels. Knows nothing of what is in a model.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from exo_cli.fetch.names import CONFIG

_LM_STUDIO: Final = (".lmstudio/models", ".cache/lm-studio/models")
_POINTER: Final = ".lmstudio-home-pointer"
_DEPTH: Final = 3
_MOST: Final = 2000


def folders() -> list[Path]:
    """The folders that are there."""
    found = [Path(each).expanduser() for each in os.environ.get("EXO_MODELS", "").split(":") if each]
    with suppress(RuntimeError):
        home = Path.home()
        with suppress(OSError, UnicodeDecodeError):
            # Where its user has moved it to.
            found.append(Path((home / _POINTER).read_text(encoding="utf-8").strip()) / "models")
        found += [home / each for each in _LM_STUDIO]
    return [path for path in dict.fromkeys(found) if path.is_absolute() and os.path.isdir(path)]


def models() -> list[Path]:
    """The directories below them that hold a config.json."""
    found: list[Path] = []
    for folder in folders():
        for path in _below(folder, _DEPTH):
            found.append(path)
            if len(found) >= _MOST:
                return found
    return found


def named(repository: str) -> Path | None:
    """The directory that stands for a repository of the hub: publisher/model."""
    return next((folder / repository for folder in folders() if _holds(folder / repository)), None)


def _below(folder: Path, depth: int) -> Iterator[Path]:
    if _holds(folder):
        yield folder
        return
    if depth == 0:
        return
    try:
        inside = sorted(each for each in folder.iterdir() if not each.name.startswith("."))
    except OSError:
        return
    for each in inside:
        if os.path.isdir(each):
            yield from _below(each, depth - 1)


def _holds(path: Path) -> bool:
    return os.path.exists(path / CONFIG)
