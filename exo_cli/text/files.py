"""The small files of a model directory, read with bounds: regular files only, so large and no larger.

A file that is missing is None: only the caller knows whether it is needed. Knows nothing of what the
files say.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any, Final

from exo_cli.errors import BadData, InputOutput

MAX_JSON_BYTES: Final = 16 * 1024 * 1024


def read_bytes(path: Path, limit: int) -> bytes | None:
    """All of `path`; None if it is not there, BadData if it is too large or no regular file."""
    try:
        # Without O_NONBLOCK a pipe of that name would hold us for ever.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputOutput(f"{path} cannot be read: {error.strerror}") from error
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise BadData(f"{path} is not a regular file")
        if found.st_size > limit:
            raise BadData(f"{path} has {found.st_size} bytes; a file of this kind has at most {limit}")
        with open(handle, "rb", closefd=False) as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise InputOutput(f"{path} cannot be read: {error.strerror}") from error
    finally:
        os.close(handle)
    if len(data) > limit:
        raise BadData(f"{path} has more than {limit} bytes")
    return data


def read_text(path: Path, limit: int) -> str | None:
    data = read_bytes(path, limit)
    if data is None:
        return None
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise BadData(f"{path} is not UTF-8 text") from None
    # As Python's text files do: a template's line ends may not depend on who saved it.
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in `path`; None if the file is not there."""
    data = read_bytes(path, MAX_JSON_BYTES)
    if data is None:
        return None
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadData(f"{path} is not JSON: {_because(error)}") from error
    if not isinstance(value, dict):
        raise BadData(f"{path} holds no JSON object")
    return value


def _because(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8 text"
    text = str(error)
    return text[:1].lower() + text[1:]
