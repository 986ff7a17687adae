"""What the processor has, as far as a kernel cares. Asks LLVM; knows nothing of numba or models."""

import os
from dataclasses import dataclass
from typing import Final, Literal

import llvmlite.binding as llvm

Dot = Literal["vnni512", "vnni256", "avx2", "generic"]
"""How four products of bytes are added to a 32-bit number; the sums are the same everywhere."""

CPU_NAME: Final = "NUMBA_CPU_NAME"
CPU_FEATURES: Final = "NUMBA_CPU_FEATURES"
"""numba compiles for another processor where these say so; the kernels follow."""


@dataclass(frozen=True, slots=True)
class Features:
    """One processor."""

    name: str
    flags: frozenset[str]

    @property
    def dot(self) -> Dot:
        if {"avx512vnni", "avx512bw", "avx512f"} <= self.flags:
            return "vnni512"
        if "avxvnni" in self.flags or {"avx512vnni", "avx512vl"} <= self.flags:
            return "vnni256"
        return "avx2" if "avx2" in self.flags else "generic"

    @property
    def missing(self) -> str:
        """What the kernels cannot do without, if it is not there: else they would call what nobody gives."""
        on_x86 = "sse2" in self.flags
        lacks = [flag for flag in ("avx2", "fma", "f16c") if flag not in self.flags]
        return ", ".join(lacks) if on_x86 else ""

    @property
    def key(self) -> str:
        """What compiled code depends on."""
        return f"{self.name}:{','.join(sorted(self.flags))}"


def here() -> Features:
    """The processor that numba compiles for."""
    name = os.environ.get(CPU_NAME) or llvm.get_host_cpu_name()
    said = os.environ.get(CPU_FEATURES)
    if said is not None:
        return Features(name, frozenset(flag[1:] for flag in said.split(",") if flag.startswith("+")))
    return Features(name, frozenset(flag for flag, has in llvm.get_host_cpu_features().items() if has))
