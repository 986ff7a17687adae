"""llama.cpp built for this very processor, once, from the source that llama-cpp-python brings along.

Needs a C++ compiler on the machine; cmake, ninja and the converter's packages come into an environment of
the harness's own. Source, flags and the compiler decide whether what is there is built anew. Knows
nothing of models and measurements.
"""

import json
import os
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from benchmarks.peers import places

VERSION: Final = "0.3.36"
SHA256: Final = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
FLAGS: Final = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DGGML_RPC=ON",
    "-DGGML_OPENMP=ON",
    "-DGGML_CCACHE=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DBUILD_SHARED_LIBS=OFF",
)
TARGETS: Final = (
    "llama-bench",
    "llama-batched-bench",
    "llama-completion",
    "llama-perplexity",
    "ggml-rpc-server",
    "llama-server",
)
REQUIREMENTS: Final = Path(__file__).with_name("requirements.txt")


@dataclass(frozen=True, slots=True)
class Programs:
    """What was built, and how."""

    folder: Path
    python: Path
    """An interpreter with the converter's packages."""
    bandwidth: Path
    compiler: str

    def path(self, name: str) -> str:
        return str(self.folder / name)

    @property
    def described(self) -> dict[str, str]:
        """For a result file."""
        return {
            "source": f"llama-cpp-python {VERSION} (sdist, sha256 {SHA256})",
            "compiler": self.compiler,
            "flags": " ".join(FLAGS),
        }


def ensure(jobs: int = 1) -> Programs:
    """Everything that is not there yet."""
    compiler = _compiler()
    place = places.cache() / f"llama.cpp-{VERSION}"
    python = _environment()
    stamp = place / "built.json"
    wanted = {"sha256": SHA256, "flags": FLAGS, "targets": TARGETS, "compiler": compiler, "cpu": _features()}
    if not stamp.exists() or json.loads(stamp.read_text()) != json.loads(json.dumps(wanted)):
        _build(place, python, jobs)
        stamp.write_text(json.dumps(wanted), encoding="utf-8")
    return Programs(place / "build" / "bin", python, _bandwidth(place), compiler)


def _compiler() -> str:
    try:
        said = subprocess.run(["c++", "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        raise SystemExit(
            "the peers harness builds llama.cpp and found no C++ compiler (apt install g++)"
        ) from None
    return said.splitlines()[0]


def _features() -> str:
    """What code for this very processor depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return sha256(flags.encode()).hexdigest()[:16]


def _environment() -> Path:
    """The harness's own interpreter, with what requirements.txt names."""
    place = places.cache() / "venv"
    python, stamp = place / "bin" / "python", place / "installed.txt"
    wanted = REQUIREMENTS.read_text(encoding="utf-8")
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
        _say("an environment for the converter")
        _run([sys.executable, "-m", "venv", str(place)])
        quiet = ["--quiet", "--disable-pip-version-check"]
        _run([str(python), "-m", "pip", "install", *quiet, "-r", str(REQUIREMENTS)])
        stamp.write_text(wanted, encoding="utf-8")
    return python


def _build(place: Path, python: Path, jobs: int) -> None:
    source = place / "source" / "vendor" / "llama.cpp"
    if not source.is_dir():
        _unpack(_sdist(place, python), place)
    tools = {**os.environ, "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
    build = place / "build"
    _say("llama.cpp for this processor (several minutes, once)")
    _run(["cmake", "-G", "Ninja", "-S", str(source), "-B", str(build), *FLAGS], tools)
    _run(["nice", "-n", "15", "ninja", "-C", str(build), "-j", str(jobs), *TARGETS], tools)


def _sdist(place: Path, python: Path) -> Path:
    file = place / f"llama_cpp_python-{VERSION}.tar.gz"
    if not file.exists():
        place.mkdir(parents=True, exist_ok=True)
        _say("the source of llama.cpp")
        only = ["--no-deps", "--no-binary", "llama-cpp-python", f"llama-cpp-python=={VERSION}"]
        _run([str(python), "-m", "pip", "download", "--quiet", *only, "-d", str(place)])
    if sha256(file.read_bytes()).hexdigest() != SHA256:
        raise SystemExit(f"{file} is not the archive that was meant; remove it and try again")
    return file


def _unpack(archive: Path, place: Path) -> None:
    unfinished = places.fresh(place / "source")
    with tarfile.open(archive) as tar:
        tar.extractall(unfinished, filter="data")
    (unfinished / f"llama_cpp_python-{VERSION}").rename(place / "source")
    unfinished.rmdir()


def _bandwidth(place: Path) -> Path:
    source, program = Path(__file__).with_name("bandwidth.c"), place / "bandwidth"
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        _run(["cc", "-O3", "-march=native", "-fopenmp", str(source), "-o", str(program)])
    return program


def _run(command: list[str], environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise SystemExit("\n".join([f"{' '.join(command[:4])} … ended with {done.returncode}:", *said[-20:]]))


def _say(making: str) -> None:
    print(f"making {making}", file=sys.stderr, flush=True)
