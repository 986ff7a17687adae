"""Replacing a file whole: killed at every step, refused by the disk, and with others at the same time."""

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from exo_cli import atomic
from exo_cli.errors import CannotCreate, InputOutput

OLD = b"old " * 10
NEW = b"new!" * 600_000  # three chunks

# Replaces argv[1] with NEW and kills itself just before the step number argv[2].
KILLED = """
import os, signal, sys
from pathlib import Path
from exo_cli import atomic
left = int(sys.argv[2])
def step(name):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
atomic.replace(Path(sys.argv[1]), b"new!" * 600_000, step=step)
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty directory."""
    directory = tmp_path / "place"
    directory.mkdir()
    return directory


def _names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def _steps(path: Path) -> list[str]:
    taken: list[str] = []
    atomic.replace(path, NEW, step=taken.append)
    return taken


def test_the_steps_are_the_documented_ones_in_order(place: Path) -> None:
    taken = _steps(place / "f")
    assert list(dict.fromkeys(taken)) == list(atomic.STEPS)
    assert taken.count("write") == 3
    assert (place / "f").read_bytes() == NEW


@pytest.mark.process
@pytest.mark.parametrize("first", [True, False], ids=["first write", "overwrite"])
def test_killed_at_any_step_the_file_is_old_or_new_and_the_next_write_cleans_up(
    place: Path, first: bool
) -> None:
    path = place / "f"
    steps = _steps(place / "other")
    (place / "other").unlink()
    for number, name in enumerate(steps):
        path.unlink(missing_ok=True)
        if not first:
            path.write_bytes(OLD)
        child = subprocess.run([sys.executable, "-c", KILLED, str(path), str(number)], check=False)
        assert child.returncode == -signal.SIGKILL, name
        replaced = number > steps.index("replace")
        found = path.read_bytes() if path.exists() else None
        assert found == (NEW if replaced else None if first else OLD), name
        # What this one left stays until the next write, and never two of them.
        assert len([entry for entry in _names(place) if ".new-" in entry]) <= 1, name
    atomic.replace(path, b"next")
    assert _names(place) == ["f"]
    assert path.read_bytes() == b"next"


def test_a_sweep_takes_only_what_nobody_holds_and_only_our_names(place: Path) -> None:
    path = place / "f"
    (place / ".f.new-0123456789ab").write_bytes(b"left by a killed writer")
    for kept in (".f.new-notes", ".g.new-0123456789ab", "f.new-0123456789ab"):
        (place / kept).write_bytes(b"somebody's")
    seen: list[list[str]] = []

    def meanwhile(name: str) -> None:
        if name == "sync" and not seen:
            seen.append([])
            atomic.replace(path, b"other")  # its sweep meets our held temporary file
            seen[0] = _names(place)

    atomic.replace(path, b"ours", step=meanwhile)
    assert path.read_bytes() == b"ours"
    assert len([name for name in seen[0] if name.startswith(".f.new-") and name != ".f.new-notes"]) == 1
    assert _names(place) == [".f.new-notes", ".g.new-0123456789ab", "f", "f.new-0123456789ab"]


def test_a_temporary_file_swept_before_it_is_held_is_made_again(place: Path) -> None:
    path = place / "f"
    taken: list[str] = []

    def step(name: str) -> None:
        taken.append(name)
        if taken.count("hold") == 1 and name == "hold":
            atomic.replace(path, b"other")

    atomic.replace(path, b"ours", step=step)
    assert taken.count("create") == 2
    assert path.read_bytes() == b"ours"
    assert _names(place) == ["f"]


def test_writers_at_once_all_succeed_and_one_of_them_stays(place: Path) -> None:
    path = place / "f"
    failures: list[BaseException] = []

    def write(letter: bytes) -> None:
        try:
            for _ in range(20):
                atomic.replace(path, letter * 5000)
        except BaseException as error:  # noqa: BLE001 - carried to the test's thread
            failures.append(error)

    threads = [threading.Thread(target=write, args=(bytes([65 + number]),)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    data = path.read_bytes()
    assert len(data) == 5000
    assert len(set(data)) == 1
    assert _names(place) == ["f"]


@pytest.mark.parametrize(
    ("call", "number", "error"),
    [
        ("write", errno.ENOSPC, CannotCreate),
        ("write", errno.EDQUOT, CannotCreate),
        ("write", errno.EIO, InputOutput),
        ("fsync", errno.EIO, InputOutput),
        ("fsync", errno.ENOSPC, CannotCreate),
        ("replace", errno.EROFS, CannotCreate),
        ("replace", errno.EACCES, CannotCreate),
        ("open", errno.EROFS, CannotCreate),
        ("open", errno.EMFILE, InputOutput),
    ],
)
def test_a_refusal_leaves_the_old_file_and_nothing_else(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    number: int,
    error: type[CannotCreate] | type[InputOutput],
) -> None:
    path = place / "f"
    path.write_bytes(OLD)

    def refuse(*_arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(error, match=r"cannot write .*/f: ") as caught:
            atomic.replace(path, NEW)
    assert int(caught.value.exit) == (73 if error is CannotCreate else 74)
    assert caught.value.hint
    assert path.read_bytes() == OLD
    assert _names(place) == ["f"]


def test_an_interrupt_leaves_nothing(place: Path) -> None:
    def step(name: str) -> None:
        if name == "replace":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic.replace(place / "f", NEW, step=step)
    assert _names(place) == []


def test_a_directory_that_cannot_be_synced_is_no_failure(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[[int], None] = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not here")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    atomic.replace(place / "f", OLD)
    assert (place / "f").read_bytes() == OLD


@pytest.mark.parametrize(
    ("name", "words"),
    [("missing/f", "no such file"), ("file/f", "not a directory"), ("directory", "not a regular file")],
)
def test_where_no_file_can_be(place: Path, name: str, words: str) -> None:
    (place / "file").write_bytes(OLD)
    (place / "directory").mkdir()
    with pytest.raises(CannotCreate, match=words):
        atomic.replace(place / name, NEW)
    assert _names(place) == ["directory", "file"]


def test_a_device_is_refused() -> None:
    with pytest.raises(CannotCreate, match="not a regular file"):
        atomic.replace(Path(os.devnull), NEW)
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_the_mode_is_the_callers_under_the_umask(place: Path) -> None:
    before = os.umask(0o027)
    try:
        atomic.replace(place / "secret", b"s", mode=0o600)
        atomic.replace(place / "plain", b"p")
    finally:
        os.umask(before)
    assert stat.S_IMODE((place / "secret").stat().st_mode) == 0o600
    assert stat.S_IMODE((place / "plain").stat().st_mode) == 0o640


def test_nothing_at_all_can_be_written(place: Path) -> None:
    atomic.replace(place / "f", b"")
    assert (place / "f").read_bytes() == b""
