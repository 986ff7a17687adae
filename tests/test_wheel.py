"""What the wheel and the source archive hold, built from a copy of the tree without a network."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ["exo_cli", "man", "completions", "pyproject.toml", "README.md", "LICENSE"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("tree")
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / part)
    subprocess.run([sys.executable, "-m", "hatchling", "build"], cwd=copy, capture_output=True, check=True)
    return copy / "dist"


def wheel_names(built: Path) -> list[str]:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as archive:
        return archive.namelist()


def shared(built: Path) -> set[str]:
    return {name.split(".data/data/")[1] for name in wheel_names(built) if ".data/data/" in name}


@pytest.mark.process
def test_the_wheel_installs_pages_and_completions_where_they_are_looked_for(built: Path) -> None:
    pages = {f"share/man/{page.relative_to(ROOT / 'man')}" for page in (ROOT / "man").glob("man[157]/*")}
    assert {
        "share/man/man1/exo.1",
        "share/man/man5/exo-topology.5",
        "share/man/man7/exo-environment.7",
    } <= pages
    assert shared(built) == pages | {
        "share/bash-completion/completions/exo",
        "share/zsh/site-functions/_exo",
        "share/fish/vendor_completions.d/exo.fish",
    }


@pytest.mark.process
def test_the_wheel_holds_the_whole_package_and_nothing_else(built: Path) -> None:
    package = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "exo_cli").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    others = [name for name in wheel_names(built) if ".dist-info/" not in name and ".data/" not in name]
    assert set(others) == package
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel_names(built))


@pytest.mark.process
def test_a_wheel_can_be_made_from_the_source_archive(built: Path, tmp_path: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path, filter="data")
    root = next(tmp_path.glob("exo_cli-*"))
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel"], cwd=root, capture_output=True, check=True
    )
    assert sorted(wheel_names(root / "dist")) == sorted(wheel_names(built))
