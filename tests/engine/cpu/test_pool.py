"""Threads that compute together: they meet, sleep, wake and end."""

import threading
import time

import numpy as np
import pytest

from exo_cli.engine.cpu import waits
from exo_cli.engine.cpu.jit import inner
from exo_cli.engine.cpu.pool import Pool, default_threads


@inner
def _rounds(control: int, total: int, threads: int, count: int, spins: int) -> int:
    """Each thread adds one a round; what it sees after each meeting has to be complete."""
    wrong = 0
    for number in range(count):
        waits.increase(total, 1)
        waits.meet(control, threads)
        if waits.read(total) < threads * (number + 1):
            wrong += 1
        waits.meet(control, threads)
    return wrong


def _counters(lines: int) -> tuple[np.ndarray, int]:
    room = np.zeros((lines + 1) * waits.LINE, np.uint8)
    return room, room.ctypes.data + -room.ctypes.data % waits.LINE


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_nobody_passes_a_meeting_before_all_are_there(threads: int) -> None:
    room, control = _counters(waits.MEETING + 1)
    total = control + waits.MEETING * waits.LINE
    found: list[int] = []
    running = [
        threading.Thread(target=lambda: found.append(_rounds(control, total, threads, 50, 0)))
        for _ in range(threads)
    ]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(60)
    assert found == [0] * threads
    assert room is not None


@inner
def _sleep(counter: int, sleepers: int) -> int:
    now: int = waits.wait_beyond(counter, 0, sleepers, 10)
    return now


@inner
def _advance(counter: int, sleepers: int) -> None:
    waits.advance(counter, sleepers)


@inner
def _read(counter: int) -> int:
    now: int = waits.read(counter)
    return now


@pytest.mark.skipif(not waits.SLEEPS, reason="only Linux sleeps on a counter")
def test_who_waits_long_sleeps_and_is_woken() -> None:
    room, counter = _counters(2)
    sleepers = counter + waits.LINE
    _sleep.compile("(int64,int64)")
    _advance.compile("(int64,int64)")
    thread = threading.Thread(target=lambda: _sleep(counter, sleepers), daemon=True)
    thread.start()
    limit = time.monotonic() + 30
    while _read(sleepers) == 0 and time.monotonic() < limit:
        time.sleep(0.001)
    assert _read(sleepers) == 1
    _advance(counter, sleepers)
    thread.join(30)
    assert not thread.is_alive()
    assert _read(sleepers) == 0
    assert room is not None


def test_the_number_of_threads_is_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_NUM_THREADS", "3")
    assert default_threads() == 3
    monkeypatch.setenv("NUMBA_NUM_THREADS", "")
    assert default_threads() >= 1


def test_a_pool_that_ran_nothing_ends() -> None:
    pool = Pool(3)
    pool.close()
    pool.close()
