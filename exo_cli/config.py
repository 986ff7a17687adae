"""Where things lie, and what was set where.

A setting is taken from the first of: the flag, EXO_* in the environment, ./exo.toml,
$XDG_CONFIG_HOME/exo/config.toml, the default. Flags and the environment are read by Typer; this
module reads the two files and knows nothing of which options exist (`cli` checks the names).
"""

import os
from dataclasses import dataclass
from pathlib import Path

from exo_cli.errors import Misconfigured

Value = str | int | float | bool | list[str]


def _base(variable: str, *default: str) -> Path:
    set_to = os.environ.get(variable, "")
    # The XDG specification: a relative path is invalid and is to be ignored.
    return Path(set_to) if set_to.startswith("/") else Path.home().joinpath(*default)


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
    """One file's settings: `common` for every verb, `verbs` for one."""

    path: Path
    common: dict[str, Value]
    verbs: dict[str, dict[str, Value]]


def read_file(path: Path) -> ConfigFile | None:
    """The file's settings, or None where there is no such file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise Misconfigured(f"cannot read {path}: {_reason(error)}", hint="Mend or remove the file.") from error
    import tomllib  # 5 ms that a start without a file need not pay

    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Misconfigured(f"{path} is not valid TOML: {error}", hint="Mend the line it names.") from error
    common: dict[str, Value] = {}
    verbs: dict[str, dict[str, Value]] = {}
    for name, value in document.items():
        if isinstance(value, dict):
            verbs[name] = {key.replace("_", "-"): _value(path, f"{name}.{key}", inner) for key, inner in value.items()}
        else:
            common[name.replace("_", "-")] = _value(path, name, value)
    return ConfigFile(path, common, verbs)


def read_files() -> list[ConfigFile]:
    """The files that exist, the strongest first."""
    found = (read_file(path) for path in (Path("exo.toml"), config_dir() / "config.toml"))
    return [file for file in found if file is not None]


def _value(path: Path, name: str, value: object) -> Value:
    if isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value
    raise Misconfigured(
        f"{path}: '{name}' must be a string, a number, true, false or a list of strings",
        hint="exo config show lists the settings.",
    )


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else "it is not UTF-8 text"
