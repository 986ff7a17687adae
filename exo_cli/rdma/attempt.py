"""`--probe`: one bounded attempt to measure MLX's own collective, in processes of its own.

Where something has set up a group already (`mlx.launch` does), it is joined as it is; else two processes
of this machine make one over the ring. Never tried twice: on Thunderbolt each failed attempt may take
resources that only a restart gives back. Knows nothing of MLX.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from exo_cli.schemas.doctor import Collective
from exo_cli.schemas.first_use import shared

MODULE: Final = "exo_cli.engine.collective"
HERE: Final = "this machine, two processes"
_CHECK_EVERY_S: Final = 0.02


class _Report(msgspec.Struct, kw_only=True):
    backend: str
    rank: int
    ranks: int
    latency_us_p50: float
    latency_us_p99: float
    bytes_per_s: float
    message_bytes: int
    rounds: int


@dataclass(frozen=True, slots=True)
class Group:
    """Who is to measure: an environment for each process that is started here."""

    backend: str
    where: str
    ranks: tuple[Mapping[str, str], ...]


def group_of(environment: Mapping[str, str]) -> Group | None:
    """The group that the environment sets up, by the variables that MLX reads."""
    if "MLX_RANK" not in environment:
        return None
    if "MLX_IBV_DEVICES" in environment or "MLX_JACCL_COORDINATOR" in environment:
        backend = "jaccl"
    elif "NCCL_HOST_IP" in environment:
        backend = "nccl"
    elif "MLX_HOSTFILE" in environment:
        backend = "ring"
    else:
        return None
    return Group(backend, f"joined as rank {environment['MLX_RANK']}", ({},))


def measure(deadline_s: float, environment: Mapping[str, str] = os.environ) -> Collective:
    """One attempt; what it ends with is an answer too."""
    began_s = time.monotonic()
    joined = group_of(environment)
    with tempfile.TemporaryDirectory(prefix="exo-probe-") as directory:
        group = joined or _two_here(directory)
        command = (sys.executable, "-m", MODULE, "measure", group.backend, f"{deadline_s:g}")
        report, error = _run(command, group, environment, began_s + deadline_s)
    return Collective(
        backend=group.backend,
        ranks=report.ranks if report else len(group.ranks),
        where=group.where,
        latency_us_p50=round(report.latency_us_p50, 1) if report else None,
        latency_us_p99=round(report.latency_us_p99, 1) if report else None,
        bytes_per_s=float(round(report.bytes_per_s)) if report else None,
        message_bytes=report.message_bytes if report else 0,
        rounds=report.rounds if report else 0,
        seconds=round(time.monotonic() - began_s, 2),
        error=error,
    )


def _two_here(directory: str) -> Group:
    path = os.path.join(directory, "hosts.json")
    with contextlib.ExitStack() as stack:
        # Both at once, or the system might give the same port twice.
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        hosts = [[f"127.0.0.1:{each.getsockname()[1]}"] for each in sockets]
    with open(path, "w", encoding="utf-8") as file:
        json.dump(hosts, file)
    return Group("ring", HERE, tuple({"MLX_RANK": str(rank), "MLX_HOSTFILE": path} for rank in range(2)))


def _run(
    command: Sequence[str], group: Group, environment: Mapping[str, str], until_s: float
) -> tuple[_Report | None, str | None]:
    """The report of this machine's first rank, or why there is none."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        for own in group.ranks:
            started.append(
                subprocess.Popen(
                    command,
                    env={**environment, **own},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
            )
        # What they print is far less than a pipe holds.
        while any(each.poll() is None for each in started) and time.monotonic() < until_s:
            if any(each.poll() not in (None, 0) for each in started):
                break
            time.sleep(_CHECK_EVERY_S)
        late = [each for each in started if each.poll() is None]
        failed = [each for each in started if each.poll() not in (None, 0)]
        for each in late:
            each.kill()
        outputs = [each.communicate() for each in started]
    except OSError as error:
        return None, f"cannot start Python: {error.strerror}"
    finally:
        for each in started:
            if each.poll() is None:
                each.kill()
                each.wait()
    if failed and failed[0].returncode == -signal.SIGALRM:
        failed = []
        late = started
    if failed:
        return None, _last_words(failed[0], outputs[started.index(failed[0])][1])
    if late:
        return None, "no answer from the other rank before the deadline"
    try:
        return msgspec.json.decode(outputs[0][0], type=shared(_Report)), None
    except msgspec.MsgspecError:
        return None, "the process that measures printed something else than its report"


def _last_words(process: "subprocess.Popen[bytes]", error: bytes) -> str:
    if process.returncode < 0:
        try:
            return f"the process that measures was ended by {signal.Signals(-process.returncode).name}"
        except ValueError:
            return f"the process that measures was ended by signal {-process.returncode}"
    words = error.decode(errors="replace").strip().splitlines()
    return words[-1][:400] if words else f"the process that measures ended with {process.returncode}"
