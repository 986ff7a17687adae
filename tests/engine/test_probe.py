"""The throw-away child: one JSON document, whatever MLX does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from exo_cli.cluster.facts import probe_accelerator

START = """
import runpy, sys
sys.path.insert(0, sys.argv.pop())
runpy.run_module("exo_cli.engine.probe", run_name="__main__")
"""


def run(directory: Path, mlx: str) -> "subprocess.CompletedProcess[str]":
    """The child, where `import mlx.core` runs this text instead."""
    package = directory / "mlx"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "core.py").write_text(mlx)
    return subprocess.run(
        [sys.executable, "-c", START, str(directory)], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.process
def test_the_real_one_reports_what_is_here() -> None:
    found = probe_accelerator()
    assert found.error is None
    assert found.backend in ("cpu", "metal", "cuda")
    assert found.mlx
    if found.backend == "cpu":
        assert found.limit_bytes is None


@pytest.mark.parametrize("error", ["ImportError('libmlx.so: no such file')", "OSError('libcuda')"])
def test_a_machine_without_mlx_is_a_report_too(tmp_path: Path, error: str) -> None:
    done = run(tmp_path, f"raise {error}")
    assert done.returncode == 0
    said = json.loads(done.stdout)
    assert said["backend"] == "none"
    assert said["error"] in ("libmlx.so: no such file", "libcuda")
    assert said["limit_bytes"] is None


FAKE = """
gpu, cpu = "gpu", "cpu"
def Device(kind, index): return (kind, index)
def device_count(kind): return {count}
def default_device(): return ("{default}", 0)
def device_info(): return {info}
class metal:
    @staticmethod
    def is_available(): return {metal}
"""


@pytest.mark.parametrize(
    ("count", "default", "metal", "info", "expected"),
    [
        (0, "cpu", False, {}, ("cpu", None, None)),
        (1, "cpu", True, {"max_recommended_working_set_size": 5}, ("cpu", None, None)),
        (
            1,
            "gpu",
            True,
            {"device_name": "Apple M3 Ultra", "max_recommended_working_set_size": 384},
            ("metal", 384, None),
        ),
        (1, "gpu", False, {"total_memory": 80, "free_memory": 70}, ("cuda", 80, 70)),
        (1, "gpu", False, {"memory_size": 80}, ("cuda", 80, None)),
        (1, "gpu", False, {}, ("cuda", None, None)),
    ],
)
def test_what_each_kind_of_machine_reports(
    tmp_path: Path,
    count: int,
    default: str,
    metal: bool,
    info: dict[str, object],
    expected: tuple[object, ...],
) -> None:
    done = run(tmp_path, FAKE.format(count=count, default=default, metal=metal, info=info))
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["backend"], said["limit_bytes"], said["free_bytes"]) == expected
    assert said["device"] == info.get("device_name", "")
    assert said["error"] is None
