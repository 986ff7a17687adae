"""The completion scripts, in the shells themselves."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from exo_cli.cli import app
from exo_cli.commands import shells
from exo_cli.commands.tree import tree

COMPLETIONS = Path(__file__).parents[2] / "completions"
ROOT = tree(typer.main.get_command(app))
EVIL = ["$(touch pwned)", "`touch pwned`", "x y", "-rf"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory with a topology, an `exo` to ask, and some files."""
    (tmp_path / "bin").mkdir()
    exo = tmp_path / "bin/exo"
    exo.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m exo_cli "$@"\n')
    exo.chmod(0o755)
    (tmp_path / "work").mkdir()
    (tmp_path / "work/my topology.json").write_text("")
    names = ["studio", "studio-2", "mini", *EVIL]
    (tmp_path / "topology").write_text(json.dumps({"nodes": [{"name": name} for name in names]}))
    return tmp_path


def environment(home: Path) -> dict[str, str]:
    variables = {"PATH": f"{home}/bin:{os.environ['PATH']}", "EXO_TOPOLOGY": str(home / "topology")}
    return {
        **os.environ,
        **variables,
        "HOME": str(home),
        "TERM": "dumb",
        "PYTHONPATH": str(COMPLETIONS.parent),
    }


def in_shell(shell: str, code: str, home: Path) -> str:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    answer = subprocess.run(
        [shell, "-c", code],
        capture_output=True,
        text=True,
        cwd=home / "work",
        env=environment(home),
        timeout=60,
        check=False,
    )
    assert (answer.returncode, answer.stderr) == (0, "")
    return answer.stdout


def bash(home: Path, *words: str, script: Path = COMPLETIONS / "exo.bash") -> list[str]:
    """What bash offers for the last of `words`."""
    code = f"""
    source {shlex.quote(str(script))}
    COMP_WORDS=({" ".join(shlex.quote(word) for word in words)}) COMP_CWORD={len(words) - 1}
    _exo 2>&1
    [[ ${{#COMPREPLY[@]}} -eq 0 ]] || printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    return in_shell("bash", code, home).splitlines()


def with_node_option(tmp_path: Path) -> Path:
    """The script of an app that has an option and an argument that take a node."""
    made = typer.Typer()

    @made.callback()
    def root() -> None:
        pass

    @made.command()
    def ask(
        node: str = typer.Argument(metavar="NODE"),
        on: str = typer.Option("", "--on", metavar="NODE"),
        level: int = typer.Option(1, "--level"),
    ) -> None:
        pass

    script = tmp_path / "asking.bash"
    script.write_text(shells.script("bash", tree(typer.main.get_command(made))))
    return script


def test_what_is_checked_in_is_what_the_app_gives() -> None:
    answer = subprocess.run(
        [sys.executable, str(COMPLETIONS / "generate.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (answer.returncode, answer.stderr) == (0, "")


@pytest.mark.parametrize(("shell", "name"), [("bash", "exo.bash"), ("zsh", "_exo"), ("fish", "exo.fish")])
def test_the_shell_can_read_it(shell: str, name: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    answer = subprocess.run(
        [shell, "-n", str(COMPLETIONS / name)], capture_output=True, text=True, check=False
    )
    assert (answer.returncode, answer.stderr) == (0, "")


def test_bash_completes_verbs(home: Path) -> None:
    assert set(bash(home, "exo", "")) == {verb.path[0] for verb in ROOT.verbs}
    assert bash(home, "exo", "disc") == ["discover"]
    assert bash(home, "exo", "config", "") == ["show"]
    assert bash(home, "exo", "zzz") == []


def test_bash_completes_every_option_of_every_verb(home: Path) -> None:
    for leaf in ROOT.leaves():
        offered = bash(home, "exo", *leaf.path, "--")
        assert set(offered) == {
            flag
            for option in leaf.options
            for flag in (*option.flags, *option.off_flags)
            if flag.startswith("--")
        }


def test_bash_completes_choices_in_every_spelling(home: Path) -> None:
    assert bash(home, "exo", "help", "--color", "") == ["auto", "always", "never"]
    assert bash(home, "exo", "help", "--color", "a") == ["auto", "always"]
    assert bash(home, "exo", "help", "--color", "=", "n") == ["never"]
    assert bash(home, "exo", "help", "--color", "=") == ["auto", "always", "never"]
    assert bash(home, "exo", "help", "--color=n") == ["--color=never"]
    assert bash(home, "exo", "completion", "") == ["bash", "zsh", "fish"]
    assert "exit-codes" in bash(home, "exo", "help", "e")


def test_bash_completes_after_options_and_their_values(home: Path) -> None:
    assert bash(home, "exo", "config", "show", "--color", "never", "--ori") == ["--origin"]
    # A value that looks like a verb does not make it one.
    assert bash(home, "exo", "config", "--topology", "help", "sh") == ["show"]


def test_bash_completes_files_with_spaces(home: Path) -> None:
    assert bash(home, "exo", "help", "--topology", "my") == ["my topology.json"]


def test_bash_asks_for_nodes_and_runs_nothing_that_stands_in_them(home: Path, tmp_path: Path) -> None:
    script = with_node_option(tmp_path)
    assert bash(home, "exo", "ask", "", script=script) == ["mini", "studio", "studio-2"]
    assert bash(home, "exo", "ask", "--on", "st", script=script) == ["studio", "studio-2"]
    assert bash(home, "exo", "ask", "--level", "", script=script) == []
    assert not (home / "work/pwned").exists()
    (home / "bin/exo").write_text("#!/bin/sh\nprintf '%s\\n' '$(touch pwned)' '`touch pwned`' 'a*b'\n")
    assert bash(home, "exo", "ask", "", script=script) == ["$(touch pwned)", "`touch pwned`", "a*b"]
    assert not (home / "work/pwned").exists()


def test_a_flag_that_takes_a_value_in_one_verb_only(home: Path, tmp_path: Path) -> None:
    made = typer.Typer()

    @made.command()
    def one(mode: str = typer.Option("", "--mode", metavar="FILE")) -> None:
        pass

    @made.command()
    def two(mode: bool = typer.Option(False, "--mode"), other: bool = typer.Option(False, "--other")) -> None:
        pass

    script = tmp_path / "modes.bash"
    script.write_text(shells.script("bash", tree(typer.main.get_command(made))))
    assert bash(home, "exo", "one", "--mode", "my", script=script) == ["my topology.json"]
    assert "--other" in bash(home, "exo", "two", "--mode", "", script=script)


def fish(home: Path, line: str) -> set[str]:
    code = f"source {COMPLETIONS / 'exo.fish'}; complete -C {shlex.quote(line)}"
    return {row.split("\t")[0] for row in in_shell("fish", code, home).splitlines()}


def test_fish_completes_verbs_options_and_choices(home: Path) -> None:
    assert fish(home, "exo ") == {verb.path[0] for verb in ROOT.verbs}
    assert fish(home, "exo config ") == {"show"}
    assert fish(home, "exo config show --ori") == {"--origin"}
    assert fish(home, "exo help --color ") >= {"auto", "always", "never"}
    assert fish(home, "exo completion ") == {"bash", "zsh", "fish"}
    assert "my topology.json" in {name.replace("\\", "") for name in fish(home, "exo help --topology my")}


def zsh(home: Path, line: str) -> str:
    """What zsh lists when TAB is pressed after `line`, in a terminal of its own."""
    code = f"""
    zmodload zsh/zpty
    zpty it zsh -f -i
    zpty -w it "PS1= RPS1= LISTMAX=1000; setopt no_beep no_prompt_sp; stty rows 200 cols 200"
    zpty -w it "autoload -U compinit; compinit -u -D; source {COMPLETIONS / "_exo"}; print rea''dy"
    zpty -r it answer '*ready*'
    zpty -w -n it {shlex.quote(line)}$'\\t'
    sleep 1
    zpty -w -n it $'\\x15print do''ne\\n'
    zpty -r it answer '*done*'
    print -r -- $answer
    """
    return in_shell("zsh", code, home)


@pytest.mark.process
def test_zsh_completes_verbs_options_and_choices(home: Path) -> None:
    listed = zsh(home, "exo ")
    assert all(verb.path[0] in listed for verb in ROOT.verbs)
    listed = zsh(home, "exo config show --")
    assert all(flag in listed for flag in ("--origin", "--json", "--topology"))
    listed = zsh(home, "exo help --color ")
    assert all(choice in listed for choice in ("auto", "always", "never"))


def test_interfaces_of_this_machine_are_offered(home: Path) -> None:
    offered = bash(home, "exo", "discover", "--interface", "l")
    assert {"lo", "lo0"} & set(offered)


def test_models_of_the_catalogue_and_directories_are_offered(home: Path) -> None:
    assert bash(home, "exo", "run", "llama-3.3") == ["llama-3.3-70b"]
    (home / "llama-mine").mkdir()
    assert bash(home, "exo", "run", f"{home}/llama-") == [f"{home}/llama-mine"]


@pytest.mark.process
def test_zsh_and_fish_offer_models_too(home: Path) -> None:
    assert "llama-3.3-70b" in zsh(home, "exo run llama-3.3")
    assert {"pocket", "kimi-k2"} <= fish(home, "exo run ")
