"""The Typer app. Errors become sentences and exit codes here and nowhere else."""

import os
import sys
from typing import Annotated, Any

import typer

from exo_cli import __version__
from exo_cli import config as configuration
from exo_cli.commands import completion, config, discover, help, key, schema, serve_shard
from exo_cli.errors import Exit, ExoError, InputOutput, UsageProblem
from exo_cli.output import Output

app = typer.Typer(
    name="exo",
    # Plain help: grep-able, read aloud well by screen readers, and 50 ms faster than Rich's.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    # Typer's own installer edits rc files; `exo completion` prints instead.
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"exo {__version__} (independent program, not affiliated with exo-explore/exo)")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Turn the machines you own into one cluster that runs language models.

    \b
    Examples:
      exo serve-shard            on every machine: announce it, wait for work
      exo discover               who is there, how fast, over which links
      exo key new                one shared secret makes the cluster private

    Every verb takes --json. `exo help VERB` and `man exo-VERB` say more.
    """


for module in (serve_shard, discover, key, config, completion, schema, help):
    module.register(app)


def run(arguments: list[str]) -> int:
    """Run one command line; the return value is the exit code."""
    try:
        return _run(arguments)
    except BrokenPipeError:
        _silence_stdout()
        return Exit.BROKEN_PIPE


def _run(arguments: list[str]) -> int:
    failure: ExoError
    try:
        result = typer.main.get_command(app)(
            arguments, prog_name="exo", standalone_mode=False, default_map=_defaults_from_files()
        )
        sys.stdout.flush()
        return int(result or 0)
    except BrokenPipeError:
        raise
    except ExoError as error:
        failure = error
    except typer.TyperException as error:
        return _usage(error, arguments)
    except (typer.Abort, KeyboardInterrupt):
        return Exit.INTERRUPTED
    except OSError as error:
        failure = InputOutput(
            f"the system refused: {error.strerror or error}", hint="Free what it names and run it again."
        )
        failure.__cause__ = error
    except Exception as error:  # the edge of the process: a bug must still end in a sentence and a code
        failure = ExoError(
            f"{type(error).__name__}: {error}", hint="This is a bug in exo. EXO_DEBUG=1 prints where it happened."
        )
        failure.__cause__ = error
    if os.environ.get("EXO_DEBUG"):
        import traceback

        traceback.print_exception(failure)
    _output_of(arguments).error(failure)
    return failure.exit


def _usage(error: Any, arguments: list[str]) -> int:
    """A command line that Typer refused."""
    from typer.main import get_command

    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.message)
        return Exit.USAGE
    message = str(error.format_message()).rstrip(".")
    path = context.command_path if context is not None else get_command(app).name
    failure = UsageProblem(message, hint=f"{path} --help lists what it takes.")
    _output_of(arguments).error(failure)
    return failure.exit


def _output_of(arguments: list[str]) -> Output:
    """Where the words of a command line go that may not have been parsed."""
    return Output(json="--json" in arguments or bool(os.environ.get("EXO_JSON")), quiet=False)


def _silence_stdout() -> None:
    # Python flushes standard output once more at exit; the reader is gone, so give it a sink.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _defaults_from_files() -> dict[str, Any]:
    """What exo.toml and config.toml say, in the shape Typer takes defaults in."""
    files = configuration.read_files()
    if not files:
        return {}
    from exo_cli.commands.config import defaults

    return defaults(typer.main.get_command(app), files)


