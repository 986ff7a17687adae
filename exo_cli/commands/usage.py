"""A command line that Typer refused, said in our words: one sentence, and what to type next.

Typer's exception classes are private, so they are told apart by what they carry; a kind that is not
known keeps Typer's own sentence. Knows nothing of how errors are shown.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from exo_cli.commands.session import COMMON_NAMES
from exo_cli.errors import ExoError, Misconfigured, UsageProblem


def asks(arguments: list[str], *flags: str) -> bool:
    """Whether one of `flags` stands in a command line that may not have been parsed."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return not set(flags).isdisjoint(arguments[:end])


def is_bare_call(error: Any) -> bool:
    """Whether a group was called without a verb, so that the message is its help."""
    return type(error).__name__ == "NoArgsIsHelpError"


def problem(error: Any, command: Any, arguments: list[str]) -> ExoError:
    """What is wrong with the command line, or with the environment it took a value from."""
    path, innermost = _path(command, arguments)
    hint = f"{path} --help lists what it takes."
    if hasattr(innermost, "list_commands"):
        hint = f"{path} --help lists the verbs."
    parameter = getattr(error, "param", None)
    if parameter is not None:
        return _bad_value(error, parameter, hint)
    if hasattr(error, "possibilities"):
        return _unknown_option(error, path, innermost, hint)
    text = str(error.message)
    if text.startswith("No such command ") and hasattr(innermost, "list_commands"):
        word = text.removeprefix("No such command ").partition(". ")[0].rstrip(".").strip("'\"")
        names = [name for name in innermost.list_commands(None) if not innermost.commands[name].hidden]
        return UsageProblem(f"no such verb '{word}'{did_you_mean(word, names)}", hint=hint)
    if text.startswith("Missing command"):
        return UsageProblem(f"'{path}' needs a verb", hint=hint)
    if text.startswith("Got unexpected extra argument"):
        extra = text.partition(" (")[2].removesuffix(")")
        return UsageProblem(f"'{path}' does not take the argument '{extra}'", hint=hint)
    return UsageProblem(sentence(text), hint=hint)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """What to add to a sentence about an unknown word: the nearest known one, if one is near."""
    candidates = list(known)
    near = [name for name in candidates if len(word) > 1 and name.startswith(word)]
    near = near or get_close_matches(word, candidates, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def sentence(text: str) -> str:
    """Typer's sentences in our style: one line, no capital, no full stop."""
    line = " ".join(text.split()).rstrip(".").replace(". ", "; ")
    return line[:1].lower() + line[1:]


def _bad_value(error: Any, parameter: Any, hint: str) -> ExoError:
    is_option = parameter.param_type_name == "option"
    name = max(parameter.opts, key=len) if is_option else parameter.metavar or parameter.name.upper()
    choices = [str(choice) for choice in getattr(parameter.type, "choices", ())]
    if type(error).__name__ == "MissingParameter":
        listed = f" ({', '.join(choices)})" if choices else ""
        return UsageProblem(
            f"the {'option' if is_option else 'argument'} {name}{listed} is missing", hint=hint
        )
    why = sentence(error.message)
    source = error.ctx.get_parameter_source(parameter.name) if error.ctx is not None else None
    if source is not None and source.name == "ENVIRONMENT":
        variable = parameter.envvar if isinstance(parameter.envvar, str) else " or ".join(parameter.envvar)
        return Misconfigured(
            f"the environment variable {variable} cannot be used for {name}: {why}",
            hint=f"Unset {variable} or give it a value that fits.",
        )
    if source is not None and source.name == "DEFAULT_MAP":
        return Misconfigured(
            f"a configuration file has a wrong value for {name}: {why}",
            hint="exo config show --origin says which file.",
        )
    return UsageProblem(f"invalid value for {name}: {why}", hint=hint)


def _unknown_option(error: Any, path: str, innermost: Any, hint: str) -> ExoError:
    name = str(error.option_name)
    if hasattr(innermost, "list_commands") and name.lstrip("-").replace("-", "_") in COMMON_NAMES:
        return UsageProblem(
            f"'{name}' stands before the verb", hint=f"Options come after it: {path} VERB {name}."
        )
    known = [
        flag for item in innermost.params for flag in (*item.opts, *item.secondary_opts) if flag[:1] == "-"
    ]
    meant = did_you_mean(name, [flag for flag in known if flag[:2] == "--"] if len(name) > 2 else ())
    return UsageProblem(f"no such option '{name}'{meant}", hint=hint)


def _path(command: Any, arguments: list[str]) -> tuple[str, Any]:
    """The words that name a verb, and the innermost command they reach."""
    path = "exo"
    for word in arguments:
        inner = command.commands.get(word) if hasattr(command, "commands") else None
        if inner is None:
            break
        path, command = f"{path} {word}", inner
    return path, command
