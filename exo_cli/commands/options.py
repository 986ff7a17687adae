"""Options that several verbs have, so that one name means one thing everywhere."""

import math
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from exo_cli.errors import ExoError, Unavailable, UsageProblem

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
PlanOption = Annotated[
    Path | None, typer.Option("--plan", metavar="PATH", help="Run on the nodes of this plan.json.")
]
NodesOption = Annotated[
    int | None,
    typer.Option(
        "--nodes",
        min=1,
        metavar="N",
        help="Split it over so many nodes; else over as many as are best.",
    ),
]
NumericsOption = Annotated[
    Literal["exact", "fast"] | None,
    typer.Option(
        "--numerics",
        envvar="EXO_NUMERICS",
        help="exact: as mlx-lm, token for token. fast: on CPUs by kernels of our own, within a stated bound.",
        show_default="fast where all nodes that are used are CPUs, else exact",
    ),
]
KvBitsOption = Annotated[
    Literal["8"] | None,
    typer.Option(
        "--kv-bits",
        metavar="8",
        help="Keep the caches of requests in 8 bits a number: less memory, a little less exact.",
    ),
]
DataPortsOption = Annotated[
    str,
    typer.Option(
        "--data-ports",
        envvar="EXO_DATA_PORTS",
        metavar="A-B",
        help="TCP ports on which nodes fetch the model from here; 0 is any free one.",
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


def seconds_or_forever(text: str, option: str) -> float:
    """A duration, or `forever`."""
    try:
        return math.inf if text.strip().lower() == "forever" else seconds(text, option)
    except UsageProblem as error:
        error.hint = "Write it like 30s or 10m; 0 is as soon as it is idle, and forever is for ever."
        raise


LOOKUP_S = 5.0


def kv_bits_of(text: Literal["8"] | None) -> Literal[8] | None:
    """--kv-bits as a number."""
    return None if text is None else 8


def peers(texts: Sequence[str] | None) -> tuple[tuple[str, int], ...]:
    """What --peer names, as addresses. A name server that does not answer is not waited for."""
    from exo_cli.cluster.ports import parse_peer

    found: dict[str, tuple[str, int] | ExoError] = {}

    def look_up(text: str) -> None:
        try:
            found[text] = parse_peer(text)
        except ExoError as error:
            found[text] = error

    for text in dict.fromkeys(texts or ()):
        thread = threading.Thread(target=look_up, args=(text,), daemon=True)
        thread.start()
        thread.join(LOOKUP_S)
        result = found.get(
            text,
            Unavailable(
                f"no name server answers within {LOOKUP_S:g} s what '{text}' is",
                hint="Give the address itself.",
            ),
        )
        if isinstance(result, ExoError):
            raise result
    return tuple(address for address in found.values() if not isinstance(address, ExoError))


_SIZES = {"": 1, "b": 1} | {
    f"{letter}{kind}": base**power
    for power, letter in enumerate("kmgt", 1)
    for kind, base in (("b", 1000), ("ib", 1024), ("", 1000))
}


def size_bytes(text: str, option: str) -> int:
    """A size such as 24GB, 24GiB or 512MiB; a bare number means bytes."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)", text.strip().lower())
    unit = _SIZES.get(match[2]) if match is not None else None
    if match is None or unit is None or float(match[1]) == 0:
        raise UsageProblem(f"'{text}' is no size for {option}", hint="Write it like 24GB, 24GiB or 512MiB.")
    return int(float(match[1]) * unit)


def numbers(text: str, option: str, *, least: int) -> tuple[int, ...]:
    """Whole numbers with commas between them, each once, in the order in which they were said."""
    words = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,9}", word) and int(word) >= least for word in words):
        raise UsageProblem(
            f"'{text}' are no numbers for {option}, from {least} on", hint="Write them like 1,2,4,8."
        )
    return tuple(dict.fromkeys(map(int, words)))


def count_of(text: str, option: str) -> int:
    """A number of tokens such as 8192, 32k or 1M; k is 1024, as model makers count contexts."""
    match = re.fullmatch(r"([0-9]{1,9})\s*([kKmM]?)", text.strip())
    if match is None or int(match[1]) == 0:
        raise UsageProblem(f"'{text}' is no number of tokens for {option}", hint="Write it like 8192 or 32k.")
    return int(match[1]) * {"": 1, "k": 1024, "m": 1024**2}[match[2].lower()]


def share_of(text: str, option: str) -> float:
    """A share such as 10% or 0.1; from 0 to below 1."""
    match = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]+)?)\s*(%?)", text.strip())
    share = float(match[1]) / (100 if match[2] else 1) if match is not None else 1.0
    if not 0 <= share < 1:
        raise UsageProblem(f"'{text}' is no share for {option}", hint="Write it like 10% or 0.1.")
    return share


def port_range(text: str, option: str, *, least: int = 1) -> tuple[int, int]:
    """`A-B` or one port, `least` of them; 0 means any free ones."""
    match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", text.strip())
    low = int(match[1]) if match else -1
    high = int(match[2]) if match and match[2] else low
    if match is None or not 0 <= low <= high < 65_536:
        raise UsageProblem(f"'{text}' are no ports for {option}", hint="Write them like 52500-52520.")
    if low and high - low + 1 < least:
        raise UsageProblem(
            f"{option} {text} is too few: each loaded stage needs {least} ports",
            hint="Write them like 52500-52520.",
        )
    return low, high


INSECURE_WARNING = (
    "--insecure: the key is published, so anybody on this network can run, stop and read "
    "everything in this cluster; exo key new makes it private"
)
