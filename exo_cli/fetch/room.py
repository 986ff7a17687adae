"""How much room there is where a model goes. Knows nothing of what a model is."""

import shutil
from pathlib import Path

from exo_cli import atomic
from exo_cli.errors import CannotCreate


def free_bytes(path: Path) -> int:
    """On the disk that a directory lies on, or will."""
    place = next(each for each in (path.absolute(), *path.absolute().parents) if each.is_dir())
    try:
        return shutil.disk_usage(place).free
    except OSError as error:
        raise atomic.cannot_write(path, error) from error


def check_space(path: Path, needed: int) -> None:
    free = free_bytes(path)
    if needed > free:
        raise CannotCreate(
            f"{path} has {free / 1e9:.2f} GB free and {needed / 1e9:.2f} GB are to be fetched",
            hint="Free some space there, or set XDG_CACHE_HOME to another place.",
        )
