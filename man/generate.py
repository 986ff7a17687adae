"""Write the manual pages from the Typer app and the schemas; --check says whether they are up to date.

click-man writes pages without options for current Typer and says nothing, hence our own. The pages
carry the version and no date, so that the same tree gives the same bytes.
"""

import ast
import inspect
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path

import msgspec
import typer

from exo_cli import __version__
from exo_cli.cli import app
from exo_cli.commands.help import environment
from exo_cli.commands.session import COMMON_NAMES as SESSION_NAMES
from exo_cli.commands.tree import Parameter, Verb, tree
from exo_cli.errors import MEANINGS
from exo_cli.schemas import registry, topology

HERE = Path(__file__).parent
COMMON_NAMES = SESSION_NAMES | {"help"}
_ROFF = {"\\": r"\e", "-": r"\-", "'": r"\(aq", '"': r"\(dq", "`": r"\(ga", "~": r"\(ti", "^": r"\(ha"}


def escape(text: str) -> str:
    """Text as roff shows it, character by character; a line cannot become a request."""
    mapped = "".join(_ROFF.get(char, char if char.isascii() else f"\\[u{ord(char):04X}]") for char in text)
    return r"\&" + mapped if mapped[:1] == "." else mapped


def pages() -> dict[Path, str]:
    """Every page by its path."""
    root = tree(typer.main.get_command(app))
    found = {"man1/exo.1": root_page(root)}
    for verb in root.verbs:
        found[f"man1/exo-{verb.path[0]}.1"] = verb_page(verb)
    found["man5/exo-topology.5"] = topology_page()
    found["man7/exo-environment.7"] = environment_page(root)
    return {HERE / name: text for name, text in found.items()}


def root_page(root: Verb) -> str:
    lines = _head("exo", 1, "one cluster out of the machines you own, to run language models")
    lines += [".SH SYNOPSIS", r".B exo", r".I VERB", r"[\fIOPTIONS\fR] [\fIARGUMENTS\fR]"]
    lines += [".SH DESCRIPTION", *_prose(root.help)]
    lines += [
        ".P",
        escape(
            "exo is an independent program, not affiliated with exo-explore/exo. It shares no code with it."
        ),
    ]
    lines += [".SH VERBS"]
    for verb in root.verbs:
        lines += [".TP", rf".BR exo\-{escape(verb.path[0])} (1)", escape(verb.summary)]
    lines += [".SH OPTIONS", *_options(root.options)]
    lines += [".SH COMMON OPTIONS", escape("Every verb takes these, after its name.")]
    lines += _options(option for option in next(root.leaves()).options if option.name in COMMON_NAMES)
    lines += [".SH EXIT STATUS"]
    for code, meaning in MEANINGS.items():
        lines += [".TP", rf".B {int(code)}", escape(f"{meaning[0].upper()}{meaning[1:]}.")]
    lines += [".P", escape("A code that is not in this list means a failure; the list may grow.")]
    lines += [".SH FILES"]
    for path, text in (
        ("./exo.toml", "Settings of a project: an option's long name at the top level or under [VERB]."),
        ("$XDG_CONFIG_HOME/exo/config.toml", "Settings of a user."),
        ("$XDG_CONFIG_HOME/exo/cluster.key", "The cluster's secret."),
        ("$XDG_STATE_HOME/exo/topology.json", "The nodes and links that were found."),
    ):
        lines += [".TP", rf".I {escape(path)}", escape(text)]
    others = [f"exo-{verb.path[0]}(1)" for verb in root.verbs]
    return _page([*lines, *_see_also([*others, "exo-topology(5)", "exo-environment(7)"])])


def verb_page(verb: Verb) -> str:
    lines = _head(f"exo-{verb.path[0]}", 1, verb.summary)
    lines += [".SH SYNOPSIS"]
    for number, leaf in enumerate(verb.leaves()):
        lines += [".br"] if number else []
        lines += _synopsis(leaf)
    lines += [".SH DESCRIPTION", *_prose(verb.help)]
    if verb.verbs:
        lines += [".SH VERBS"]
        for leaf in verb.leaves():
            lines += [f".SS {escape('exo ' + leaf.name)}", *_prose(leaf.help), *_parameters(leaf)]
    else:
        parameters = _parameters(verb)
        lines += [".SH OPTIONS", *parameters] if parameters else []
    lines += [".SH COMMON OPTIONS"]
    lines += _options(option for option in next(verb.leaves()).options if option.name in COMMON_NAMES)
    lines += [".SH EXIT STATUS", escape("0 when it worked; every other code is explained in")]
    lines += [r".BR exo (1)", escape("and by exo help exit-codes.")]
    return _page([*lines, *_see_also(["exo(1)", "exo-topology(5)", "exo-environment(7)"])])


def topology_page() -> str:
    structs = registry.nested(topology.Topology)
    notes = field_notes(inspect.getsource(topology))
    lines = _head("exo-topology", 5, "the file that says which nodes there are and how fast the links are")
    lines += [".SH SYNOPSIS", r".I $XDG_STATE_HOME/exo/topology.json"]
    lines += [".SH DESCRIPTION"]
    lines += _prose(
        "Written whole by exo discover and exo serve-shard; other verbs read it. A reader sees the old file "
        "or the new one. The generation grows with each write. Keys are only ever added within a version of "
        f"the schema, which is {topology.SCHEMA}; a key without a value is null. Units stand in the names of "
        "the keys.\n\nexo schema topology.json prints the same as a JSON Schema."
    )
    for struct in structs:
        lines += [f".SH {escape(struct.__name__.upper())}", *_prose(inspect.getdoc(struct) or "")]
        for field in msgspec.structs.fields(struct):
            note = notes.get((struct.__name__, field.name), "")
            lines += [".TP", rf".B {escape(field.encode_name)}", escape(_type_text(field.type))]
            lines += [".br", escape(note)] if note else []
    return _page([*lines, *_see_also(["exo(1)", "exo-discover(1)"])])


def environment_page(root: Verb) -> str:
    lines = _head("exo-environment", 7, "the environment variables that exo reads")
    lines += [".SH DESCRIPTION"]
    lines += _prose(
        "A setting is taken from the first of: the flag, its variable, ./exo.toml, the user's config.toml, "
        "the default. An empty variable counts as not set. A variable that switches something on takes 1, "
        "true, yes or on, and 0, false, no or off. exo config show --origin tells where each value came from."
    )
    lines += [".SH VARIABLES"]
    for name, meaning in environment(root):
        lines += [".TP", rf".B {escape(name)}", escape(f"{meaning[0].upper()}{meaning[1:]}.")]
    return _page([*lines, *_see_also(["exo(1)"])])


def field_notes(source: str) -> dict[tuple[str, str], str]:
    """The docstrings under the fields of the classes in a module, which Python itself does not keep."""
    notes = {}
    for item in ast.parse(source).body:
        if isinstance(item, ast.ClassDef):
            for field, after in zip(item.body, item.body[1:], strict=False):
                if (
                    isinstance(field, ast.AnnAssign)
                    and isinstance(field.target, ast.Name)
                    and isinstance(after, ast.Expr)
                    and isinstance(after.value, ast.Constant)
                ):
                    notes[item.name, field.target.id] = " ".join(str(after.value.value).split())
    return notes


def _head(name: str, section: int, about: str) -> list[str]:
    about = about.rstrip(".")
    return [
        r".\" Made by man/generate.py; do not edit.",
        f'.TH {escape(name.upper())} {section} "" "exo {escape(__version__)}" "exo manual"',
        ".SH NAME",
        f"{escape(name)} \\- {escape(about[:1].lower() + about[1:])}",
    ]


def _page(lines: Iterable[str]) -> str:
    return "\n".join(lines) + "\n"


def _see_also(pages_named: list[str]) -> list[str]:
    lines = [".SH SEE ALSO"]
    for number, name in enumerate(pages_named):
        title, _, section = name.partition("(")
        comma = "," if number + 1 < len(pages_named) else ""
        lines += [f".BR {escape(title)} ({section}{comma}"]
    return lines


def _synopsis(leaf: Verb) -> list[str]:
    words = [rf".B {escape('exo ' + leaf.name)}", r"[\fIOPTIONS\fR]"]
    for argument in leaf.arguments:
        dots = " ..." if argument.many else ""
        shown = rf"\fI{escape(argument.metavar)}\fR{dots}"
        words += [shown if argument.required else f"[{shown}]"]
    return words


def _parameters(leaf: Verb) -> list[str]:
    lines = []
    for argument in leaf.arguments:
        lines += [".TP", rf".I {escape(argument.metavar)}", *_about(argument)]
    return lines + _options(option for option in leaf.options if option.name not in COMMON_NAMES)


def _options(options: Iterable[Parameter]) -> list[str]:
    lines = []
    for option in options:
        value = rf" \fI{escape(option.metavar)}\fR" if option.takes_value else ""
        flags = ", ".join(rf"\fB{escape(flag)}\fR" for flag in option.flags)
        flags += "".join(rf", \fB{escape(flag)}\fR" for flag in option.off_flags)
        lines += [".TP", f"{flags}{value}", *_about(option)]
    return lines


def _about(parameter: Parameter) -> list[str]:
    text = parameter.help or parameter.name
    extras = [f"Default: {parameter.default}."] if parameter.default is not None else []
    many = parameter.many and parameter.takes_value and "Repeatable" not in (parameter.help or "")
    extras += ["May be given more than once."] if many else []
    extras += [f"Environment: {', '.join(parameter.env)}."] if parameter.env else []
    return [escape(" ".join([text, *extras]))]


def _prose(text: str) -> list[str]:
    """Paragraphs; a marked one with a title (Examples:) keeps its lines."""
    lines: list[str] = []
    for number, block in enumerate(part for part in text.split("\n\n") if part.strip()):
        lines += [".P"] if number else []
        block = block.removeprefix("\b\n")
        title, *rest = block.split("\n")
        if rest and title.endswith(":"):
            kept = textwrap.dedent("\n".join(rest))
            lines += [escape(title), ".RS 4", ".nf"]
            lines += [*(escape(line) or r"\&" for line in kept.split("\n")), ".fi", ".RE"]
        else:
            lines += [escape(" ".join(block.split()))]
    return lines


def _type_text(hint: object) -> str:
    """What JSON holds there."""
    schema = msgspec.json.schema_components([hint], ref_template="{name}")[0][0]
    return _schema_text(schema)


def _schema_text(schema: dict[str, object]) -> str:
    match schema:
        case {"$ref": str(name)}:
            return f"an object, see {name.upper()}"
        case {"anyOf": list(parts)}:
            return " or ".join(_schema_text(part) for part in parts)
        case {"enum": list(values)}:
            return "one of " + ", ".join("null" if value is None else f'"{value}"' for value in values)
        case {"type": "array", "prefixItems": list(items)}:
            return f"a list of {len(items)}: " + ", ".join(_schema_text(item) for item in items)
        case {"type": "array", "items": dict(items)}:
            return f"a list of objects, see {str(items['$ref']).upper()}" if "$ref" in items else "a list"
        case {"type": "null"}:
            return "null"
        case {"type": str(name)}:
            return {"integer": "a whole number", "boolean": "true or false"}.get(name, f"a {name}")
    raise ValueError(f"no words for {schema}")


def main(arguments: list[str]) -> int:
    found = pages()
    there = {path for path in HERE.glob("man[157]/*") if path.is_file()}
    stale = [
        path for path, text in found.items() if path not in there or path.read_text(encoding="utf-8") != text
    ]
    left_over = sorted(there - set(found))
    if arguments == ["--check"]:
        for path in [*stale, *left_over]:
            print(f"{path.name} is not what the app would give; run make man", file=sys.stderr)
        return 1 if stale or left_over else 0
    for path in left_over:
        path.unlink()
    for path in stale:
        path.parent.mkdir(exist_ok=True)
        path.write_text(found[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
