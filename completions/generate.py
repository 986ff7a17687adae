"""Write the completion scripts that the wheel installs; --check says whether they are up to date."""

import sys
from pathlib import Path

import typer

from exo_cli.cli import app
from exo_cli.commands import shells
from exo_cli.commands.tree import tree

HERE = Path(__file__).parent
FILES = {"bash": "exo.bash", "zsh": "_exo", "fish": "exo.fish"}


def scripts() -> dict[Path, str]:
    """Every script by its path."""
    root = tree(typer.main.get_command(app))
    return {HERE / name: shells.script(shell, root) for shell, name in FILES.items()}


def main(arguments: list[str]) -> int:
    stale = [
        path
        for path, text in scripts().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    if arguments == ["--check"]:
        for path in stale:
            print(f"{path.name} is not what the app would give; run make completions", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.write_text(scripts()[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
