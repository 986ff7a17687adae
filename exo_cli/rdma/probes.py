"""What exo's own probes say: the environment, MLX, the last attempt to start jaccl. Pure."""

import re
from dataclasses import dataclass

import msgspec

from exo_cli.rdma.text import Unreadable, decoded, lines
from exo_cli.schemas.first_use import shared


class Mlx(msgspec.Struct, frozen=True, kw_only=True):
    """Versions are null where the package is not installed."""

    mlx: str | None
    mlx_lm: str | None
    backends: dict[str, bool]
    librdma: bool | None

    def has(self, backend: str) -> bool:
        return self.backends.get(backend, False)


@dataclass(frozen=True, slots=True)
class Attempt:
    """Why jaccl did not start."""

    text: str
    errno: int | None


def environment(data: bytes) -> dict[str, str]:
    found = {}
    for line in lines(data, empty=True):
        match = re.fullmatch(r"([A-Z][A-Z0-9_]*)=(.*)", line)
        if match is None:
            raise Unreadable("it holds lines that set nothing")
        found[match[1]] = match[2]
    return found


def mlx(data: bytes) -> Mlx:
    try:
        return msgspec.json.decode(decoded(data).encode(), type=shared(Mlx))
    except msgspec.MsgspecError:
        raise Unreadable("it is not what the probe prints, or is cut off") from None


def jaccl_error(data: bytes) -> Attempt:
    text = " ".join(line.strip() for line in lines(data))
    if not text.startswith("[jaccl]"):
        raise Unreadable("it is no error of jaccl")
    match = re.search(r"\berrno[ =]([0-9]{1,3})\b", text)
    return Attempt(text[:400], int(match[1]) if match else None)
