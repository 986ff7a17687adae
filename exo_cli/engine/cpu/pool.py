"""The threads that compute a step together: started once, asleep between steps.

The caller is the first of them. The others are threads of this process that never hold the interpreter's
lock while they wait or compute: a moment of spinning after a step, because the next one often follows, then
asleep in the kernel. Knows what `passes` does only by its name.
"""

import os
import threading
import weakref
from typing import Final

import numpy as np
from numpy.typing import NDArray

from exo_cli.engine.cpu.jit import kernel
from exo_cli.engine.cpu.lanes import poke_word, word
from exo_cli.engine.cpu.passes import one_pass
from exo_cli.engine.cpu.waits import LINE, MEETING, SPINS, advance, meet, wait_beyond

STEPS, SLEEPERS, WORK, BARRIER = (LINE * number for number in range(4))
"""Where the counters lie, a cache line each; at WORK stand the addresses of the stage and the step."""
_LINES: Final = 3 + MEETING
THREADS: Final = "NUMBA_NUM_THREADS"


@kernel
def _drive(control: int, thread: int, threads: int, stage: int, step: int) -> None:
    """The first thread computes one step with the others; these wait for steps until there is no stage."""
    if thread == 0:
        poke_word(control + WORK, stage)
        poke_word(control + WORK + 8, step)
        advance(control + STEPS, control + SLEEPERS)
        if stage != 0:
            one_pass(stage, step, thread, threads)
            meet(control + BARRIER, threads)
        return
    seen = 0
    while True:
        seen = wait_beyond(control + STEPS, seen, control + SLEEPERS, SPINS)
        given = word(control + WORK)
        if given == 0:
            return
        one_pass(given, word(control + WORK + 8), thread, threads)
        meet(control + BARRIER, threads)


def default_threads() -> int:
    """As many as the environment says, else one a core that this process may use."""
    said = os.environ.get(THREADS, "")
    if said.isdecimal() and int(said) > 0:
        return int(said)
    return len(allowed_cores()) or os.cpu_count() or 1


def allowed_cores() -> list[int]:
    """The cores that this process may use, as far as the system tells."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    # The process's own: a thread that asks for itself may stay on one core already.
    return sorted(os.sched_getaffinity(os.getpid()))


class Pool:
    """So many threads. One thread makes it and runs it; when it is let go, the others end."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._room = np.zeros((_LINES + 1) * LINE, np.uint8)
        self._control = int(self._room.ctypes.data) + -int(self._room.ctypes.data) % LINE
        self._others: list[threading.Thread] = []
        self._end = weakref.finalize(self, _end, self._room, self._control, threads, self._others)

    @property
    def barrier(self) -> int:
        """The address of the counters at which the threads meet within a step."""
        return self._control + BARRIER

    def run(self, stage: int, step: int) -> None:
        """One step; returns when all threads are through."""
        if len(self._others) < self.threads - 1:
            self._start()
        _drive(self._control, 0, self.threads, stage, step)

    def _start(self) -> None:
        cores = own_cores(self.threads)
        _stay_on(cores[:1])
        for number in range(1, self.threads):
            thread = threading.Thread(
                target=_follow,
                args=(self._room, self._control, number, self.threads, cores[number : number + 1]),
                name=f"kernels-{number}",
                daemon=True,
            )
            thread.start()
            self._others.append(thread)

    def close(self) -> None:
        """Let the other threads end; there is no step after this."""
        self._end()


def _follow(_room: NDArray[np.uint8], control: int, number: int, threads: int, cores: list[int]) -> None:
    """One of the others; the counters live as long as somebody looks at them."""
    _stay_on(cores)
    _drive(control, number, threads, 0, 0)


def own_cores(threads: int) -> list[int]:
    """A core for each thread, where there are as many; else none.

    Woken after a while, two threads are often put on one core, and one waits until the other's turn ends.
    A program's first thread is left alone: who started it may want it elsewhere.
    """
    cores = allowed_cores()
    first = threading.current_thread() is threading.main_thread()
    return [] if first or len(cores) != threads else cores


def _stay_on(cores: list[int]) -> None:
    if cores:
        os.sched_setaffinity(0, cores)


def _end(_room: NDArray[np.uint8], control: int, threads: int, others: list[threading.Thread]) -> None:
    if others:
        _drive(control, 0, threads, 0, 0)
        for thread in others:
            thread.join()
        others.clear()
