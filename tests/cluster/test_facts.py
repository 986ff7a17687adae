"""What a machine says of itself: processor, memory under limits, and an engine child that misbehaves."""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from exo_cli.cluster import facts
from exo_cli.cluster.facts import Accelerator, machine, memory, parse_cpuinfo, probe_accelerator

GIB = 1024**3
NONE = Accelerator(backend="cpu")


# -- the engine child --------------------------------------------------------------------------------


def child(program: str) -> Accelerator:
    return probe_accelerator((sys.executable, "-c", program))


def test_a_child_that_reports_is_believed() -> None:
    report = {"backend": "metal", "device": "Apple M3 Ultra", "limit_bytes": 5, "mlx": "0.32", "more": 1}
    said = child(f"print({json.dumps(report)!r})")
    assert said == Accelerator(backend="metal", device="Apple M3 Ultra", limit_bytes=5, mlx="0.32")


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("raise SystemExit(3)", "MLX ended with 3"),
        ("import sys; sys.exit('line one\\nno CUDA driver')", "MLX ended with 1: no CUDA driver"),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            f"MLX ended by signal {signal.SIGKILL:d}",
        ),
        ("print('hello')", "printed something else"),
        ("", "printed something else"),
        ("print('{\"backend\": 7}')", "printed something else"),
        ('import os; os.write(1, b\'{"backend": "\\xff"}\')', "printed something else"),
        ("import os; os.write(2, b'\\xff' * 999); os._exit(1)", "MLX ended with 1: "),
    ],
    ids=["exit", "message", "signal", "word", "nothing", "type", "bytes", "noise"],
)
def test_a_child_that_fails_is_an_answer(program: str, error: str) -> None:
    said = child(program)
    assert said.backend == "none"
    assert said.limit_bytes is None
    assert said.error is not None
    assert error in said.error
    assert len(said.error) < 300
    assert "\n" not in said.error


def test_a_child_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(facts, "PROBE_TIMEOUT_S", 0.5)
    pid_file = tmp_path / "pid"
    program = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    # The clean environment of a test starts Python quickly; a slow machine ends it before it wrote.
    said = child(program)
    assert said.error == "MLX did not start within 0.5 s"
    if pid_file.exists() and pid_file.read_text():
        assert not psutil.pid_exists(int(pid_file.read_text()))


def test_a_child_that_cannot_start_is_an_answer(tmp_path: Path) -> None:
    said = probe_accelerator((str(tmp_path / "nothing"),))
    assert said.error == f"cannot start Python: {os.strerror(2)}"


def test_the_child_does_not_read_our_input() -> None:
    assert child('import sys; print(\'{"backend": "%s"}\' % len(sys.stdin.read()))').backend == "0"


# -- memory ------------------------------------------------------------------------------------------


@pytest.fixture
def ram(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 GiB of which 40 are free."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=64 * GIB, available=40 * GIB))


Groups = Callable[..., Path]


@pytest.fixture
def groups(tmp_path: Path) -> Groups:
    """Makes a root directory: control group -> its files."""

    def make(cgroup: str, **files: dict[str, object]) -> Path:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(cgroup)
        for group, contents in files.items():
            directory = tmp_path / "sys/fs/cgroup" / group.strip("_").replace("__", "/")
            directory.mkdir(parents=True, exist_ok=True)
            for name, value in contents.items():
                (directory / f"memory.{name}").write_text(f"{value}\n")
        return tmp_path

    return make


def numbers(root: Path, accelerator: Accelerator = NONE) -> tuple[float, float, float]:
    found = memory(accelerator, root=root)
    return found.ram_bytes / GIB, found.limit_bytes / GIB, found.free_bytes / GIB


@pytest.mark.usefixtures("ram")
def test_without_a_limit_memory_is_the_machines(tmp_path: Path, groups: Groups) -> None:
    assert numbers(tmp_path / "no-such-root") == (64, 64, 40)
    assert numbers(groups("0::/user.slice\n", user={"max": "max", "current": 5})) == (64, 64, 40)


@pytest.mark.usefixtures("ram")
def test_a_limit_counts_as_ram(groups: Groups) -> None:
    root = groups("0::/\n", _={"max": 8 * GIB, "current": 3 * GIB})
    assert numbers(root) == (8, 8, 5)


@pytest.mark.usefixtures("ram")
def test_what_files_fill_is_free(groups: Groups) -> None:
    stat = (
        f"anon 1\nfile {7 * GIB}\nshmem 5\ninactive_anon 9\ninactive_file {4 * GIB}\nactive_file {2 * GIB}\n"
    )
    root = groups("0::/\n", _={"max": 8 * GIB, "current": 7 * GIB, "stat": stat})
    assert numbers(root) == (8, 8, 7)


@pytest.mark.usefixtures("ram")
@pytest.mark.parametrize(("outer", "inner", "left"), [(9, 1, 1), (1, 6, 2)])
def test_the_tightest_of_all_groups_counts(groups: Groups, outer: int, inner: int, left: int) -> None:
    root = groups(
        "12:pids:/a/b\n1:name=systemd:/a/b\n0::/a/b/c\n",
        a={"max": 10 * GIB, "current": outer * GIB},
        a__b={"max": 8 * GIB, "current": inner * GIB},
        a__b__c={"max": "max", "current": 1 * GIB},
    )
    assert numbers(root) == (8, 8, left)


@pytest.mark.usefixtures("ram")
@pytest.mark.parametrize("cgroup", ["", "garbage", "0::/not/below/this/mount\n", "0::/../../x\n"])
def test_a_container_sees_its_own_limit_at_the_root(groups: Groups, cgroup: str) -> None:
    assert numbers(groups(cgroup, _={"max": 4 * GIB, "current": 5 * GIB})) == (4, 4, 0)


@pytest.mark.usefixtures("ram")
def test_a_limit_above_the_ram_does_not_make_ram(groups: Groups) -> None:
    assert numbers(groups("0::/\n", _={"max": 99 * GIB, "current": 0})) == (64, 64, 40)


@pytest.mark.usefixtures("ram")
def test_the_accelerators_limit_is_another_number(tmp_path: Path) -> None:
    metal = Accelerator(backend="metal", limit_bytes=48 * GIB)
    assert numbers(tmp_path, metal) == (64, 48, 40)
    cuda = Accelerator(backend="cuda", limit_bytes=24 * GIB, free_bytes=20 * GIB)
    assert numbers(tmp_path, cuda) == (64, 24, 20)


# -- the processor -----------------------------------------------------------------------------------

X86 = """processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8488C
stepping\t: 8
bugs\t\t: spectre_v1

processor\t: 1
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8488C
"""
AMD = "model\t\t: 17\nmodel name\t: AMD Ryzen(TM) Threadripper  3990X 64-Core Processor   \n"
RASPBERRY = """processor\t: 0
BogoMIPS\t: 108.00
CPU implementer\t: 0x41
CPU part\t: 0xd0b

Revision\t: d04170
Serial\t\t: 0123456789abcdef
Model\t\t: Raspberry Pi 5 Model B Rev 1.0
"""
OLD_ARM = "processor\t: 0\nHardware\t: \nRevision\t: 0000\n"
GRAVITON = "processor\t: 0\nBogoMIPS\t: 2100.00\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (X86, "Intel Xeon Platinum 8488C"),
        (AMD, "AMD Ryzen Threadripper 3990X 64-Core Processor"),
        (RASPBERRY, "Raspberry Pi 5 Model B Rev 1.0"),
        (OLD_ARM, ""),
        (OLD_ARM.replace("Hardware\t: ", "Hardware\t: BCM2835"), "BCM2835"),
        (GRAVITON, ""),
        ("", ""),
    ],
    ids=["x86", "amd", "pi", "empty-value", "hardware", "server-arm", "nothing"],
)
def test_the_processors_name(text: str, name: str) -> None:
    assert parse_cpuinfo(text) == name


def test_this_machine_is_described() -> None:
    this = machine(NONE)
    assert len(this.host) == 16
    assert this.host == facts.host_id()
    assert this.cores >= 1
    assert this.chip
    assert this.os
    assert machine(Accelerator(backend="cuda", device="NVIDIA H200")).chip == "NVIDIA H200"


def test_the_machines_name_gives_nothing_away() -> None:
    machine_id = Path("/etc/machine-id")
    if machine_id.exists() and machine_id.read_text().strip():
        assert facts.host_id() not in machine_id.read_text()
