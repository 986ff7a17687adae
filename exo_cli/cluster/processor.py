"""What this machine's processor has, as far as the engine's kernels care, and so how its engine can compute.

Read from the system: whoever asks stays free of numba and LLVM, which decide in the engine process. Knows
nothing of the kernels themselves.
"""

import os
import platform
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Final

EXACT: Final = "exact"
FAST: Final = "fast"
_FEATURES: Final = "NUMBA_CPU_FEATURES"
_CPUINFO: Final = Path("/proc/cpuinfo")
_ARM: Final = frozenset(("asimd", "neon"))
_NEEDED: Final = frozenset(("avx2", "fma", "f16c"))
"""Without these no kernel of ours runs on x86."""


def kernels_here() -> str | None:
    """The class of kernels that is compiled here; None where there are none for this processor."""
    said = os.environ.get(_FEATURES)
    if said is not None:
        # numba compiles for another processor where this says so.
        flags = frozenset(flag[1:] for flag in said.split(",") if flag.startswith("+"))
    else:
        flags = flags_of(_cpuinfo())
    return kernels_of(flags, platform.machine())


def flags_of(cpuinfo: str) -> frozenset[str]:
    """The first processor's flags, as x86 and Arm kernels print them, spelled as LLVM does."""
    found = re.search(r"^(?:flags|Features)[ \t]*:(.*)$", cpuinfo, flags=re.MULTILINE)
    return frozenset(found[1].replace("_", "").split()) if found else frozenset()


def kernels_of(flags: frozenset[str], machine: str) -> str | None:
    """By what engine.cpu.features makes of the same flags."""
    if "sse2" in flags:
        if not flags >= _NEEDED:
            return None
        if flags >= {"avx512vnni", "avx512bw", "avx512f"}:
            return "avx512-vnni"
        if "avxvnni" in flags or flags >= {"avx512vnni", "avx512vl"}:
            return "avx-vnni"
        return "avx2"
    if flags & _ARM or machine in ("arm64", "aarch64"):
        return "neon"
    # An x86 that does not say what it has may lack anything.
    return None if machine in ("x86_64", "AMD64", "i686") else "generic"


def numerics_here(backend: str, kernels: str | None) -> tuple[str, ...]:
    """How an engine on that backend can compute."""
    if backend == "none":
        return ()
    if backend == "cpu" and kernels is not None and find_spec("numba") is not None:
        return EXACT, FAST
    return (EXACT,)


def _cpuinfo() -> str:
    try:
        return _CPUINFO.read_text(errors="replace")
    except OSError:
        return ""
