"""The Typer app. Errors become sentences and exit codes here and nowhere else."""

import os
import sys
from typing import Annotated, Any, TextIO

import typer

from exo_cli import VERSION_LINE
from exo_cli import config as configuration
from exo_cli.commands import (
    bench,
    completion,
    config,
    discover,
    fetch,
    help,
    key,
    plan,
    ps,
    rdma_check,
    schema,
    serve_shard,
    unload,
    usage,
)
from exo_cli.commands import (
    run as run_verb,
)
from exo_cli.errors import Exit, ExoError, InputOutput
from exo_cli.output import STDOUT, Output

app = typer.Typer(
    name="exo",
    # Plain help: grep-able, read aloud well by screen readers, and 50 ms faster than Rich's.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    # Typer's own installer edits rc files; `exo completion` prints instead.
    add_completion=False,
    no_args_is_help=True,
    subcommand_metavar="VERB [ARGUMENTS]...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _print_version(asked: bool) -> None:
    if asked:
        print(VERSION_LINE)
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Turn the machines you own into one cluster that runs language models.

    \b
    Examples:
      exo serve-shard            on every machine: announce it, wait for work
      exo discover               who is there, how fast, over which links
      exo plan MODEL             how it would be split, whether it fits, how fast
      exo fetch MODEL            only the bytes each machine needs, each of them once
      exo run MODEL "Hello"      run a model on the nodes that answer, or here
      exo bench MODEL            how fast that is, and whether the tokens are right
      exo rdma-check             why the fast link is or is not usable
      exo key new                one shared secret makes the cluster private

    Every verb takes --json. `exo help VERB` and `man exo-VERB` say more.
    """


for module in (
    serve_shard,
    discover,
    plan,
    fetch,
    run_verb,
    bench,
    ps,
    unload,
    rdma_check,
    key,
    config,
    completion,
    schema,
    help,
):
    module.register(app)


def run(arguments: list[str]) -> int:
    """Run one command line; the return value is the exit code."""
    _fill_closed_streams()
    settings: dict[str, Any] = {}
    try:
        failure = _attempt(arguments, settings)
        if isinstance(failure, int):
            return failure
        if _is_on("EXO_DEBUG"):
            import traceback

            traceback.print_exception(failure)
        _output_of(arguments, settings).error(failure)
    except OSError as error:  # the error itself could not be written
        _silence(sys.stderr)
        return Exit.BROKEN_PIPE if isinstance(error, BrokenPipeError) else Exit.INPUT_OUTPUT
    return failure.exit


def _attempt(arguments: list[str], settings: dict[str, Any]) -> int | ExoError:
    """The exit code, or why there is none; `settings` receives what the files say."""
    command = typer.main.get_command(app)
    try:
        settings.update(_settings_from_files(command, arguments))
        with command.make_context("exo", list(arguments)) as context:
            # Only now: Typer would take the settings of the verb help for a value of --help.
            context.default_map = settings
            code = int(command.invoke(context) or 0)
        sys.stdout.flush()
        return code
    except typer.Exit as stop:
        return _flushed(stop.exit_code)
    except ExoError as error:
        return error
    except typer.TyperException as error:
        if usage.is_bare_call(error):
            print(error.message)
            return _flushed(Exit.USAGE)
        return usage.problem(error, command, arguments)
    except (typer.Abort, KeyboardInterrupt):
        return Exit.INTERRUPTED
    except OSError as error:
        return _refused(error)
    except SystemExit as stop:  # Rich's live display ends the process where its reader has gone
        return _refused(stop.__context__) if isinstance(stop.__context__, OSError) else int(stop.code or 0)
    except Exception as error:  # noqa: BLE001 - the edge of the process: a bug must end in a sentence too
        return _caused(
            ExoError(
                f"{type(error).__name__}: {error}",
                hint="This is a bug in exo. EXO_DEBUG=1 prints where it happened.",
            ),
            error,
        )


def _settings_from_files(command: Any, arguments: list[str]) -> dict[str, Any]:
    """What exo.toml and config.toml say, in the shape Typer takes defaults in."""
    try:
        files = configuration.read_files()
        return config.defaults(command, files) if files else {}
    except ExoError:
        # Help must answer most of all when a file is wrong.
        if arguments[:1] in ([], ["help"], ["completion"]) or usage.asks(arguments, "-h", "--help"):
            return {}
        raise


def _flushed(code: int) -> int | ExoError:
    try:
        sys.stdout.flush()
    except OSError as error:
        return _refused(error)
    return code


def _refused(error: OSError) -> int | ExoError:
    """What the system said no to: standard output, or another thing."""
    if _came_from_stdout(error):
        _silence(sys.stdout)
        if isinstance(error, BrokenPipeError):
            return Exit.BROKEN_PIPE
        return _caused(
            InputOutput(
                f"cannot write to standard output: {error.strerror}",
                hint="Free some space there or send the output elsewhere.",
            ),
            error,
        )
    about = f"{error.filename}: " if error.filename else ""
    return _caused(
        InputOutput(
            f"the system refused: {about}{error.strerror or error}",
            hint="Mend what it names and run the command again. EXO_DEBUG=1 prints where it happened.",
        ),
        error,
    )


def _came_from_stdout(error: OSError) -> bool:
    """Whether standard output refused: Typer's own words do not go through `Output`, which would say so."""
    if error.filename is not None:
        return bool(error.filename == STDOUT)
    import select

    try:
        sys.stdout.flush()
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
    except OSError as again:  # it still holds what it could not write
        return again.errno == error.errno
    gone = select.POLLERR | select.POLLHUP
    return isinstance(error, BrokenPipeError) and any(state & gone for _, state in poll.poll(0))


def _caused(failure: ExoError, cause: BaseException) -> ExoError:
    failure.__cause__ = cause
    return failure


def _output_of(arguments: list[str], settings: dict[str, Any]) -> Output:
    """Where the words of a command line go that may not have been parsed."""
    for word in arguments:
        settings = settings.get(word, settings) if isinstance(settings.get(word), dict) else settings
    return Output(
        json=usage.asks(arguments, "--json") or _is_on("EXO_JSON") or settings.get("json") is True,
        quiet=usage.asks(arguments, "-q", "--quiet") or _is_on("EXO_QUIET") or settings.get("quiet") is True,
    )


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "").lower() not in ("", "0", "false", "no", "off", "f", "n")


def _fill_closed_streams() -> None:
    # `exo >&-`: Python has no stream then, and the first socket would become descriptor 1. A stream
    # that cannot be written says so when something is; standard error has nobody to tell.
    if sys.stdout is None:
        sys.stdout = open(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _silence(stream: TextIO) -> None:
    # Python flushes once more at exit; what could not be written then goes to a sink.
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except OSError:
        return
