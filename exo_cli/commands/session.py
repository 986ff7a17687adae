"""What every verb shares: the common options, and the session made from them.

`@verb` gives a function the common options, so that no verb can forget one. Knows nothing of any
particular verb.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Concatenate, Literal, ParamSpec

import typer

from exo_cli import config
from exo_cli.errors import ExoError
from exo_cli.output import Output

P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Session:
    """One call of a verb: where its words go, and which topology file it means."""

    output: Output
    topology: Path


JsonFlag = Annotated[bool, typer.Option("--json", envvar="EXO_JSON", help="Print JSON for programs.")]
QuietFlag = Annotated[
    bool, typer.Option("-q", "--quiet", envvar="EXO_QUIET", help="No progress and no hints; ids only.")
]
VerboseCount = Annotated[
    int, typer.Option("-v", "--verbose", count=True, show_default=False, help="Say more; -vv for everything.")
]
TopologyOption = Annotated[
    Path | None,
    typer.Option(
        "--topology", envvar="EXO_TOPOLOGY", metavar="PATH", help="The topology file, if not the usual one."
    ),
]
ColorOption = Annotated[
    Literal["auto", "always", "never"],
    typer.Option("--color", envvar="EXO_COLOR", help="Whether to colour what a terminal shows."),
]
LogFileOption = Annotated[
    Path | None,
    typer.Option(
        "--log-file", envvar="EXO_LOG_FILE", metavar="PATH", help="Append what happens as JSON lines."
    ),
]

_COMMON: tuple[tuple[str, Any, object], ...] = (
    ("json", JsonFlag, False),
    ("quiet", QuietFlag, False),
    ("verbose", VerboseCount, 0),
    ("topology", TopologyOption, None),
    ("color", ColorOption, "auto"),
    ("log_file", LogFileOption, None),
)
COMMON_NAMES = frozenset(name for name, _, _ in _COMMON)


def verb(function: Callable[Concatenate[Session, P], int | None]) -> Callable[..., int]:
    """`function` as a Typer command with the common options; its first parameter is the session."""

    call: Callable[..., int | None] = function

    def command(**options: Any) -> int:
        common = {name: options.pop(name) for name in COMMON_NAMES}
        output = Output(
            json=common["json"],
            quiet=common["quiet"],
            verbose=common["verbose"],
            color=common["color"],
            log_file=str(common["log_file"]) if common["log_file"] else None,
        )
        output.open_log()
        try:
            return call(Session(output, common["topology"] or config.topology_path()), **options) or 0
        except ExoError as error:
            output.record("error", f"{error.code}: {error.message}")
            raise
        finally:
            output.close()

    signature = inspect.signature(function, eval_str=True)
    own = list(signature.parameters.values())[1:]
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, annotation, default in _COMMON
    ]
    own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
    command.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*own, *shared], return_annotation=int
    )
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *shared]}
    command.__doc__ = function.__doc__
    command.__name__ = function.__name__
    command.__module__ = function.__module__
    return command
