"""The throw-away process that says which collectives MLX has; measuring is tested in tests/rdma."""

import subprocess
import sys

import mlx.core as mx

from exo_cli.engine import collective
from exo_cli.rdma import probes


def test_it_says_what_mlx_has_as_the_doctor_reads_it() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "exo_cli.engine.collective", "backends"],
        capture_output=True,
        timeout=120,
        check=True,
    )
    said = probes.mlx(done.stdout)
    assert said.mlx is not None
    assert {name: mx.distributed.is_available(name) for name in collective.BACKENDS} == said.backends
    assert said.has("ring")
    assert (said.librdma is None) is (sys.platform != "darwin")


def test_a_backend_that_is_not_there_ends_with_what_mlx_says() -> None:
    absent = next(name for name in ("mpi", "nccl", "jaccl") if not mx.distributed.is_available(name))
    done = subprocess.run(
        [sys.executable, "-m", "exo_cli.engine.collective", "measure", absent, "60"],
        capture_output=True,
        timeout=120,
        check=False,
        text=True,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1


def test_a_rank_that_waits_for_ever_is_ended_by_its_own_alarm() -> None:
    program = (
        "import signal, sys; from exo_cli.engine import collective;"
        "collective.measure = lambda backend: signal.pause();"
        "sys.exit(collective.main(['measure', 'ring', '0.2']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=120, check=False)
    assert done.returncode == -14
