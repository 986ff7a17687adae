import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from exo_cli.cli import run
from exo_cli.commands import complete
from exo_cli.schemas import registry
from tests.support.cli import exo
from tests.support.jsonschema import problems


@pytest.mark.parametrize(
    ("shell", "begins"),
    [("bash", "# bash completion"), ("zsh", "#compdef exo\n"), ("fish", "# fish completion")],
)
def test_it_prints_the_script_and_writes_nothing(
    shell: str, begins: str, clean_environment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert script.startswith(begins)
    assert list(clean_environment.iterdir()) == []
    assert run(["completion", shell, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert problems(document, registry.json_schema("completion")) == []
    assert document["script"] == script


def topology(*names: object) -> str:
    return json.dumps({"schema": "exo.topology/1", "nodes": [{"name": name} for name in names]})


def asked(kind: str, **options: str) -> str:
    answer = exo("__complete", kind, env={**os.environ, **options})
    assert (answer.returncode, answer.stderr) == (0, "")
    return answer.stdout


def test_node_names_come_from_the_usual_file_the_variable_or_the_settings(
    clean_environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert asked("nodes") == ""
    usual = clean_environment / ".local/state/exo/topology.json"
    usual.parent.mkdir(parents=True)
    usual.write_text(topology("studio", "mini-2", "studio"))
    assert asked("nodes") == "mini-2\nstudio\n"
    (tmp_path / "set.json").write_text(topology("from-file"))
    Path("exo.toml").write_text(f'topology = "{tmp_path}/set.json"\n')
    assert asked("nodes") == "from-file\n"
    (tmp_path / "env.json").write_text(topology("from-env"))
    assert asked("nodes", EXO_TOPOLOGY=str(tmp_path / "env.json")) == "from-env\n"


def test_names_that_a_shell_could_run_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    file.write_text(
        topology("ok", "$(touch x)", "a b", "`id`", "-rf", "x;y", "", "é", "n\nm", 7, None, "x" * 300)
    )
    assert asked("nodes", EXO_TOPOLOGY=str(file)) == "ok\n"


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "3", '{"nodes": 3}', '{"nodes": [3, {}]}', "[" * 100_000, "\x00\xff"]
)
def test_a_broken_file_gives_nothing_and_no_words(content: str, tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    file.write_text(content, encoding="latin-1")
    assert asked("nodes", EXO_TOPOLOGY=str(file)) == ""


def test_broken_settings_an_unknown_kind_and_no_home_are_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("exo.toml").write_text("= broken")
    assert asked("nodes") == ""
    assert asked("no-such-kind") == ""
    assert exo("__complete").returncode == 0


def test_interfaces_are_those_of_this_machine() -> None:
    assert "lo" in asked("interfaces").split() or "lo0" in asked("interfaces").split()


def test_models_are_those_of_the_catalogue() -> None:
    assert {"pocket", "llama-3.2-1b", "kimi-k2"} <= set(asked("models").split())


def test_a_reader_that_went_away_is_not_an_error(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    answer = exo("__complete", "interfaces", stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (answer.returncode, answer.stderr) == (0, "")


def test_it_answers_without_the_app() -> None:
    code = (
        "import sys; from exo_cli.__main__ import _main; _main(['__complete', 'nodes']); print(*sys.modules)"
    )
    modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"typer", "msgspec", "rich", "exo_cli.cli"} & set(modules)
    assert complete.complete([]) == 0
