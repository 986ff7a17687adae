"""Where things lie, and what was set where.

A setting is taken from the first of: the flag, EXO_* in the environment, ./exo.toml,
$XDG_CONFIG_HOME/exo/config.toml, the default. Flags and the environment are read by Typer; this
module reads the two files and knows nothing of which options exist (`commands.config` checks them).
"""

import os
from dataclasses import dataclass
from pathlib import Path

from exo_cli.errors import Misconfigured

PROJECT_FILE = Path("exo.toml")
Value = str | int | float | bool | list[str]


def _base(variable: str, *default: str) -> Path:
    set_to = os.environ.get(variable, "")
    # The XDG specification: a relative path is invalid and is to be ignored.
    if set_to.startswith("/"):
        return Path(set_to)
    try:
        return Path.home().joinpath(*default)
    except RuntimeError as error:
        raise Misconfigured("this user has no home directory", hint=f"Set HOME or {variable}.") from error


def config_dir() -> Path:
    return _base("XDG_CONFIG_HOME", ".config") / "exo"


def state_dir() -> Path:
    return _base("XDG_STATE_HOME", ".local", "state") / "exo"


def cache_dir() -> Path:
    return _base("XDG_CACHE_HOME", ".cache") / "exo"


def topology_path() -> Path:
    return state_dir() / "topology.json"


def cluster_key_path() -> Path:
    return config_dir() / "cluster.key"


def local_key_path() -> Path:
    return config_dir() / "local.key"


def nodes_dir() -> Path:
    """One directory a node of this machine: its identity, under a lock."""
    return state_dir() / "nodes"


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """One file's settings, table by table: () is the top level, ("key", "new") is [key.new]."""

    path: Path
    tables: dict[tuple[str, ...], dict[str, Value]]

    def place(self, table: tuple[str, ...], name: str) -> str:
        """Where a setting stands, as a person finds it: `./exo.toml: [discover] for`."""
        header = f"[{'.'.join(table)}] " if table else ""
        return f"{shown(self.path)}: {header}{name}"


def read_file(path: Path) -> ConfigFile | None:
    """The file's settings, or None where there is no such file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise Misconfigured(
            f"cannot read {shown(path)}: {_reason(error)}", hint="Mend or remove the file."
        ) from error
    import tomllib  # 5 ms that a start without a file need not pay

    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Misconfigured(
            f"{shown(path)} is not valid TOML: {error}", hint="Mend the line it names or remove the file."
        ) from error
    file = ConfigFile(path, {})
    _take_table(file, (), document)
    return file


def read_files() -> list[ConfigFile]:
    """The files that exist, the strongest first."""
    found = (read_file(path) for path in (PROJECT_FILE, config_dir() / "config.toml"))
    return [file for file in found if file is not None]


def shown(path: Path) -> str:
    """A path as the user would type it; a relative one keeps its `./`."""
    return str(path) if path.is_absolute() else f"./{path}"


def _take_table(file: ConfigFile, table: tuple[str, ...], content: dict[str, object]) -> None:
    for key, value in content.items():
        name = key.replace("_", "-")
        if isinstance(value, dict):
            _take_table(file, (*table, name), value)
        elif isinstance(value, str | int | float | bool) or (
            isinstance(value, list) and all(isinstance(item, str) for item in value)
        ):
            file.tables.setdefault(table, {})[name] = value
        else:
            raise Misconfigured(
                f"{file.place(table, name)} must be a string, a number, true, false or a list of strings",
                hint="exo config show lists the settings and their values.",
            )
    if table:
        file.tables.setdefault(table, {})


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else "it is not UTF-8 text"
