"""Completion scripts for bash, zsh and fish, made from the command tree.

The scripts are static: verbs, options and choices stand in them, and only the values that a machine
alone knows are asked for with `exo __complete`. Bash means 3.2 and later, which macOS still ships.
Pure: no file is read or written here.
"""

from dataclasses import dataclass
from typing import Literal

from exo_cli.commands.help import TOPICS
from exo_cli.commands.tree import Parameter, Verb

# What the name or the place-holder of an option or argument says about its values.
_DYNAMIC = {
    "NODE": "nodes",
    "INTERFACE": "interfaces",
    "interface": "interfaces",
    "no-interface": "interfaces",
    "MODEL": "models",
}
# Such a value may be a directory as well.
_OR_DIRECTORY = frozenset(("models",))
_FILES = {"FILE": "files", "PATH": "files", "DIR": "directories"}
_NOTE = "made by completions/generate.py from the verbs and options there are; do not edit"


@dataclass(frozen=True, slots=True)
class Values:
    """What may follow an option, or stand as an argument."""

    kind: Literal["words", "dynamic", "files", "directories", "free"]
    words: tuple[str, ...] = ()
    """The words themselves, or the kind that `exo __complete` knows."""


def script(shell: str, root: Verb) -> str:
    """The whole script for that shell."""
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](root)


def _values(root: Verb, parameter: Parameter) -> Values:
    metavar = parameter.metavar
    if parameter.choices:
        return Values("words", parameter.choices)
    if metavar in ("TOPIC", "VERB"):
        verbs = tuple(verb.path[0] for verb in root.verbs)
        return Values("words", (*verbs, *TOPICS) if metavar == "TOPIC" else verbs)
    if kind := _DYNAMIC.get(metavar) or _DYNAMIC.get(parameter.long):
        return Values("dynamic", (kind,))
    one = metavar.partition(" ")[0]  # of an option that takes several values
    if one in _FILES:
        return Values("directories" if _FILES[one] == "directories" else "files")
    return Values("free")


def _flags(verb: Verb) -> list[str]:
    return [flag for option in verb.options for flag in (*option.flags, *option.off_flags)]


# -- bash ----------------------------------------------------------------------------------------

_BASH_HEAD = r"""# bash completion for exo: {note}

_exo_words() {{
    local word
    for word in "$@"; do
        [[ $word == "$cur"* ]] && COMPREPLY[${{#COMPREPLY[@]}}]=$prefix$word
    done
}}

_exo_lines() {{
    # Never through compgen -W: it would expand what stands in the words.
    local line
    while IFS= read -r line; do
        [[ $line == "$cur"* ]] && COMPREPLY[${{#COMPREPLY[@]}}]=$prefix$line
    done
}}

_exo_dynamic() {{
    _exo_lines < <("${{COMP_WORDS[0]/#\~/$HOME}}" __complete "$1" 2>/dev/null)
}}

_exo_files() {{
    compopt -o filenames 2>/dev/null
    _exo_lines < <(compgen "$1" -- "$cur")
}}

_exo() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} prefix="" verb="" i
    COMPREPLY=()
    if [[ $cur == --*=* ]]; then
        prev=${{cur%%=*}} prefix=${{cur%%=*}}= cur=${{cur#*=}}
    elif [[ $cur == "=" ]]; then
        cur=""
    elif [[ $prev == "=" && $COMP_CWORD -gt 2 ]]; then
        prev=${{COMP_WORDS[COMP_CWORD-2]}}
    fi
    for ((i = 1; i < COMP_CWORD; i++)); do
        case "$verb/${{COMP_WORDS[i]}}" in
{paths}
        esac
    done
    case "$verb:$prev" in
{values}
    esac
    case "$verb" in
{verbs}
    esac
}}

complete -F _exo exo
"""


def _bash(root: Verb) -> str:
    paths = [
        f"            {_quoted(' '.join(verb.path[:-1]) + '/' + verb.path[-1])}) verb={_quoted(verb.name)} ;;"
        for verb in root.all()
        if verb.path
    ]
    values = _bash_values(root)
    verbs = []
    for verb in root.all():
        inner = (
            [_bash_action(Values("words", tuple(item.path[-1] for item in verb.verbs)))] if verb.verbs else []
        )
        inner += [_bash_action(_values(root, argument)) for argument in verb.arguments[:1]]
        flags = f"_exo_words {' '.join(_flags(verb))}"
        words = "".join(inner).removesuffix("; ")
        body = f"if [[ $cur == -* ]]; then {flags}; else {words}; fi" if words else flags
        verbs.append(f"        {_quoted(verb.name)}) {body} ;;")
    return _BASH_HEAD.format(
        note=_NOTE, paths="\n".join(paths), values="\n".join(values), verbs="\n".join(verbs)
    )


def _bash_values(root: Verb) -> list[str]:
    """One case a flag where it means the same in every verb that has it, else one a verb."""
    actions: dict[str, dict[str, str | None]] = {}
    for verb in root.all():
        for option in verb.options:
            action = _bash_action(_values(root, option)) if option.takes_value else None
            for flag in (*option.flags, *option.off_flags):
                actions.setdefault(flag, {})[verb.name] = action
    patterns: dict[str, list[str]] = {}
    for flag, by_verb in actions.items():
        same = len(set(by_verb.values())) == 1
        for name, action in by_verb.items():
            if action is not None:
                found = patterns.setdefault(action, [])
                found += [f"*:{flag}"] if same and f"*:{flag}" not in found else []
                found += [] if same else [_quoted(f"{name}:{flag}")]
    return [f"        {'|'.join(found)}) {action}return ;;" for action, found in patterns.items()]


def _bash_action(values: Values) -> str:
    match values.kind:
        case "words":
            return f"_exo_words {' '.join(_quoted(word) for word in values.words)}; "
        case "dynamic":
            kind = values.words[0]
            return f"_exo_dynamic {kind}; " + ("_exo_files -d; " if kind in _OR_DIRECTORY else "")
        case "files":
            return "_exo_files -f; "
        case "directories":
            return "_exo_files -d; "
        case "free":
            return ""


def _quoted(text: str) -> str:
    """As one word of any of the three shells."""
    plain = text and all(char.isalnum() or char in "-_./:" for char in text)
    return text if plain else "'" + text.replace("'", "'\\''") + "'"


# -- zsh -----------------------------------------------------------------------------------------

_ZSH_HEAD = r"""#compdef exo
# zsh completion for exo: {note}

_exo_dynamic() {{
    local -a values
    values=(${{(f)"$(_call_program exo-$1 ${{(q)_exo_command}} __complete $1 2>/dev/null)"}})
    compadd -a values
}}

{functions}

if [[ $funcstack[1] == _exo ]]; then
    _exo "$@"
else
    compdef _exo exo
fi
"""


def _zsh(root: Verb) -> str:
    return _ZSH_HEAD.format(
        note=_NOTE, functions="\n\n".join(_zsh_function(root, verb) for verb in root.all())
    )


def _zsh_function(root: Verb, verb: Verb) -> str:
    name = "_".join(("_exo", *(word.replace("-", "_") for word in verb.path)))
    specs = [spec for option in verb.options for spec in _zsh_option(root, option)]
    lines = [f"{name}() {{"]
    if not verb.path:
        lines.append("    local _exo_command=${~words[1]}")
    if verb.verbs:
        specs += ["'1: :->verb'", "'*:: :->rest'"]
        lines += ['    local curcontext="$curcontext" state line', "    typeset -A opt_args"]
    for argument in verb.arguments:
        many = "*" if argument.many else ""
        specs.append(_quoted(f"{many}:{_zsh_text(argument.metavar)}:{_zsh_action(_values(root, argument))}"))
    options = "-C -s" if verb.verbs else "-s -S"
    lines.append(f"    _arguments {options} \\\n        " + " \\\n        ".join(specs))
    if verb.verbs:
        lines += ["    case $state in", "        verb)", "            local -a verbs", "            verbs=("]
        lines += [
            "                " + _quoted(f"{item.path[-1]}:{_zsh_text(item.summary)}") for item in verb.verbs
        ]
        lines += ["            )", "            _describe -t verbs verb verbs", "            ;;"]
        lines += ["        rest)", "            case $words[1] in"]
        lines += [
            f"                {item.path[-1]}) {name}_{item.path[-1].replace('-', '_')} ;;"
            for item in verb.verbs
        ]
        lines += ["            esac", "            ;;", "    esac"]
    return "\n".join([*lines, "}"])


def _zsh_option(root: Verb, option: Parameter) -> list[str]:
    flags = (*option.flags, *option.off_flags)
    action = ""
    if option.takes_value:
        values = _zsh_action(_values(root, option))
        action = "".join(f":{_zsh_text(word)}:{values}" for word in option.metavar.split())
    specs = []
    for flag in flags:
        repeat = "*" if option.many else "" if len(flags) == 1 else f"({' '.join(flags)})"
        equals = "=" if option.takes_value and flag.startswith("--") else ""
        specs.append(_quoted(f"{repeat}{flag}{equals}[{_zsh_text(option.help)}]{action}"))
    return specs


def _zsh_action(values: Values) -> str:
    match values.kind:
        case "words":
            return f"({' '.join(values.words)})"
        case "dynamic":
            kind = values.words[0]
            return f"{{_exo_dynamic {kind}; _files -/}}" if kind in _OR_DIRECTORY else f"_exo_dynamic {kind}"
        case "files":
            return "_files"
        case "directories":
            return "_files -/"
        case "free":
            return " "


def _zsh_text(text: str) -> str:
    for char in "\\[]:":
        text = text.replace(char, "\\" + char)
    return text


# -- fish ----------------------------------------------------------------------------------------

_FISH_HEAD = r"""# fish completion for exo: {note}

function __exo_verb
    set -l verb
    for word in (commandline -opc)
        switch "$verb/$word"
{paths}
        end
    end
    echo $verb
end

function __exo_is
    set -l verb (__exo_verb)
    test "$verb" = "$argv[1]"
end

function __exo_dynamic
    set -l words (commandline -opc)
    $words[1] __complete $argv[1] 2>/dev/null
end

complete -c exo -f
{lines}
"""


def _fish(root: Verb) -> str:
    paths, lines = [], []
    for verb in root.all():
        if verb.path:
            outer = " ".join(verb.path[:-1])
            paths += [f"            case {_fish_quoted(f'{outer}/{verb.path[-1]}')}"]
            paths += [f"                set verb {_fish_quoted(verb.name)}"]
        # The condition is a string that fish evaluates: a verb's name is quoted in it once more.
        here = f"complete -c exo -n '__exo_is \"{verb.name}\"'"
        lines += [f"{here} -a {item.path[-1]} -d {_fish_quoted(item.summary)}" for item in verb.verbs]
        for argument in verb.arguments[:1]:
            lines += [f"{here}{_fish_action(_values(root, argument))}"]
        for option in verb.options:
            names = "".join(_fish_flag(flag) for flag in (*option.flags, *option.off_flags))
            action = _fish_action(_values(root, option)) if option.takes_value else ""
            requires = " -r" if option.takes_value else ""
            lines += [f"{here}{names}{requires}{action} -d {_fish_quoted(option.help)}"]
    return _FISH_HEAD.format(note=_NOTE, paths="\n".join(paths), lines="\n".join(lines))


def _fish_flag(flag: str) -> str:
    return f" -l {flag[2:]}" if flag.startswith("--") else f" -s {flag[1:]}"


def _fish_action(values: Values) -> str:
    match values.kind:
        case "words":
            return f" -a {_fish_quoted(' '.join(values.words))}"
        case "dynamic":
            kind = values.words[0]
            beside = "; __fish_complete_directories" if kind in _OR_DIRECTORY else ""
            return f" -a '(__exo_dynamic {kind}{beside})'"
        case "files":
            return " -F"
        case "directories":
            return " -a '(__fish_complete_directories)'"
        case "free":
            return ""


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
