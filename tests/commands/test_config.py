"""Which value a setting has, and where it came from, with a small app that has every kind of option."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer

from exo_cli import config as files
from exo_cli.cli import run
from exo_cli.commands.config import defaults, given
from exo_cli.commands.session import Session, verb
from exo_cli.commands.tree import tree
from exo_cli.errors import ExoError, Misconfigured
from exo_cli.schemas import registry
from tests.support.jsonschema import problems

Words = Annotated[list[str] | None, typer.Option("--peer")]


def seconds(text: str) -> float:
    if not text.endswith("s"):
        raise typer.BadParameter("a duration is written like 30s.")
    return float(text[:-1])


def small_app() -> tuple[Any, dict[str, Any]]:
    app, seen = typer.Typer(rich_markup_mode=None, add_completion=False), dict[str, Any]()

    @app.callback()
    def root() -> None:
        pass

    @app.command()
    @verb
    def discover(
        session: Session,
        for_: Annotated[float, typer.Option("--for", parser=seconds, envvar="EXO_FOR")] = "3s",  # type: ignore[assignment]
        count: Annotated[int, typer.Option("--count", min=1)] = 1,
        ratio: Annotated[float, typer.Option("--ratio")] = 0.5,
        shape: Annotated[Literal["table", "svg"], typer.Option("--shape")] = "table",
        peer: Words = None,
        watch: Annotated[bool, typer.Option("--watch", envvar="EXO_WATCH")] = False,
    ) -> None:
        seen.update(for_=for_, count=count, ratio=ratio, shape=shape, peer=peer, watch=watch)
        seen.update(json=session.output.json, verbose=session.output.verbose)

    group = typer.Typer()

    @group.command("new")
    @verb
    def new(session: Session, force: Annotated[bool, typer.Option("--force")] = False) -> None:
        seen.update(force=force, json=session.output.json)

    @group.command("show")
    @verb
    def show(session: Session) -> None:
        seen.update(json=session.output.json)

    app.add_typer(group, name="key")
    return typer.main.get_command(app), seen


def call(line: str, *contents: str) -> dict[str, Any]:
    """Run the small app with those files, the strongest first."""
    command, seen = small_app()
    found = read(*contents)
    with command.make_context("exo", line.split(), default_map=defaults(command, found)) as context:
        command.invoke(context)
    return seen


def read(*contents: str) -> list[files.ConfigFile]:
    found = []
    for number, content in enumerate(contents):
        path = Path(f"file{number}.toml")
        path.write_text(content)
        file = files.read_file(path)
        assert file is not None
        found.append(file)
    return found


@pytest.fixture(autouse=True)
def in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_kind_of_value() -> None:
    text = '[discover]\nfor = "5s"\ncount = 2\nratio = 1\nshape = "svg"\n'
    text += 'peer = ["a", "b c"]\nwatch = true\nverbose = 2\n'
    seen = call("discover", text)
    assert seen == {
        "for_": 5.0,
        "count": 2,
        "ratio": 1.0,
        "shape": "svg",
        "peer": ["a", "b c"],
        "watch": True,
        "json": False,
        "verbose": 2,
    }


def test_top_level_keys_reach_every_verb_that_has_them() -> None:
    assert call("discover", "json = true")["json"] is True
    assert call("key show", "json = true")["json"] is True
    assert call("key show", "force = true") == {"json": False}
    assert call("key new", "force = true")["force"] is True


def test_a_table_is_stronger_than_the_top_level_and_a_group_reaches_its_verbs() -> None:
    text = "json = true\n[key]\njson = false\n[key.new]\njson = true\n"
    assert call("discover", text)["json"] is True
    assert call("key show", text)["json"] is False
    assert call("key new", text)["json"] is True


def test_the_first_file_is_stronger_than_the_second_whatever_the_table() -> None:
    assert call("discover", "watch = false", "[discover]\nwatch = true")["watch"] is False


def test_flag_then_environment_then_file_then_default(monkeypatch: pytest.MonkeyPatch) -> None:
    text = '[discover]\nfor = "5s"\n'
    assert call("discover")["for_"] == 3.0
    assert call("discover", text)["for_"] == 5.0
    monkeypatch.setenv("EXO_FOR", "7s")
    assert call("discover", text)["for_"] == 7.0
    assert call("discover --for 9s", text)["for_"] == 9.0
    monkeypatch.setenv("EXO_FOR", "")
    assert call("discover", text)["for_"] == 5.0


@pytest.mark.parametrize(
    ("value", "on"), [("1", True), ("true", True), ("YES", True), ("on", True), ("0", False), ("off", False)]
)
def test_the_environment_can_switch_on_and_off(value: str, on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXO_WATCH", value)
    assert call("discover", f"watch = {str(not on).lower()}")["watch"] is on


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("jsn = true", "./file0.toml: jsn is not a setting; did you mean 'json'?"),
        ("[discover]\nfro = '1s'", "./file0.toml: [discover] fro is not a setting; did you mean 'for'?"),
        ("[key.new]\nwatch = true", "./file0.toml: [key.new] watch is not a setting"),
        ("[key]\nwatch = true", "./file0.toml: [key] watch is not a setting"),
        (
            "[discovr]\njson = true",
            "./file0.toml: [discovr] is not the name of a verb; did you mean 'discover'?",
        ),
        (
            "[key.nwe]\nforce = true",
            "./file0.toml: [key.nwe] is not the name of a verb; did you mean 'key.new'?",
        ),
        ("[discover.deep]\njson = true", "./file0.toml: [discover.deep] is not the name of a verb"),
        ("discover = true", "./file0.toml: discover must be a table"),
        ("help = true", "./file0.toml: help is not a setting"),
        ("json = 'yes'", "./file0.toml: json must be true or false, not yes"),
        ("json = 1", "./file0.toml: json must be true or false, not 1"),
        ("[discover]\ncount = true", "./file0.toml: [discover] count must be a whole number, not true"),
        ("[discover]\ncount = 0", "./file0.toml: [discover] count is wrong: 0 is not in the range x>=1"),
        ("[discover]\nratio = 'half'", "./file0.toml: [discover] ratio must be a number, not half"),
        ("[discover]\nfor = 3", "./file0.toml: [discover] for must be a string, not 3"),
        ("[discover]\nfor = '3'", "./file0.toml: [discover] for is wrong: a duration is written like 30s"),
        ("[discover]\nshape = 'pie'", "./file0.toml: [discover] shape must be one of table, svg, not pie"),
        ("[discover]\npeer = 'a'", "./file0.toml: [discover] peer must be a list of strings, not a"),
        ("topology = ['a']", "./file0.toml: topology must be a string, not a"),
        ("verbose = true", "./file0.toml: verbose must be a whole number, not true"),
    ],
)
def test_what_cannot_be_is_said_with_file_and_key(text: str, says: str) -> None:
    command, _ = small_app()
    with pytest.raises(Misconfigured) as raised:
        defaults(command, read(text))
    assert raised.value.message.startswith(says)
    assert raised.value.exit == 78


def test_a_bad_variable_is_a_setting_not_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EXO_COLOR", "reed")
    assert run(["help"]) == 78
    error = capsys.readouterr().err
    assert "EXO_COLOR" in error
    assert "hint: Unset EXO_COLOR" in error
    monkeypatch.setenv("EXO_JSON", "perhaps")
    monkeypatch.delenv("EXO_COLOR")
    assert run(["config", "show"]) == 78
    assert '"code": "configuration"' in capsys.readouterr().err


def test_show_says_where_each_value_comes_from(
    clean_environment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    user = clean_environment / ".config/exo/config.toml"
    user.parent.mkdir(parents=True)
    user.write_text('quiet = true\ntopology = "/user.json"\n')
    Path("exo.toml").write_text('topology = "/project.json"\n[config.show]\norigin = true\n')
    monkeypatch.setenv("EXO_COLOR", "never")
    assert run(["config", "show"]) == 0
    rows = {
        name: (value, origin)
        for name, value, origin in (row.split("\t") for row in capsys.readouterr().out.splitlines()[1:])
    }
    assert rows["json"] == ("false", "default")
    assert rows["color"] == ("never", "environment: EXO_COLOR")
    assert rows["topology"] == ("/project.json", "./exo.toml: topology")
    assert rows["quiet"] == ("true", f"{user}: quiet")
    assert rows["config.show.origin"] == ("true", "./exo.toml: [config.show] origin")


def test_a_common_option_that_one_verb_has_otherwise_is_shown_twice(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("exo.toml").write_text("[schema]\njson = true\n")
    assert run(["config", "show"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0] == "setting\tvalue"
    assert "json\tfalse" in rows
    assert "schema.json\ttrue" in rows
    assert not any(row.startswith("help.json") for row in rows)


def test_show_as_json_obeys_its_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "show", "--json"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert problems(document, registry.json_schema("config show")) == []
    assert captured.err == ""
    setting = next(item for item in document["settings"] if item["name"] == "log-file")
    assert setting == {
        "name": "log-file",
        "value": None,
        "origin": "default",
        "flag": "--log-file",
        "env": ["EXO_LOG_FILE"],
    }


def test_without_a_file_it_says_where_one_would_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "show"]) == 0
    assert ".config/exo/config.toml would be read" in capsys.readouterr().err


def key_of(line: str) -> str:
    return line.partition(" ")[0]


def test_every_setting_that_is_shown_can_be_put_into_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "show", "--json"]) == 0
    tables: dict[str, list[str]] = {}
    for setting in json.loads(capsys.readouterr().out)["settings"]:
        table, _, key = setting["name"].rpartition(".")
        if setting["value"] is not None and setting["value"] != [] and table:
            tables.setdefault(table, []).append(f"{key} = {json.dumps(setting['value'])}")
    for table, lines in tables.items():
        for line in lines:
            Path("exo.toml").write_text(f"[{table}]\n{line}\n")
            code = run(["config", "show", "--json"])
            message = capsys.readouterr().err
            # A number for an option that is written with a unit is refused, and says how it is written.
            refused = "must be a string" in message or (key_of(line) == "insecure" and "stands in" in message)
            assert code == 0 or refused, (line, message)


def test_json_in_a_file_makes_errors_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    Path("exo.toml").write_text("[key.new]\njson = true\n[config]\njson = true\n")
    assert run(["config", "show", "--nonsense"]) == 2
    assert json.loads(capsys.readouterr().err)["code"] == "usage"
    assert run(["schema", "--nonsense"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_help_answers_when_a_file_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    Path("exo.toml").write_text("nonsense = true\n")
    assert run(["config", "show"]) == 78
    capsys.readouterr()
    for line in (["--help"], ["config", "show", "--help"], ["help", "exit-codes"], ["completion", "bash"]):
        assert run(line) == 0
        assert capsys.readouterr().err == ""


def test_given_keeps_the_top_level_apart() -> None:
    command, _ = small_app()
    found = given(tree(command), read("json = true\n[discover]\nwatch = true\n"))
    assert found[()]["json"].place == "./file0.toml: json"
    assert found["discover",]["watch"].value is True
    assert "watch" not in found["key", "new"]


def test_an_error_class_is_what_callers_catch() -> None:
    assert issubclass(Misconfigured, ExoError)


@pytest.mark.parametrize("text", ["insecure = true", "[discover]\ninsecure = true"])
def test_a_directory_cannot_lower_the_guard(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever made the directory one stands in must not choose the published key for one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exo.toml").write_text(text)
    assert run(["discover", "--for", "1s"]) == 78
    assert "insecure cannot be set by the directory one stands in" in capsys.readouterr().err


def test_ones_own_file_may(clean_environment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = clean_environment / ".config/exo/config.toml"
    own.parent.mkdir(parents=True)
    own.write_text("insecure = true")
    assert run(["config", "show", "--origin", "--json"]) == 0
    assert str(own) in capsys.readouterr().out
