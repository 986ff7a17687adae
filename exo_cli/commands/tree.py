"""The command tree as plain data: what help, completion, man pages and settings are made from.

Walks what Typer built with the few attributes that all its versions share; Click's classes are
private to Typer. Knows nothing of files, shells or roff.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import typer


@dataclass(frozen=True, slots=True)
class Parameter:
    """One option or argument."""

    name: str
    """As the function knows it: `log_file`."""
    flags: tuple[str, ...]
    """As it is typed, short before long; empty for an argument."""
    off_flags: tuple[str, ...]
    metavar: str
    help: str
    takes_value: bool
    many: bool
    """May be given several times, or (an argument) takes what is left."""
    required: bool
    choices: tuple[str, ...]
    env: tuple[str, ...]
    default: str | None
    settable: bool
    """Whether the environment or a file may give it."""
    source: Any
    """Typer's own object, to convert values with."""

    @property
    def long(self) -> str:
        """The name that files use: `log-file`."""
        return max(self.flags, key=len).lstrip("-") if self.flags else self.name


@dataclass(frozen=True, slots=True)
class Verb:
    """One command, or a group of them."""

    path: tuple[str, ...]
    summary: str
    help: str
    options: tuple[Parameter, ...]
    arguments: tuple[Parameter, ...]
    verbs: tuple["Verb", ...]

    @property
    def name(self) -> str:
        return " ".join(self.path)

    def leaves(self) -> Iterator["Verb"]:
        """Everything in here that does something itself, in the order of the help."""
        if not self.verbs:
            yield self
        for verb in self.verbs:
            yield from verb.leaves()

    def all(self) -> Iterator["Verb"]:
        """This one and all below it."""
        yield self
        for verb in self.verbs:
            yield from verb.all()

    def find(self, path: tuple[str, ...]) -> "Verb | None":
        """The verb below this one with that path from the root."""
        return next((verb for verb in self.all() if verb.path == path), None)


def tree(command: Any) -> Verb:
    """The whole of what `typer.main.get_command(app)` returned."""
    return _verb(command, (), typer.Context(command, info_name="exo", **command.context_settings))


def _verb(command: Any, path: tuple[str, ...], context: typer.Context) -> Verb:
    parameters = [_parameter(item, context) for item in command.get_params(context) if not item.hidden]
    verbs = []
    if hasattr(command, "list_commands"):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if not inner.hidden:
                verbs.append(
                    _verb(inner, (*path, name), typer.Context(inner, parent=context, info_name=name))
                )
    text = inspect.cleandoc(command.help or "")
    return Verb(
        path=path,
        summary=" ".join(text.split("\n\n")[0].split()),
        help=text,
        options=tuple(item for item in parameters if item.flags),
        arguments=tuple(item for item in parameters if not item.flags),
        verbs=tuple(verbs),
    )


def _parameter(item: Any, context: typer.Context) -> Parameter:
    is_option = item.param_type_name == "option"
    takes_value = not is_option or not (item.is_flag or item.count)
    choices = tuple(str(choice) for choice in getattr(item.type, "choices", ()))
    env = (item.envvar,) if isinstance(item.envvar, str) else tuple(item.envvar or ())
    return Parameter(
        name=item.name,
        flags=tuple(sorted(item.opts, key=len)) if is_option else (),
        off_flags=tuple(item.secondary_opts),
        metavar=_metavar(item, context, choices) if takes_value else "",
        help=" ".join((item.help or "").split()),
        takes_value=takes_value,
        many=item.multiple or item.nargs == -1 or bool(getattr(item, "count", False)),
        required=item.required,
        choices=choices,
        env=env,
        default=_default(item),
        settable=is_option and item.expose_value and not item.is_eager,
        source=item,
    )


def _metavar(item: Any, context: typer.Context, choices: tuple[str, ...]) -> str:
    if item.metavar:
        return str(item.metavar)
    if choices:
        return "|".join(choices)
    if item.param_type_name == "argument":
        return str(item.name).upper()
    return str(item.make_metavar(context)).strip("<>").split(" ")[0].rstrip(".").upper()


def _default(item: Any) -> str | None:
    value = item.default
    if value is None or value is False or callable(value) or value == 0 or value in ((), []):
        return None
    if isinstance(value, list | tuple):
        return ", ".join(str(part) for part in value)
    return "true" if value is True else str(value)
