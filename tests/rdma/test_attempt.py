"""The one bounded attempt: over the ring with two real processes, and with a peer that never answers."""

import json
import socket
import sys
from pathlib import Path

import pytest

from exo_cli.rdma import attempt
from exo_cli.rdma.attempt import group_of, measure


@pytest.mark.process
def test_two_processes_measure_the_real_collective() -> None:
    found = measure(120.0)
    assert found.error is None
    assert (found.backend, found.ranks, found.where) == ("ring", 2, attempt.HERE)
    assert found.latency_us_p50 is not None
    assert found.latency_us_p99 is not None
    assert found.bytes_per_s is not None
    assert 0 < found.latency_us_p50 <= found.latency_us_p99
    assert found.bytes_per_s > 0
    assert found.rounds >= 5


@pytest.mark.process
def test_a_peer_that_never_answers_ends_within_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as silent:
        # It takes the connection, and never says a word.
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with socket.socket() as own:
            own.bind(("127.0.0.1", 0))
            hosts = [[f"127.0.0.1:{each.getsockname()[1]}"] for each in (own, silent)]
        path = tmp_path / "hosts.json"
        path.write_text(json.dumps(hosts))
        monkeypatch.setenv("MLX_RANK", "0")
        monkeypatch.setenv("MLX_HOSTFILE", str(path))
        found = measure(3.0)
    assert (found.backend, found.where) == ("ring", "joined as rank 0")
    assert found.error is not None
    assert found.latency_us_p50 is None
    # Three times what was promised.
    assert found.seconds < 9.0


@pytest.mark.parametrize(
    ("program", "error", "deadline_s"),
    [
        ("import sys; sys.exit('line one\\n[jaccl] errno 22')", "[jaccl] errno 22", 60),
        ("import os; os.kill(os.getpid(), 9)", "ended by SIGKILL", 60),
        ("import os; os.kill(os.getpid(), 14)", "before the deadline", 60),
        ("import sys; sys.exit(3)", "ended with 3", 60),
        ("print('hello')", "something else than its report", 60),
        ("import time; time.sleep(600)", "before the deadline", 1),
    ],
)
def test_however_it_ends_it_is_an_answer(
    monkeypatch: pytest.MonkeyPatch, program: str, error: str, deadline_s: float
) -> None:
    real = attempt._run
    monkeypatch.setattr(attempt, "_run", lambda _, *rest: real((sys.executable, "-c", program), *rest))
    found = measure(deadline_s)
    assert error in (found.error or ""), found


@pytest.mark.parametrize(
    ("environment", "backend"),
    [
        ({}, None),
        ({"MLX_RANK": "1"}, None),
        ({"MLX_RANK": "1", "MLX_HOSTFILE": "x"}, "ring"),
        ({"MLX_RANK": "1", "NCCL_HOST_IP": "x"}, "nccl"),
        ({"MLX_RANK": "1", "MLX_IBV_DEVICES": "x", "MLX_JACCL_COORDINATOR": "y"}, "jaccl"),
    ],
)
def test_which_group_the_environment_sets_up(environment: dict[str, str], backend: str | None) -> None:
    group = group_of(environment)
    assert (group.backend if group else None) == backend
