"""What a start imports. Times differ from machine to machine; the list of modules does not."""

import subprocess
import sys

import pytest
import typer

from exo_cli.cli import app
from exo_cli.commands.tree import tree

HEAVY = {"mlx", "mlx_lm", "transformers", "numpy", "numba", "grpc", "huggingface_hub", "pydantic"}
LATE = {"msgspec", "rich", "cryptography", "psutil", "asyncio", "google", "httpx", "tokenizers", "jinja2"}
VERBS = [verb for verb in tree(typer.main.get_command(app)).all() if verb.path]
CODE = """
import sys
sys.argv = ["exo", *sys.argv[1:]]
from exo_cli.__main__ import main
code = main()
sys.stderr.write("\\n" + " ".join(sorted(sys.modules)))
sys.exit(code)
"""


def imported(*arguments: str) -> tuple[int, set[str]]:
    """The exit code, and the top names of everything that was imported."""
    answer = subprocess.run(
        [sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    names = answer.stderr.splitlines()[-1].split()
    assert "exo_cli" in names
    return answer.returncode, {name.split(".")[0] for name in names}


@pytest.mark.parametrize(
    "line",
    [
        ["--help"],
        [],
        *([*verb.path, "--help"] for verb in VERBS),
        ["help"],
        ["help", "exit-codes"],
        ["help", "environment"],
        ["completion", "bash"],
        ["config", "show"],
    ],
    ids=lambda line: " ".join(line) or "nothing",
)
def test_help_is_light(line: list[str]) -> None:
    code, names = imported(*line)
    assert code == (0 if line else 2)
    assert names & (HEAVY | LATE) == set()


@pytest.mark.parametrize(
    "line", [["disc"], ["--nonsense"], *([*verb.path, "--nonsense"] for verb in VERBS)], ids=" ".join
)
@pytest.mark.parametrize("json", [[], ["--json"]], ids=["words", "json"])
def test_a_usage_error_is_light(line: list[str], json: list[str]) -> None:
    code, names = imported(*line, *json)
    assert code == 2
    assert names & (HEAVY | LATE) == set()


@pytest.mark.parametrize(
    "line", [["--version"], ["-V"], ["__complete", "nodes"], ["__complete", "x"]], ids=" ".join
)
def test_version_and_completion_do_not_even_need_typer(line: list[str]) -> None:
    code, names = imported(*line)
    assert code == 0
    assert names & (HEAVY | LATE | {"typer"}) == set()


def test_the_check_can_fail() -> None:
    _, names = imported("schema", "error")
    assert "msgspec" in names
