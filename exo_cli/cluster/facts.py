"""What this machine is: system, processor, memory, accelerator. Knows nothing of networks.

MLX is asked in a child process (engine.probe), so that this one never imports it.
"""

import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil

from exo_cli.cluster.processor import kernels_here, numerics_here
from exo_cli.schemas.first_use import shared
from exo_cli.schemas.topology import Memory

PROBE_TIMEOUT_S = 60.0


class Accelerator(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine child said."""

    backend: str
    device: str = ""
    limit_bytes: int | None = None
    free_bytes: int | None = None
    mlx: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """What does not change while a node runs."""

    host: str
    os: str
    chip: str
    cores: int
    accelerator: Accelerator
    kernels: str | None = None
    """Of the engine's own, the class that the processor can run."""
    numerics: tuple[str, ...] = ("exact",)
    """How the engine can compute."""


def probe_accelerator(command: Sequence[str] = (sys.executable, "-m", "exo_cli.engine.probe")) -> Accelerator:
    """Ask MLX in a child; a child that crashes or hangs is an answer too."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Accelerator(backend="none", error=f"MLX did not start within {PROBE_TIMEOUT_S:g} s")
    except OSError as error:
        return Accelerator(backend="none", error=f"cannot start Python: {error.strerror}")
    if done.returncode != 0:
        how = f"by signal {-done.returncode}" if done.returncode < 0 else f"with {done.returncode}"
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        return Accelerator(
            backend="none", error=": ".join((f"MLX ended {how}", *(each[:200] for each in last)))
        )
    try:
        return msgspec.json.decode(done.stdout, type=shared(Accelerator))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return Accelerator(backend="none", error="the engine probe printed something else than its report")


def machine(accelerator: Accelerator) -> Machine:
    kernels = kernels_here() if accelerator.backend == "cpu" else None
    return Machine(
        host=host_id(),
        os=_os_text(),
        chip=_chip(accelerator),
        cores=_cores(),
        accelerator=accelerator,
        kernels=kernels,
        numerics=numerics_here(accelerator.backend, kernels),
    )


def host_id() -> str:
    """Names this machine, the same in every process of it, and says nothing else about it."""
    for source in (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id")):
        try:
            raw = source.read_text().strip()
        except OSError:
            continue
        if raw:
            return _digest(raw)
    if sys.platform == "darwin":
        raw = _output("ioreg", "-rd1", "-c", "IOPlatformExpertDevice")
        found = re.search(r'"IOPlatformUUID" = "([^"]+)"', raw)
        if found:
            return _digest(found[1])
    return _digest(platform.node())


def _digest(raw: str) -> str:
    return hashlib.sha256(b"exo host\0" + raw.encode()).hexdigest()[:16]


def memory(accelerator: Accelerator, *, root: Path = Path("/")) -> Memory:
    """RAM, what the accelerator may use, and what is free now. A container's limit counts as RAM."""
    now = psutil.virtual_memory()
    ram, free = int(now.total), int(now.available)
    cap, left = _control_group(root)
    if cap is not None and left is not None:
        ram, free = min(ram, cap), min(free, left)
    limit = ram if accelerator.limit_bytes is None else accelerator.limit_bytes
    if accelerator.backend == "cuda" and accelerator.free_bytes is not None:
        free = min(free, accelerator.free_bytes)
    return Memory(ram_bytes=ram, limit_bytes=limit, free_bytes=free)


def _control_group(root: Path) -> tuple[int | None, int | None]:
    """The smallest memory limit, and what is left of the tightest one, over this process's control
    group and those above it."""
    lines = _text(root / "proc/self/cgroup").splitlines()
    group = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "/").strip("/")
    base = root / "sys/fs/cgroup"
    cap: int | None = None
    left: int | None = None
    for level in range(len(group.split("/")), -1, -1):
        directory = base.joinpath(*group.split("/")[:level])
        limit = _number(directory / "memory.max")
        if limit is None:
            continue
        used = max(0, (_number(directory / "memory.current") or 0) - _page_cache(directory))
        cap = limit if cap is None else min(cap, limit)
        left = max(0, limit - used) if left is None else min(left, max(0, limit - used))
    return cap, left


def _page_cache(directory: Path) -> int:
    """What a control group holds of files: the kernel counts it as used and gives it up when asked."""
    found = re.findall(r"^(?:in)?active_file (\d+)$", _text(directory / "memory.stat"), flags=re.MULTILINE)
    return sum(map(int, found))


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # "max" is no number: there is no limit
        return None


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _os_text() -> str:
    if sys.platform == "darwin":
        return f"macOS {platform.mac_ver()[0]}"
    try:
        release = platform.freedesktop_os_release()
        return release.get("PRETTY_NAME", "Linux")
    except OSError:
        return f"{platform.system()} {platform.release()}"


def _chip(accelerator: Accelerator) -> str:
    if accelerator.backend in ("metal", "cuda") and accelerator.device:
        return accelerator.device
    if sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string").strip() or platform.machine()
    return parse_cpuinfo(_text(Path("/proc/cpuinfo"))) or platform.machine()


def parse_cpuinfo(text: str) -> str:
    """The processor's name, as x86 and Arm kernels print it."""
    for key in ("model name", "Model", "Hardware"):
        found = re.search(rf"^{key}[ \t]*:[ \t]*(\S.*)$", text, flags=re.MULTILINE)
        if found:
            return re.sub(r"\((R|TM|r|tm)\)", "", " ".join(found[1].split()))
    return ""


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
