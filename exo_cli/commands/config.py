"""`exo config show`, and the settings in exo.toml and config.toml checked against the options there are.

A file may set any option of any verb by its long name: at the top level for every verb that has it,
in [discover] for one verb, in [key.new] for a verb in a group. Knows nothing of reading files.
"""

import os
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from exo_cli import config as files_module
from exo_cli.commands.session import COMMON_NAMES, Session, verb
from exo_cli.commands.usage import did_you_mean, sentence
from exo_cli.config import ConfigFile, Value
from exo_cli.errors import ExoError, Misconfigured

if TYPE_CHECKING:
    from exo_cli.commands.tree import Parameter, Verb

# What lowers the guard is said by hand or in one's own file, not by whoever made the directory.
_OWN_HAND = frozenset({"insecure"})
_HINT = "exo config show lists the settings and their values."


class Given(NamedTuple):
    """A value that a file sets, and where it stands."""

    value: Value
    place: str


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Show what is set, and where.", no_args_is_help=True)

    @group.command("show")
    @verb
    def show(
        session: Session,
        origin: Annotated[bool, typer.Option("--origin", help="Say where each value comes from.")] = False,
    ) -> None:
        """Show every setting and its value.

        \b
        Examples:
          exo config show --origin
          exo config show --json

        A setting is taken from the first of: the flag, its EXO_ variable, ./exo.toml, the config.toml
        in $XDG_CONFIG_HOME/exo (~/.config/exo), the default. In a file an option has its long name:
        at the top for every verb that has it, under [discover] or [key.new] for one.
        """
        from exo_cli.commands.tree import tree

        files = files_module.read_files()
        settings = _settings(tree(typer.main.get_command(app)), files)
        output = session.output
        if output.json:
            from exo_cli.schemas.reference import Setting, Settings

            output.struct(Settings(settings=[Setting(**item) for item in settings]))
            return
        header = ("setting", "value", "origin") if origin else ("setting", "value")
        output.rows(
            header, [(item["name"], _text(item["value"]), item["origin"])[: len(header)] for item in settings]
        )
        if not files:
            place = files_module.config_dir() / "config.toml"
            output.hint(f"There is no settings file yet. ./exo.toml or {place} would be read.")

    app.add_typer(group, name="config")


def defaults(command: Any, files: list[ConfigFile]) -> dict[str, Any]:
    """What the files set, as Typer's default_map: verb by verb, checked."""
    from exo_cli.commands.tree import tree

    result: dict[str, Any] = {}
    for path, options in given(tree(command), files).items():
        table = result
        for word in path:
            table = table.setdefault(word, {})
        table.update({name: item.value for name, item in options.items() if path})
    return result


def given(root: "Verb", files: list[ConfigFile]) -> dict[tuple[str, ...], dict[str, Given]]:
    """What the files set for each verb, by its path and the option's name; () holds the top levels."""
    result: dict[tuple[str, ...], dict[str, Given]] = {leaf.path: {} for leaf in root.leaves()}
    result[()] = {}
    for file in reversed(files):
        for table in sorted(file.tables, key=len):
            scope = root.find(table)
            if scope is None:
                raise _unknown_table(root, file, table)
            for name, value in file.tables[table].items():
                if name in _OWN_HAND and file.path == files_module.PROJECT_FILE:
                    raise Misconfigured(
                        f"{file.place(table, name)} cannot be set by the directory one stands in",
                        hint=f"Give --{name}, or set it in {files_module.config_dir() / 'config.toml'}.",
                    )
                users = [(leaf.path, option) for leaf in scope.leaves() for option in _settable(leaf, name)]
                if not users:
                    raise _unknown_key(root, scope, file, table, name)
                for path, option in users if table else [((), users[0][1]), *users]:
                    place = file.place(table, name)
                    result[path][option.name] = Given(_checked(option, value, place), place)
    return result


def _settable(leaf: "Verb", name: str | None = None) -> "list[Parameter]":
    return [option for option in leaf.options if option.settable and name in (None, option.long)]


def _unknown_table(root: "Verb", file: ConfigFile, table: tuple[str, ...]) -> ExoError:
    known = [".".join(item.path) for item in root.all() if item.path]
    name = ".".join(table)
    return Misconfigured(
        f"{files_module.shown(file.path)}: [{name}] is not the name of a verb{did_you_mean(name, known)}",
        hint=_HINT,
    )


def _unknown_key(
    root: "Verb", scope: "Verb", file: ConfigFile, table: tuple[str, ...], name: str
) -> ExoError:
    if not table and root.find((name,)):
        return Misconfigured(
            f"{file.place(table, name)} must be a table", hint=f"Write [{name}] on its own line."
        )
    known = {option.long for leaf in scope.leaves() for option in _settable(leaf)}
    return Misconfigured(
        f"{file.place(table, name)} is not a setting{did_you_mean(name, sorted(known))}", hint=_HINT
    )


def _checked(option: "Parameter", value: Value, place: str) -> Value:
    """The value, if the option can take it; TOML's types are taken at their word."""
    source = option.source
    kind = type(source.type).__name__
    if getattr(source, "count", False) or kind.startswith("Int"):
        expected, fits = "a whole number", type(value) is int
    elif not option.takes_value:
        expected, fits = "true or false", isinstance(value, bool)
    elif option.many:
        expected, fits = "a list of strings", isinstance(value, list)
    elif kind.startswith("Float"):
        expected, fits = "a number", type(value) in (int, float)
    else:
        expected, fits = (
            f"one of {', '.join(option.choices)}" if option.choices else "a string",
            isinstance(value, str),
        )
    if not fits:
        raise Misconfigured(f"{place} must be {expected}, not {_text(value)}", hint=_HINT)
    try:
        source.type_cast_value(None, value)
    except typer.TyperException as error:
        why = (
            f"must be {expected}, not {_text(value)}"
            if option.choices
            else f"is wrong: {sentence(error.message)}"
        )
        raise Misconfigured(f"{place} {why}", hint=_HINT) from error
    return value


def _settings(root: "Verb", files: list[ConfigFile]) -> list[dict[str, Any]]:
    """The common options once, then what each verb has of its own or has otherwise."""
    set_in_files = given(root, files)

    def setting(option: "Parameter", path: tuple[str, ...]) -> dict[str, Any]:
        value, origin = _effective(option, set_in_files[path])
        flag = max(option.flags, key=len)
        name = ".".join((*path, option.long))
        return {"name": name, "value": value, "origin": origin, "flag": flag, "env": list(option.env)}

    leaves = list(root.leaves())
    first = leaves[0]
    common = {option.name: setting(option, ()) for option in _settable(first) if option.name in COMMON_NAMES}
    result = list(common.values())
    for leaf in leaves:
        for option in _settable(leaf):
            own = setting(option, leaf.path)
            base = common.get(option.name)
            if base is None or {**base, "name": own["name"]} != own:
                result.append(own)
    return result


def _effective(option: "Parameter", set_in_files: dict[str, Given]) -> tuple[Any, str]:
    for variable in option.env:
        if text := os.environ.get(variable):
            return _from_environment(option, variable, text), f"environment: {variable}"
    if option.name in set_in_files:
        return set_in_files[option.name].value, set_in_files[option.name].place
    default = option.source.default
    if callable(default) or default is None:
        return None, "default"
    if isinstance(default, bool | int | float | str):
        return default, "default"
    return ([str(item) for item in default] if isinstance(default, list | tuple) else str(default)), "default"


def _from_environment(option: "Parameter", variable: str, text: str) -> Value:
    try:
        words = option.source.type.split_envvar_value(text) if option.source.multiple else text
        value = option.source.type_cast_value(None, words)
    except typer.TyperException as error:
        raise Misconfigured(
            f"the environment variable {variable} cannot be used: {sentence(error.message)}",
            hint=f"Unset {variable} or give it a value that fits.",
        ) from error
    return value if isinstance(value, bool | int | float) else list(words) if option.source.multiple else text


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return ", ".join(value) if isinstance(value, list) else str(value)
