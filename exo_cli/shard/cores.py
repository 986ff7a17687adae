"""Which cores an engine process runs on, and with how many threads it computes.

Pure but for what the system says of its cores. Knows nothing of which stage the engine has.
"""

import os
import re
from collections.abc import Mapping
from typing import Final

from exo_cli.errors import Misconfigured, UsageProblem

_PART: Final = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
THREAD_VARIABLES: Final = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
)
"""What the libraries that compute read when they are imported, and never again."""


def parse_cores(text: str, option: str) -> frozenset[int]:
    """`0-3,8` as a set. Raises for cores that this process may not use."""
    found: set[int] = set()
    for part in text.split(","):
        match = _PART.fullmatch(part.strip())
        first = int(match[1]) if match else 0
        last = int(match[2]) if match and match[2] else first
        if match is None or last < first:
            raise UsageProblem(f"'{text}' is no list of cores for {option}", hint="Write it like 0-3,8.")
        found.update(range(first, last + 1))
    if not hasattr(os, "sched_setaffinity"):
        raise Misconfigured(
            f"{option} needs Linux: this system lets no process choose its cores",
            hint=f"Leave {option} out; --threads says how many threads compute.",
        )
    missing = found - usable_cores()
    if missing:
        one = len(missing) == 1
        raise UsageProblem(
            f"{'core' if one else 'cores'} {cores_text(missing)} for {option} "
            f"{'is' if one else 'are'} not there; there {'is' if len(usable_cores()) == 1 else 'are'} "
            f"{cores_text(usable_cores())}",
            hint="lscpu shows the cores of this machine.",
        )
    return frozenset(found)


def cores_text(cores: set[int] | frozenset[int]) -> str:
    """A set of cores as `parse_cores` reads it."""
    parts: list[str] = []
    ordered = sorted(cores)
    while ordered:
        run = 1
        while run < len(ordered) and ordered[run] == ordered[0] + run:
            run += 1
        parts.append(f"{ordered[0]}-{ordered[run - 1]}" if run > 1 else str(ordered[0]))
        del ordered[:run]
    return ",".join(parts)


def usable_cores() -> frozenset[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def pin(pid: int, cores: frozenset[int]) -> None:
    """Keep a process on these cores. One that has ended by now is left to whoever watches it."""
    if not cores or not hasattr(os, "sched_setaffinity"):
        return
    try:
        # A thread takes the cores of the one that starts it: those that are there, and so all later ones.
        for thread in os.listdir(f"/proc/{pid}/task"):
            os.sched_setaffinity(int(thread), cores)
    except (ProcessLookupError, FileNotFoundError):
        return


def thread_environment(
    threads: int | None, cores: int, stages: int, environment: Mapping[str, str]
) -> dict[str, str]:
    """Variables for an engine: so many threads; else its share of the cores, where nobody said otherwise."""
    if threads is not None:
        return dict.fromkeys(THREAD_VARIABLES, str(threads))
    share = str(max(1, cores // max(1, stages)))
    return {name: share for name in THREAD_VARIABLES if name not in environment}
