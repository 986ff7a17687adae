"""How fast this node's engine computes: measured once by a throw-away process while nothing else is asked.

Kept in the node's directory, and measured again where the versions of exo or MLX, the cores or the threads
are others. A request or a load that comes meanwhile ends the trial, which begins anew when it is calm. Of one
user's nodes on a machine one measures at a time. Knows nothing of MLX.
"""

import asyncio
import contextlib
import fcntl
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

import msgspec

from exo_cli import __version__, atomic
from exo_cli.cluster.describe import Self
from exo_cli.schemas.first_use import shared
from exo_cli.schemas.topology import Batch, Rate
from exo_cli.shard.cores import THREAD_VARIABLES, cores_text, pin
from exo_cli.shard.engine import Surroundings

FILE: Final = "rates.json"
CALM_S: Final = 15.0
"""So long nothing was asked before a trial begins."""
LOOK_S: Final = 0.1
TIMEOUT_S: Final = 180.0
TRIES: Final = 3
"""That end by themselves without a figure."""
NEEDED_BYTES: Final = 2 << 30
"""A trial begins only where so much is free."""
_NICE: Final = 19
_SCHEMA: Final = "exo.rates/1"
_LOCK: Final = Path(tempfile.gettempdir(), f"exo-rates-{os.getuid()}.lock")
_COMMAND: Final = (sys.executable, "-m", "exo_cli.engine.rates")


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """rates.json."""

    schema: str = _SCHEMA
    key: str
    """What the figures depend on."""
    rates: tuple[Rate, ...]


class _Said(msgspec.Struct, frozen=True):
    """A line of the trial."""

    format: str
    decode_bytes_per_s: float
    prefill_flop_per_s: float
    numerics: str = "exact"
    step_s: float | None = None
    batches: tuple[Batch, ...] = ()


@dataclass(frozen=True, slots=True)
class Trial:
    """What a node lends to a trial."""

    directory: Path
    """The node's own."""
    surroundings: Callable[[], Surroundings]
    is_calm: Callable[[], bool]
    """Nothing is being loaded and no request runs."""
    has_room: Callable[[], bool]
    """There is memory for a trial."""
    command: Sequence[str] = _COMMAND
    calm_s: float = CALM_S
    lock: Path = _LOCK
    """Held by the node of this machine that measures."""
    numerics: Sequence[str] = ("exact",)
    """Each way of computing in a process of its own."""


async def know(me: Self, trial: Trial, tell: Callable[[], None]) -> None:
    """Tell `me`, and `tell` that its record is another one. What cannot be measured stays unsaid."""
    for _ in range(TRIES):
        rates = _kept(trial) or await _measured(trial)
        if rates:
            me.rates = rates
            tell()
            return


async def _measured(trial: Trial) -> tuple[Rate, ...]:
    """Of the first trial that nobody disturbs; no figures if it ends without."""
    while True:
        await _calm(trial)
        # By now this machine's other nodes are known, and so is how many threads each has.
        if rates := _kept(trial):
            return rates
        with _alone(trial.lock) as alone:
            if not alone:
                continue
            surroundings = trial.surroundings()
            found = await _each(trial, surroundings)
        # What one way of computing did not say is asked again after the next start.
        if found and {rate.numerics for rate in found} >= set(trial.numerics):
            kept = Kept(key=_key(surroundings, trial.numerics), rates=found)
            with contextlib.suppress(OSError):
                atomic.replace(trial.directory / FILE, msgspec.json.encode(kept) + b"\n", mode=0o600)
        if found is not None:
            return found


async def _each(trial: Trial, surroundings: Surroundings) -> tuple[Rate, ...] | None:
    """Of all ways of computing; None if somebody came meanwhile."""
    found: tuple[Rate, ...] = ()
    for numerics in trial.numerics:
        said = await _ask((*trial.command, "--numerics", numerics), trial, surroundings)
        if said is None:
            return None
        found += said
    return found


async def _calm(trial: Trial) -> None:
    """Until nothing was asked for some time."""
    since_s = time.monotonic()
    while time.monotonic() - since_s < trial.calm_s:
        await asyncio.sleep(min(1.0, trial.calm_s))
        if not (trial.is_calm() and trial.has_room()):
            since_s = time.monotonic()


async def _ask(command: Sequence[str], trial: Trial, surroundings: Surroundings) -> tuple[Rate, ...] | None:
    """One process; None if it was ended for something that came."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,  # with it the process ends
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={**os.environ, **surroundings.environment},
        )
    except OSError:
        return ()
    assert process.stdout is not None
    said = asyncio.create_task(process.stdout.read())
    end_s = time.monotonic() + TIMEOUT_S
    try:
        # Whoever is served comes first.
        with contextlib.suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, process.pid, _NICE)
        pin(process.pid, surroundings.cores)
        while process.returncode is None and time.monotonic() < end_s:
            if not trial.is_calm():
                return None
            await asyncio.sleep(LOOK_S)
        return _rates(await said) if process.returncode == 0 else ()
    finally:
        said.cancel()
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _rates(said: bytes) -> tuple[Rate, ...]:
    try:
        lines = [msgspec.json.decode(line, type=shared(_Said)) for line in said.splitlines()]
    except msgspec.MsgspecError:
        return ()
    now_ms = time.time_ns() // 1_000_000
    return tuple(
        Rate(
            format=line.format,
            decode_bytes_per_s=line.decode_bytes_per_s,
            prefill_flop_per_s=line.prefill_flop_per_s,
            step_s=line.step_s,
            batches=line.batches,
            measured_unix_ms=now_ms,
            numerics=line.numerics,
        )
        for line in lines
    )


def _kept(trial: Trial) -> tuple[Rate, ...]:
    """What was measured before under what is so now."""
    try:
        kept = msgspec.json.decode((trial.directory / FILE).read_bytes(), type=shared(Kept))
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return ()
    wanted = (_SCHEMA, _key(trial.surroundings(), trial.numerics))
    return kept.rates if (kept.schema, kept.key) == wanted else ()


def _key(surroundings: Surroundings, numerics: Sequence[str]) -> str:
    """Figures that were measured under another one are no longer so."""
    try:
        mlx = metadata.version("mlx")
    except metadata.PackageNotFoundError:
        mlx = "none"
    environment = {**os.environ, **surroundings.environment}
    threads = "/".join(environment.get(name, "") for name in THREAD_VARIABLES)
    cores = cores_text(surroundings.cores)
    return f"exo {__version__}, mlx {mlx}, cores {cores}, threads {threads}, {' and '.join(numerics)}"


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Whether no other node of this machine measures; then none does meanwhile."""
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError:
        yield True
        return
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(lock)
