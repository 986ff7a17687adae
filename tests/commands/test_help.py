import ast
import json
from pathlib import Path

import pytest
import typer

import exo_cli
from exo_cli.cli import app, run
from exo_cli.commands.help import FIXED_VARIABLES, environment
from exo_cli.commands.tree import tree
from exo_cli.errors import MEANINGS, Exit, ExoError
from exo_cli.schemas import registry
from tests.support.jsonschema import problems

PACKAGE = Path(exo_cli.__file__).parent


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run(list(arguments)) == 0
    return capsys.readouterr().out


def test_the_table_of_exit_codes_is_the_enum(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row.split("\t") for row in said(capsys, "help", "exit-codes").splitlines()]
    assert rows[0] == ["code", "name", "meaning"]
    assert [int(row[0]) for row in rows[1:]] == [int(code) for code in Exit]
    assert set(MEANINGS) == set(Exit)
    assert len(set(MEANINGS.values())) == len(Exit)


def test_every_error_class_has_a_code_and_an_exit_of_its_own() -> None:
    own = [each for each in ExoError.__subclasses__() if each.__module__.startswith("exo_cli.")]
    classes: list[type[ExoError]] = [ExoError, *own]
    assert len({item.code for item in classes}) == len(classes)
    assert len({item.exit for item in classes}) == len(classes)


@pytest.mark.parametrize("topic", [["exit-codes"], ["environment"], [], ["config", "show"]])
def test_json(topic: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(said(capsys, "help", *topic, "--json"))
    assert problems(document, registry.json_schema("help")) == []


def test_help_on_every_verb_is_what_the_verb_says(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in tree(typer.main.get_command(app)).all():
        if verb.path:
            assert said(capsys, "help", *verb.path) == said(capsys, *verb.path, "--help")
            assert said(capsys, *verb.path, "-h").startswith(f"Usage: exo {verb.name} ")


def test_without_a_topic_it_lists_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    topics = [row.split("\t")[0] for row in said(capsys, "help").splitlines()[1:]]
    verbs = [leaf.name for leaf in tree(typer.main.get_command(app)).leaves()]
    assert topics == [*verbs, "environment", "exit-codes"]


@pytest.mark.parametrize(
    ("words", "meant"), [(["exitcodes"], "exit-codes"), (["conf"], "config"), (["config", "shw"], "show")]
)
def test_an_unknown_topic(words: list[str], meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["help", *words]) == 2
    error = capsys.readouterr().err
    assert f"'{' '.join(words)}'; did you mean '{meant}'?" in error
    assert "hint: exo help lists the topics." in error


def variables_read() -> set[str]:
    """What the source asks the environment for by name (options name theirs to Typer)."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                if ast.unparse(node.func).split(".")[-1] in (
                    "get",
                    "setdefault",
                    "getenv",
                    "_base",
                    "_is_on",
                ):
                    found.add((ast.unparse(node.func), node.args[0].value))
            elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
                found.add((ast.unparse(node.value), node.slice.value))
    readers = ("os.environ", "environ", "os.getenv", "getenv", "_base", "_is_on")
    return {
        str(name)
        for reader, name in found
        if reader.removesuffix(".get").removesuffix(".setdefault") in readers
    }


def test_the_environment_topic_names_what_the_code_reads_and_nothing_else() -> None:
    options = {
        variable
        for leaf in tree(typer.main.get_command(app)).leaves()
        for option in leaf.options
        for variable in option.env
    }
    read = variables_read()
    assert {"NO_COLOR", "EXO_DEBUG", "XDG_STATE_HOME"} <= read
    # HOME is read by Path.home(), the hub's by a loop over their names or by its own library.
    hub = {"HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN", "HUGGINGFACE_HUB_CACHE"}
    assert set(FIXED_VARIABLES) == (read - options) | {"HOME"} | hub
    assert {name for name, _ in environment(tree(typer.main.get_command(app)))} == options | set(
        FIXED_VARIABLES
    )


def test_an_option_that_every_verb_has_is_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    out = said(capsys, "help", "environment")
    assert "EXO_JSON\t--json of every verb: Print JSON for programs\n" in out
