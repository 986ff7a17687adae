"""A load on a real server: mlx_lm.server with the pocket model, in its own process on the loopback."""

import asyncio
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

import exo_cli
from exo_cli.bench.gate import by_levels
from exo_cli.bench.load import Load, run
from exo_cli.bench.metrics import levels
from exo_cli.bench.openai import connected

POCKET = Path(exo_cli.__file__).parent / "models" / "pocket"
START_S = 120.0


@pytest.fixture
def server(clean_environment: Path, tmp_path: Path) -> Iterator[str]:
    """Its URL, as soon as it answers."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(POCKET), "--port", str(port)]
    environment = {"HOME": str(clean_environment), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"}
    # A second thread that spins would wait for a core that others have.
    environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1"], env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    url = f"http://127.0.0.1:{port}"
    try:
        until_s = time.monotonic() + START_S
        while not _answers(url):
            said = (tmp_path / "log").read_text(errors="replace")
            assert process.poll() is None, said
            assert time.monotonic() < until_s, said
            time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


@pytest.mark.process
def test_mlx_lms_server_is_measured_with_exact_prompts(server: str) -> None:
    async def main() -> None:
        load = Load(24, 4, concurrency=(1, 2), depths=(0,), repeat=1, warmup=0, seed=3)
        async with connected(server) as target:
            assert (target.manner.api, target.manner.prompts) == ("completions", "text")
            assert target.wording.exact
            rounds = await run(target, load)
        alone, two = levels(rounds)
        assert (alone.completed, alone.failed, alone.errors) == (1, 0, ())
        assert (two.completed, two.failed, two.errors) == (2, 0, ())
        assert {*alone.input_lens, *two.input_lens} == {24}
        # The model may end its text before.
        assert all(1 <= each <= 4 for each in (*alone.output_lens, *two.output_lens))
        assert alone.n_ttft == 1
        assert by_levels(rounds).state != "differ"

    asyncio.run(main())
