"""Threads that wait for each other inside native code: counters, a barrier, and sleeping in the kernel.

Waiting is bounded: a moment of spinning, because the others are nearly there, then sleep. A counter is a
64-bit number on a cache line of its own, by its address. Only Linux sleeps on a counter; elsewhere the core
is given away again and again. Knows nothing of what is computed.
"""

import platform
from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from exo_cli.engine.cpu.emit import Emitter
from exo_cli.engine.cpu.jit import inner

I64 = ir.IntType(64)
LINE: Final = 64
SPINS: Final = 150
"""Turns of waiting for the next step before a thread sleeps: some 10 microseconds. The core may be another
stage's by then."""
SPINS_WITHIN: Final = 2000
"""The same within a step, where the others are nearly there."""
MEETING: Final = 3
"""Lines that a barrier takes: who has arrived, how often all have met, who sleeps."""
_X86: Final = platform.machine().lower() in ("x86_64", "amd64")
_SYSCALL: Final = {"x86_64": 202, "amd64": 202, "aarch64": 98}.get(platform.machine().lower(), 0)
SLEEPS: Final = platform.system() == "Linux" and _SYSCALL != 0
_WAIT, _WAKE = 128, 129
"""FUTEX_WAIT and FUTEX_WAKE, both private to the process."""
_EVERYBODY: Final = 2**30

_yield: Final = types.ExternalFunction("sched_yield", types.int32())
_system: Final = types.ExternalFunction(
    "syscall", types.int64(types.int64, types.int64, types.int64, types.int64, types.int64)
)


def _pointer(builder: ir.IRBuilder, address: Any) -> Any:
    return builder.inttoptr(address, I64.as_pointer())


def _read(_context: Any, address: Any) -> Any:
    """The counter, and everything that was written before it was set."""

    def code(_ctx: Any, builder: ir.IRBuilder, _signature: Any, values: Any) -> Any:
        return builder.load_atomic(_pointer(builder, values[0]), "acquire", 8, typ=I64)

    return types.int64(types.int64), code


def _write(_context: Any, address: Any, value: Any) -> Any:
    def code(_ctx: Any, builder: ir.IRBuilder, _signature: Any, values: Any) -> Any:
        builder.store_atomic(values[1], _pointer(builder, values[0]), "seq_cst", 8)
        return ir.Constant(ir.IntType(8).as_pointer(), None)

    return types.void(types.int64, types.int64), code


def _increase(_context: Any, address: Any, by: Any) -> Any:
    """Gives what it was before."""

    def code(_ctx: Any, builder: ir.IRBuilder, _signature: Any, values: Any) -> Any:
        return builder.atomic_rmw("add", _pointer(builder, values[0]), values[1], "seq_cst")

    return types.int64(types.int64, types.int64), code


def _pause(_context: Any) -> Any:
    """Tell the processor that this is a loop that waits."""

    def code(_ctx: Any, builder: ir.IRBuilder, _signature: Any, _values: Any) -> Any:
        if _X86:
            Emitter(builder).call("llvm.x86.sse2.pause", ir.VoidType())
        return ir.Constant(ir.IntType(8).as_pointer(), None)

    return types.void(), code


read, write, increase, pause = (intrinsic(each) for each in (_read, _write, _increase, _pause))


@inner
def wait_beyond(address: int, old: int, sleepers: int, spins: int) -> int:
    """Until the counter is no longer `old`: some turns of spinning, then asleep; `sleepers` counts who is."""
    for _ in range(spins):
        now: int = read(address)
        if now != old:
            return now
        pause()
    increase(sleepers, 1)
    now = read(address)
    while now == old:
        if SLEEPS:
            _system(_SYSCALL, address, _WAIT, old & 0xFFFFFFFF, 0)
        else:
            _yield()
        now = read(address)
    increase(sleepers, -1)
    return now


@inner
def advance(address: int, sleepers: int) -> None:
    """Count one up, and wake whoever sleeps on it."""
    increase(address, 1)
    if SLEEPS and read(sleepers) > 0:
        _system(_SYSCALL, address, _WAKE, _EVERYBODY, 0)


@inner
def meet(barrier: int, threads: int) -> None:
    """Until all threads are here. `barrier`: MEETING lines, zero at first."""
    if threads == 1:
        return
    met = read(barrier + LINE)
    if increase(barrier, 1) == threads - 1:
        write(barrier, 0)
        advance(barrier + LINE, barrier + 2 * LINE)
    else:
        wait_beyond(barrier + LINE, met, barrier + 2 * LINE, SPINS_WITHIN)
