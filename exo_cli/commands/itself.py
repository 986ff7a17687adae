"""The command line that this process was started with, as words that start it again from anywhere.

Knows nothing of any particular verb.
"""

import sys
from pathlib import Path
from typing import Any

import typer


def program() -> list[str]:
    """What starts exo, wherever one is."""
    started = Path(sys.argv[0])
    if started.name == "__main__.py":
        return [sys.executable, "-m", "exo_cli"]
    return [str(started.absolute())]


def given(context: typer.Context, *, but: str) -> list[str]:
    """The options that were given, by flag or by environment, without one; files are read again anyway."""
    words: list[str] = []
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name == but or source is None or source.name not in ("COMMANDLINE", "ENVIRONMENT"):
            continue
        words += _words(parameter, context.params[parameter.name or ""])
    return words


def _words(parameter: Any, value: Any) -> list[str]:
    flag = max(parameter.opts, key=len)
    if parameter.count:
        return [flag] * int(value)
    if parameter.is_flag:
        return [flag] if value else list(parameter.secondary_opts[:1])
    words = []
    for each in value if isinstance(value, list | tuple) else [value]:
        # Where the unit runs, a relative path would lead elsewhere.
        text = str(Path(each).absolute()) if parameter.type.name == "path" else str(each)
        words += [flag, text]
    return words
