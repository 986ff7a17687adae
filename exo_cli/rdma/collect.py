"""Asks this machine everything that a capture holds: read-only commands, files, and exo's own probes.

Each has a deadline and a bound on what is kept; one that is not there or hangs is an answer too. Knows
nothing of what the texts mean.
"""

import os
import subprocess
import sys
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from exo_cli.rdma.capture import MAX_BYTES, NOT_THERE, TIMED_OUT, Capture, Said
from exo_cli.rdma.linux_texts import TREE
from exo_cli.rdma.sources import ENVIRONMENT, SOURCES, Platform, Source

COMMAND_S: Final = 10.0
MLX_S: Final = 30.0
_AT_ONCE: Final = 4
# At boot, nobody's shell has set the path; these are where the system's own tools are.
_PATH: Final = "/usr/bin:/bin:/usr/sbin:/sbin"
_MLX: Final = (sys.executable, "-m", "exo_cli.engine.collective", "backends")
_DEVICE_FILES: Final = ("fw_ver", "board_id", "hca_type", "node_guid", "node_type")
_PORT_FILES: Final = ("state", "phys_state", "rate", "link_layer", "lid", "sm_lid", "lid_mask_count")
_ZERO_GID: Final = "0000:0000:0000:0000:0000:0000:0000:0000"


def this_platform() -> Platform:
    return "darwin" if sys.platform == "darwin" else "linux"


def collect(node: str, *, only: Collection[str] = (), attempt: str | None = None) -> Capture:
    """What this machine says; `only` names some of the texts, none means all. `attempt` is the last line
    of a failed attempt to start jaccl."""
    platform = this_platform()
    wanted = {name: source for name, source in SOURCES[platform].items() if not only or name in only}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        said = list(pool.map(lambda source: _ask(source, attempt), wanted.values()))
    texts = {name: each for name, each in zip(wanted, said, strict=True) if each is not None}
    return Capture(platform, node, texts)


def _ask(source: Source, attempt: str | None) -> Said | None:
    if source.argv:
        return run(source.argv)
    if source.path:
        return tree(Path(source.path)) if source.path + "/" == TREE else _file(Path(source.path))
    if source.probe == "environment":
        return Said(0, environment(os.environ).encode())
    if source.probe == "mlx":
        return run(_MLX, timeout_s=MLX_S)
    if source.probe == "jaccl_error" and attempt is not None:
        return Said(1, f"{attempt}\n".encode())
    return None


def run(argv: tuple[str, ...], *, timeout_s: float = COMMAND_S) -> Said:
    """One command to its end, or to the deadline."""
    here = {**os.environ, "LC_ALL": "C"}
    here["PATH"] = ":".join(filter(None, (here.get("PATH"), _PATH)))
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, env=here, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return Said(TIMED_OUT, there=False)
    except OSError:
        return Said(NOT_THERE, there=False)
    return Said(done.returncode, done.stdout[:MAX_BYTES], done.stderr[:MAX_BYTES])


def environment(variables: Mapping[str, str]) -> str:
    """The variables that steer MLX's collectives, one a line."""
    kept = sorted(
        name for name in variables if name.startswith(ENVIRONMENT) or name == "CUDA_VISIBLE_DEVICES"
    )
    return "".join(f"{name}={' '.join(variables[name].splitlines())}\n" for name in kept)


def _file(path: Path) -> Said:
    try:
        with path.open("rb") as file:
            return Said(0, file.read(MAX_BYTES))
    except OSError as error:
        return Said(error.errno or 1, there=False)


def tree(base: Path) -> Said:
    """The files below /sys/class/infiniband that say something, one a line."""
    try:
        devices = sorted(base.iterdir())
    except OSError as error:
        return Said(error.errno or 1, there=False)
    found: list[str] = []
    for device in devices:
        found += [_line(base, device / name) for name in _DEVICE_FILES]
        for port in _children(device / "ports"):
            found += [_line(base, port / name) for name in _PORT_FILES]
            for gid in _children(port / "gids"):
                value = _first_line(gid)
                if value not in ("", _ZERO_GID):
                    found.append(_line(base, gid))
                    found += [
                        _line(base, port / "gid_attrs" / kind / gid.name) for kind in ("types", "ndevs")
                    ]
    return Said(0, "".join(found).encode()[:MAX_BYTES])


def _children(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir(), key=lambda path: (len(path.name), path.name))
    except OSError:
        return []


def _line(base: Path, path: Path) -> str:
    value = _first_line(path)
    return f"{TREE}{path.relative_to(base)}:{value}\n" if value else ""


def _first_line(path: Path) -> str:
    try:
        return path.read_text(errors="replace").split("\n")[0].strip()
    except OSError:
        return ""
