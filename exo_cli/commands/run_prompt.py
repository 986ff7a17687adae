"""Where `exo run` takes its prompt from: an argument, a file, standard input, or a person who types."""

import os
import stat
import sys
from pathlib import Path

from exo_cli.errors import BadData, InputOutput, NotFound, UsageProblem
from exo_cli.output import Output

MAX_PROMPT_BYTES = 64 * 1024 * 1024
WAIT_S = 1.0
HINT = "Say exo run MODEL PROMPT, or give it by --prompt-file or a pipe."


def gather(argument: str | None, file: Path | None, *, no_stdin: bool, output: Output) -> str | None:
    """The prompt; None means a chat with whoever sits at the terminal."""
    if argument is not None and file is not None:
        raise UsageProblem("a prompt and --prompt-file are two prompts", hint="Leave one of them out.")
    if argument == "-" or (file is not None and str(file) == "-"):
        if no_stdin:
            raise UsageProblem(
                "- means standard input, which --no-stdin forbids", hint="Leave one of them out."
            )
        return _needed(_stdin(output))
    if file is not None:
        return _needed(_decoded(_file(file), str(file)))
    if argument is not None:
        before = "" if no_stdin or not _is_offered() else _stdin(output).rstrip("\n")
        return _needed(f"{before}\n\n{argument}" if before else argument)
    if no_stdin:
        raise UsageProblem("there is no prompt", hint=HINT)
    if not _is_terminal():
        return _needed(_stdin(output))
    if output.json or not output.stdout_is_a_terminal:
        raise UsageProblem("there is no prompt", hint=HINT)
    return None


def _needed(text: str) -> str:
    if not text.strip():
        raise UsageProblem("the prompt is empty", hint=HINT)
    return text


def _is_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _is_offered() -> bool:
    """Whether somebody put something there: a pipe or a file, not what a daemon happens to inherit."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _stdin(output: Output) -> str:
    """All of standard input; says so if nothing comes."""
    import threading

    if sys.stdin is None:
        return ""
    waiting = threading.Timer(
        WAIT_S,
        lambda: output.note("reading standard input as well: end it with Ctrl-D, or say --no-stdin"),
    )
    waiting.daemon = True
    waiting.start()
    try:
        data = sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1)
    except OSError as error:
        raise InputOutput(f"cannot read standard input: {(error.strerror or str(error)).lower()}") from error
    finally:
        waiting.cancel()
    return _decoded(data, "standard input")


def _file(path: Path) -> bytes:
    try:
        with open(path, "rb") as source:
            return source.read(MAX_PROMPT_BYTES + 1)
    except FileNotFoundError as error:
        raise NotFound(f"there is no file {path}", hint="Check the name after --prompt-file.") from error
    except OSError as error:
        raise InputOutput(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error


def _decoded(data: bytes, where: str) -> str:
    if len(data) > MAX_PROMPT_BYTES:
        raise BadData(f"{where} has more than {MAX_PROMPT_BYTES // 2**20} MiB", hint="Give a shorter prompt.")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise BadData(
            f"{where} is not UTF-8 text", hint="Convert it first, for example with iconv."
        ) from error
