"""`exo completion SHELL`: print a completion script, made from the options there are."""

from typing import Annotated, Literal

import typer

from exo_cli.commands.session import Session, verb


def register(app: typer.Typer) -> None:
    @app.command("completion")
    @verb
    def completion(
        session: Session,
        shell: Annotated[
            Literal["bash", "zsh", "fish"], typer.Argument(metavar="SHELL", help="bash, zsh or fish.")
        ],
    ) -> None:
        """Print a completion script for a shell.

        \b
        Examples:
          exo completion bash > ~/.local/share/bash-completion/completions/exo
          exo completion zsh > ~/.zfunc/_exo       with fpath+=~/.zfunc before compinit
          exo completion fish > ~/.config/fish/completions/exo.fish

        Nothing is installed and no rc file is edited. The wheel brings the same scripts, below share/ of
        where it is installed.
        """
        from exo_cli.commands import shells
        from exo_cli.commands.tree import tree

        script = shells.script(shell, tree(typer.main.get_command(app)))
        if session.output.json:
            from exo_cli.schemas.reference import CompletionScript

            session.output.struct(CompletionScript(shell=shell, script=script))
        else:
            session.output.write(script)
