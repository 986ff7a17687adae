"""Options that several verbs have, so that one name means one thing everywhere."""

import re
from typing import Annotated

import typer

from exo_cli.errors import UsageProblem

PeerOption = Annotated[
    list[str] | None,
    typer.Option(
        "--peer",
        envvar="EXO_PEER",
        metavar="HOST[:PORT]",
        help="Also ask this host: for VPNs, other subnets and containers. Repeatable.",
    ),
]
InterfaceOption = Annotated[
    list[str] | None,
    typer.Option(
        "--interface",
        envvar="EXO_INTERFACE",
        metavar="NAME",
        help="Use only this interface (en5, eth*). Repeatable.",
    ),
]
NoInterfaceOption = Annotated[
    list[str] | None,
    typer.Option(
        "--no-interface",
        envvar="EXO_NO_INTERFACE",
        metavar="NAME",
        help="Never use this interface. Repeatable.",
    ),
]
InsecureFlag = Annotated[
    bool,
    typer.Option(
        "--insecure",
        envvar="EXO_INSECURE",
        help="Use the published key: anybody on a private network may join. Private addresses only.",
    ),
]
NameOption = Annotated[
    str | None,
    typer.Option(
        "--name", envvar="EXO_NAME", metavar="NAME", help="This node's name; the host's if not given."
    ),
]
ListenOption = Annotated[
    str | None,
    typer.Option(
        "--listen",
        envvar="EXO_LISTEN",
        metavar="HOST:PORT",
        help="Where to listen; port 52416 or the next free one.",
    ),
]

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "": 1.0}


def seconds(text: str, option: str) -> float:
    """A duration such as 500ms, 30s, 2m or 1h; a bare number means seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|min|m|h|)", text.strip())
    if match is None:
        raise UsageProblem(f"'{text}' is no duration for {option}", hint="Write it like 500ms, 30s or 2m.")
    return float(match[1]) * _UNITS[match[2]]


INSECURE_WARNING = (
    "--insecure: the key is published, so anybody on this network can run, stop and read "
    "everything in this cluster; exo key new makes it private"
)
