"""The edge of the process: sentences, exit codes, streams that fail, signals."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from exo_cli import VERSION_LINE, cli
from exo_cli.cli import app, run
from exo_cli.commands.session import Session, verb
from exo_cli.commands.tree import tree
from exo_cli.errors import DoesNotFit
from exo_cli.schemas import registry
from tests.support.cli import EXO, exo
from tests.support.jsonschema import problems

WRONG = [
    (["disc"], "no such verb 'disc'; did you mean 'discover'?", "exo --help lists the verbs."),
    (["hlep"], "no such verb 'hlep'; did you mean 'help'?", "exo --help lists the verbs."),
    (["zzz"], "no such verb 'zzz'", "exo --help lists the verbs."),
    (["-x"], "no such option '-x'", "exo --help lists the verbs."),
    (["--jsn"], "no such option '--jsn'", "exo --help lists the verbs."),
    (["--color", "help"], "'--color' stands before the verb", "Options come after it: exo VERB --color."),
    (["config", "shw"], "no such verb 'shw'; did you mean 'show'?", "exo config --help lists the verbs."),
    (
        ["config", "show", "--orign"],
        "no such option '--orign'; did you mean '--origin'?",
        "exo config show --help",
    ),
    (
        ["config", "show", "--zebra"],
        "no such option '--zebra'",
        "exo config show --help lists what it takes.",
    ),
    (
        ["config", "show", "x", "y"],
        "'exo config show' does not take the argument 'x y'",
        "exo config show --help",
    ),
    (["help", "--color"], "option '--color' requires an argument", "exo help --help lists what it takes."),
    (
        ["help", "--color", "reed"],
        "invalid value for --color: 'reed' is not one of 'auto',",
        "exo help --help",
    ),
    (["completion"], "the argument SHELL (bash, zsh, fish) is missing", "exo completion --help"),
    (
        ["completion", "csh"],
        "invalid value for SHELL: 'csh' is not one of 'bash', 'zsh', 'fish'",
        "exo completion",
    ),
    (["help", "--json=1"], "option '--json' does not take a value", "exo help --help lists what it takes."),
    (["help", "nothing"], "there is no help on 'nothing'", "exo help lists the topics."),
    (["schema", "nothing"], "there is no schema for 'nothing'", "exo schema lists them."),
]


@pytest.mark.parametrize(("line", "message", "hint"), WRONG, ids=lambda value: " ".join(value)[:30])
def test_a_wrong_command_line(
    line: list[str], message: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(line) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    said = captured.err.splitlines()
    assert len(said) == 2
    assert said[0].startswith(f"error: {message}")
    assert said[1].startswith(f"hint: {hint}")
    assert not said[0].endswith(".")
    assert said[1].endswith(".")


@pytest.mark.parametrize("line", [line for line, _, _ in WRONG if line[0] != "--color"], ids=" ".join)
def test_the_same_as_one_line_of_json(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*line, "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    document = json.loads(captured.err)
    assert problems(document, registry.json_schema("error")) == []
    assert (document["code"], document["exit"]) == ("usage", 2)


def test_what_asks_for_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def is_json() -> bool:
        return capsys.readouterr().err.startswith("{")

    run(["disc", "--", "--json"])
    assert not is_json()
    monkeypatch.setenv("EXO_JSON", "1")
    run(["disc"])
    assert is_json()
    monkeypatch.setenv("EXO_JSON", "off")
    run(["disc"])
    assert not is_json()


def test_quiet_hides_hints_and_no_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["help", "nothing", "-q"]) == 2
    assert capsys.readouterr().err == "error: there is no help on 'nothing'\n"


def test_without_a_verb_the_help_and_2(capsys: pytest.CaptureFixture[str]) -> None:
    for line in ([], ["config"]):
        assert run(line) == 2
        captured = capsys.readouterr()
        assert captured.out.startswith("Usage: exo ")
        assert captured.err == ""


def test_help_shows_choices_and_variables(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["help", "-h"]) == 0
    out = capsys.readouterr().out
    assert "--color <auto|always|never>" in out
    assert "EXO_COLOR" in out
    assert "\x1b" not in out


def test_every_verb_has_the_common_options_a_summary_and_help_without_a_gap() -> None:
    root = tree(typer.main.get_command(app))
    leaves = list(root.leaves())
    assert len(leaves) > 4
    for leaf in leaves:
        flags = {flag for option in leaf.options for flag in option.flags}
        common = {
            "--json",
            "-q",
            "--quiet",
            "-v",
            "--verbose",
            "--topology",
            "--color",
            "--log-file",
            "-h",
            "--help",
        }
        assert common <= flags, leaf.name
        assert leaf.summary.endswith("."), leaf.name
        assert all(item.help for item in (*leaf.options, *leaf.arguments)), leaf.name


def test_one_option_name_means_one_thing() -> None:
    kinds: dict[str, tuple[str, bool]] = {}
    for leaf in tree(typer.main.get_command(app)).leaves():
        for option in leaf.options:
            for flag in option.flags:
                kind = (option.name, option.takes_value)
                assert kinds.setdefault(flag, kind) == kind, (leaf.name, flag)


def with_verb(monkeypatch: pytest.MonkeyPatch, body: Callable[[], Any]) -> None:
    """An app with one verb, `probe`, that does `body`."""
    made = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)

    @made.callback()
    def root() -> None:
        pass

    @made.command("probe")
    @verb
    def probe(session: Session) -> int | None:
        secret_in_locals = "planted-" + "canary"
        return body() if secret_in_locals else None

    monkeypatch.setattr(cli, "app", made)


def raising(error: BaseException) -> Callable[[], Any]:
    def body() -> None:
        raise error

    return body


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (
            DoesNotFit("no plan fits", hint="Add a machine."),
            79,
            "error: no plan fits\nhint: Add a machine.\n",
        ),
        (KeyboardInterrupt(), 130, ""),
        (typer.Exit(75), 75, ""),
        (typer.Abort(), 130, ""),
        (
            PermissionError(13, "Permission denied", "/x"),
            74,
            "error: the system refused: /x: Permission denied\n",
        ),
        (ZeroDivisionError("by zero"), 1, "error: ZeroDivisionError: by zero\nhint: This is a bug in exo."),
        # A peer that hung up is not the reader of standard output.
        (BrokenPipeError(32, "Broken pipe"), 74, "error: the system refused: Broken pipe\n"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_leaves_a_verb(
    error: BaseException,
    code: int,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with_verb(monkeypatch, raising(error))
    assert run(["probe"]) == code
    assert capsys.readouterr().err.startswith(says)


def test_the_value_of_a_verb_is_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    with_verb(monkeypatch, lambda: 80)
    assert run(["probe"]) == 80
    with_verb(monkeypatch, lambda: None)
    assert run(["probe"]) == 0


@pytest.mark.parametrize(
    "error", [DoesNotFit("no plan fits"), ZeroDivisionError("by zero")], ids=["ours", "bug"]
)
def test_debug_shows_where_and_no_locals(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_verb(monkeypatch, raising(error))
    run(["probe"])
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setenv("EXO_DEBUG", "1")
    run(["probe"])
    said = capsys.readouterr().err
    assert "Traceback (most recent call last)" in said
    assert "test_cli.py" in said
    assert "planted-canary" not in said
    assert "\nerror: " in said


def test_errors_of_a_verb_reach_the_log_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_verb(monkeypatch, raising(DoesNotFit("no plan fits")))
    log = tmp_path / "log"
    assert run(["probe", "--log-file", str(log)]) == 79
    assert json.loads(log.read_text())["text"] == "does-not-fit: no plan fits"
    assert run(["probe", "--log-file", "/dev/null/x"]) == 73
    assert "cannot write the log file" in capsys.readouterr().err


# -- real processes ------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_version(flag: str) -> None:
    answer = exo(flag)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, VERSION_LINE + "\n", "")
    # And the long way round, with another option before it.
    assert run([flag, "help"]) == 0


@pytest.mark.parametrize(
    "line",
    [["--version"], ["--help"], [], ["help", "exit-codes"], ["schema", "discover"], ["completion", "bash"]],
    ids=" ".join,
)
def test_a_reader_that_goes_away_is_141_and_silent(line: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    answer = exo(*line, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (answer.returncode, answer.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    "line",
    [["--version"], ["--help"], [], ["help", "exit-codes"], ["schema", "discover"], ["completion", "bash"]],
    ids=" ".join,
)
def test_a_full_device_is_74_with_a_sentence(line: list[str]) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        answer = exo(*line, stdout=full, stderr=subprocess.PIPE)
    assert answer.returncode == 74
    assert answer.stderr == (
        "error: cannot write to standard output: No space left on device\n"
        "hint: Free some space there or send the output elsewhere.\n"
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_an_error_that_cannot_be_written_keeps_a_code() -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        assert exo("disc", stdout=subprocess.PIPE, stderr=full).returncode == 74
        assert exo("--help", stdout=full, stderr=full).returncode == 74


def test_closed_streams() -> None:
    def closed(*line: str, streams: str) -> subprocess.CompletedProcess[str]:
        command = f'exec "$@" {streams}'
        return subprocess.run(
            ["/bin/sh", "-c", command, "sh", *EXO, *line],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    answer = closed("help", "exit-codes", streams=">&-")
    assert (answer.returncode, answer.stderr.splitlines()[0]) == (
        74,
        "error: cannot write to standard output: Bad file descriptor",
    )
    assert closed("disc", streams=">&- 2>&-").returncode == 2
    assert closed("help", "exit-codes", streams="2>&- <&-").returncode == 0


def test_ctrl_c_is_130_at_once_and_without_a_traceback(tmp_path: Path) -> None:
    code = (
        "import sys, time, typer\n"
        "from exo_cli import __main__, cli\n"
        "from exo_cli.commands.session import verb\n"
        "@cli.app.command('wait')\n"
        "@verb\n"
        "def wait(session):\n"
        "    session.output.line('waiting')\n"
        "    time.sleep(60)\n"
        "sys.argv[1:] = ['wait']\n"
        "sys.exit(__main__.main())\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (130, "")
    assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    "variables",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}],
    ids=["ascii", "C"],
)
def test_a_stream_that_knows_only_ascii(variables: dict[str, str], tmp_path: Path) -> None:
    environment = {**os.environ, **variables}
    Path(tmp_path / "exo.toml").write_text('topology = "/büro/→.json"\n', encoding="utf-8")
    plain = exo("config", "show", env=environment, cwd=tmp_path)
    assert (plain.returncode, plain.stderr) == (0, "")
    assert any(word in plain.stdout for word in ("/büro/→.json", r"/b\xfcro/\u2192.json"))
    document = json.loads(exo("config", "show", "--json", env=environment, cwd=tmp_path).stdout)
    assert {item["name"]: item["value"] for item in document["settings"]}["topology"] == "/büro/→.json"
    wrong = exo("bürö", env=environment)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: no such verb 'b")


@pytest.mark.parametrize(
    "variables", [{"NO_COLOR": "1"}, {"FORCE_COLOR": "1"}, {"TERM": "dumb"}, {}], ids=str
)
def test_plain_text_stays_plain(variables: dict[str, str]) -> None:
    for line in (["--help"], ["help", "exit-codes"], ["config", "show"]):
        answer = exo(*line, env={**os.environ, **variables})
        assert answer.returncode == 0
        assert "\x1b" not in answer.stdout + answer.stderr


def test_the_console_script_and_the_module_say_the_same() -> None:
    script = Path(sys.executable).with_name("exo")
    if not script.exists():
        pytest.skip("exo is not installed beside this Python")
    for line in (["--version"], ["--help"], ["disc"]):
        answer = subprocess.run([str(script), *line], capture_output=True, text=True, timeout=60, check=False)
        other = exo(*line)
        assert (answer.returncode, answer.stdout, answer.stderr) == (
            other.returncode,
            other.stdout,
            other.stderr,
        )
