"""The topology file under attack: killed writers, writers at once, a full disk, and files of others."""

import fcntl
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from exo_cli.cluster.merge import merge
from exo_cli.cluster.topology_file import STEPS, TopologyFile, encode
from exo_cli.errors import BadData, CannotCreate, ExoError, InputOutput, NotFound, TryAgain, VersionMismatch
from exo_cli.schemas.decode import MAX_DOCUMENT_BYTES
from exo_cli.schemas.topology import Memory, Topology
from tests.support.records import link, node

ROOT = os.geteuid() == 0
NOBODY = 65534
HERE = Path(__file__).parents[2]


def _add(name: str, size: int = 0) -> Callable[[Topology], Topology]:
    """A change as `discover` makes it; `size` makes the file larger."""
    return lambda old: merge(old, [node(name, chip="x" * size)], [], now_unix_ms=1)


def _ids(topology: Topology) -> list[str]:
    return [found.id for found in topology.nodes]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "exo" / "topology.json"


def _left(path: Path) -> list[str]:
    """What stands in the directory beside the file and its lock."""
    return sorted(set(os.listdir(path.parent)) - {path.name, path.name + ".lock"})


# -- reading and changing ---------------------------------------------------------------------------


def test_without_a_file_the_topology_is_empty(path: Path) -> None:
    file = TopologyFile(path)
    assert file.read() == Topology()
    assert json.loads(file.read_bytes()) == {
        "schema": "exo.topology/1",
        "generation": 0,
        "nodes": [],
        "links": [],
    }
    with pytest.raises(NotFound) as caught:
        file.read(must_exist=True)
    assert "exo discover" in (caught.value.hint or "")
    assert not path.parent.exists()


def test_a_change_is_written_once_and_read_back(path: Path) -> None:
    file = TopologyFile(path)
    written = file.update(_add("a"))
    assert written.generation == 1
    assert file.read(must_exist=True) == written
    assert file.read_bytes() == path.read_bytes() == encode(written)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert _left(path) == []


def test_no_change_is_not_written(path: Path) -> None:
    file = TopologyFile(path)
    # A Makefile waits for the file: that nobody is there is written once.
    assert file.update(lambda old: old).generation == 1
    assert path.exists()
    file.update(_add("a"))
    before = path.stat()
    again = file.update(_add("a"))
    counted = file.update(lambda old: msgspec.structs.replace(old, generation=99))
    assert again.generation == counted.generation == 2
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_the_same_topology_gives_the_same_bytes(path: Path) -> None:
    nodes = (node("2", name="mac"), node("1", name="mac"), node("0", name="studio"))
    links = (link("2", "0"), link("0", "2"), link("0", "1"))
    data = encode(Topology(nodes=nodes, links=links))
    assert data == encode(Topology(nodes=nodes[::-1], links=links[::-1]))
    document = json.loads(data)
    assert [found["id"] for found in document["nodes"]] == ["1", "2", "0"]
    assert [(found["from"], found["to"]) for found in document["links"]] == [
        ("0", "1"),
        ("0", "2"),
        ("2", "0"),
    ]
    assert data.startswith(b'{\n  "schema": "exo.topology/1",\n  "generation": 0,\n  "nodes": [\n    {\n')
    assert data.endswith(b"}\n")


def test_swap_only_what_was_read(path: Path) -> None:
    file = TopologyFile(path)
    first = file.update(_add("a"))
    second = file.compare_and_swap(1, msgspec.structs.replace(first, nodes=(node("b"),)))
    assert (second.generation, _ids(second)) == (2, ["b"])
    with pytest.raises(TryAgain, match="generation 2, not 1"):
        file.compare_and_swap(1, first)
    assert file.read() == second


def test_a_change_that_fails_changes_nothing(path: Path) -> None:
    file = TopologyFile(path)
    before = file.update(_add("a"))

    def fail(_old: Topology) -> Topology:
        raise BadData("no")

    with pytest.raises(BadData):
        file.update(fail)
    assert file.read() == before
    assert file.update(_add("b"), timeout_s=0).generation == 2


@pytest.mark.parametrize(
    "poison",
    [
        node("x", cores=-1),
        node("x", memory=Memory(ram_bytes=1, limit_bytes=1, free_bytes=float("nan"))),  # type: ignore[arg-type]
        node("x", chip="\ud800"),
        node("x", backend=7),
        node("x", seq=2**63),
    ],
    ids=["negative", "nan", "surrogate", "type", "huge"],
)
def test_a_record_that_could_not_be_read_again_is_not_written(path: Path, poison: object) -> None:
    file = TopologyFile(path)
    before = file.update(_add("a"))
    with pytest.raises(BadData, match="written"):
        file.update(lambda old: msgspec.structs.replace(old, nodes=(*old.nodes, poison)))
    assert file.read() == before


def test_a_figure_that_is_no_number_is_written_as_null_and_only_once(path: Path) -> None:
    file = TopologyFile(path)

    def change(old: Topology) -> Topology:
        return merge(old, [node("x", loopback_bytes_per_s=float("nan"))], [], now_unix_ms=1)

    assert file.update(change).nodes[0].loopback_bytes_per_s is None
    assert file.update(change).generation == 1


def test_a_symbolic_link_is_followed_to_one_file_and_one_lock(path: Path, tmp_path: Path) -> None:
    TopologyFile(path).update(_add("a"))
    other = tmp_path / "link.json"
    other.symlink_to(path)
    TopologyFile(other).update(_add("b"))
    assert other.is_symlink()
    assert _ids(TopologyFile(path).read()) == ["a", "b"]
    assert not (tmp_path / "link.json.lock").exists()


# -- the lock ---------------------------------------------------------------------------------------


class SimulatedTime:
    def __init__(self) -> None:
        self.now = 100.0
        self.slept = 0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += 1


def _hold(path: Path, words: bytes) -> int:
    lock = path.with_name(path.name + ".lock")
    lock.write_bytes(words)
    descriptor = os.open(lock, os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


@pytest.mark.parametrize(
    ("words", "expected"),
    [(b"4711\n", "by process 4711"), (b"", "by somebody else"), (b"\x1b[2J", "somebody else")],
)
def test_a_held_lock_is_waited_for_and_then_named(path: Path, words: bytes, expected: str) -> None:
    time = SimulatedTime()
    file = TopologyFile(path, clock=time.clock, sleep=time.sleep)
    before = file.update(_add("a"))
    descriptor = _hold(path, words)
    with pytest.raises(TryAgain, match=expected):
        file.update(_add("b"))
    assert time.now >= 105
    assert time.slept > 100
    assert file.read() == before  # readers do not wait
    os.close(descriptor)
    assert _ids(file.update(_add("b"))) == ["a", "b"]


def test_the_lock_is_taken_as_soon_as_it_is_free(path: Path) -> None:
    TopologyFile(path).update(_add("a"))
    descriptor = _hold(path, b"1\n")
    sleeps: list[float] = []

    def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        if len(sleeps) == 3:
            os.close(descriptor)

    assert TopologyFile(path, sleep=sleep).update(_add("b")).generation == 2
    assert len(sleeps) == 3


def test_the_holder_writes_its_pid_and_wipes_it(path: Path) -> None:
    lock = path.with_name(path.name + ".lock")
    seen: list[bytes] = []

    def change(old: Topology) -> Topology:
        seen.append(lock.read_bytes())
        return _add("a")(old)

    TopologyFile(path).update(change)
    assert seen == [f"{os.getpid()}\n".encode()]
    assert lock.read_bytes() == b""


def test_a_lock_that_is_a_symbolic_link_is_not_followed(path: Path, tmp_path: Path) -> None:
    path.parent.mkdir(parents=True)
    (tmp_path / "precious").write_bytes(b"precious")
    path.with_name(path.name + ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(CannotCreate):
        TopologyFile(path).update(_add("a"))
    assert (tmp_path / "precious").read_bytes() == b"precious"


# -- killed writers ---------------------------------------------------------------------------------

# Adds node argv[2] and kills itself just before the step number argv[3]; -1 prints the steps instead.
WRITER = """
import os, signal, sys
from pathlib import Path
from exo_cli.cluster.merge import merge
from exo_cli.cluster.topology_file import TopologyFile
from tests.support.records import node
left = int(sys.argv[3])
def step(name):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    print(name)
def change(old):
    return merge(old, [node(sys.argv[2], chip="x" * 1_500_000)], [], now_unix_ms=1)
TopologyFile(Path(sys.argv[1]), step=step).update(change, timeout_s=60)
"""


def _writer(path: Path, name: str, kill_at: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WRITER, str(path), name, str(kill_at)],
        cwd=HERE,
        check=False,
        capture_output=True,
        text=True,
    )


@pytest.mark.process
@pytest.mark.parametrize("first", [True, False], ids=["first write", "overwrite"])
def test_a_writer_killed_at_any_step_leaves_the_old_file_or_the_new(path: Path, first: bool) -> None:
    file = TopologyFile(path)
    whole = _writer(path, "probe", -1)
    steps = whole.stdout.split()
    assert list(dict.fromkeys(steps)) == list(STEPS), whole.stderr
    assert steps.count("write") == 2
    for number, name in enumerate(steps):
        shutil.rmtree(path.parent)
        before = Topology() if first else file.update(_add("before"))
        old_bytes = None if first else path.read_bytes()
        killed = _writer(path, "killed", number)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        if number > steps.index("replace"):
            found = file.read(must_exist=True)
            assert found.generation == before.generation + 1, name
            assert _ids(found) == [*_ids(before), "killed"], name
        else:
            assert (path.read_bytes() if path.exists() else None) == old_bytes, name
        # The kernel released the lock: the next writer needs no waiting, and cleans up.
        after = file.update(_add("next"), timeout_s=0)
        assert (
            after.generation
            == file.read().generation
            == 1 + before.generation + (number > steps.index("replace"))
        )
        assert _left(path) == [], name


COUNTER = """
import sys
from pathlib import Path
import msgspec
from exo_cli.cluster.merge import merge
from exo_cli.cluster.topology_file import TopologyFile
from tests.support.records import node
def change(old):
    mine = [found.seq for found in old.nodes if found.id == sys.argv[2]]
    return merge(old, [node(sys.argv[2], seq=sum(mine) + 1)], [], now_unix_ms=1)
file = TopologyFile(Path(sys.argv[1]))
sys.stdin.readline()
for _ in range(50):
    file.update(change, timeout_s=60)
"""


@pytest.mark.process
def test_eight_writers_at_once_lose_nothing_and_a_reader_never_looks_back(path: Path) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", COUNTER, str(path), f"writer-{number}"],
            cwd=HERE,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(8)
    ]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    file = TopologyFile(path)
    last, seen = 0, set()
    try:
        while any(writer.poll() is None for writer in writers):
            found = file.read()  # torn JSON would raise here
            assert found.generation >= last
            # Each write added one to one writer's count: a file is whole if they agree.
            assert sum(known.seq for known in found.nodes) == found.generation
            last = found.generation
            seen.add(last)
    finally:
        for writer in writers:
            writer.kill()
            _, stderr = writer.communicate()
    assert [writer.returncode for writer in writers] == [0] * 8, stderr
    final = file.read()
    assert final.generation == 400
    assert [known.seq for known in final.nodes] == [50] * 8
    assert len(seen) > 10
    assert _left(path) == []


# -- a full disk ------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    if not (ROOT and sys.platform == "linux"):
        pytest.skip("mounting a tmpfs needs root on Linux")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
    mounted = subprocess.run(mount, check=False, capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def _fill(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as out, suppress(OSError):
        while out.write(bytes(4096)):
            pass
    return filler


@pytest.mark.process
@pytest.mark.parametrize("exists", [True, False], ids=["overwrite", "first write"])
def test_on_a_full_disk_the_old_file_stays_whole(small_disk: Path, exists: bool) -> None:
    path = small_disk / "topology.json"
    file = TopologyFile(path)
    if exists:
        file.update(_add("a", size=20_000))
    old = path.read_bytes() if exists else None
    filler = _fill(small_disk)
    with pytest.raises(CannotCreate, match="no space left") as caught:
        file.update(_add("b", size=20_000))
    assert int(caught.value.exit) == 73
    assert "Free some space" in (caught.value.hint or "")
    assert (path.read_bytes() if path.exists() else None) == old
    assert _left(path) == ["filler"]
    filler.unlink()
    assert _ids(file.update(_add("b", size=20_000))) == (["a", "b"] if exists else ["b"])


@pytest.mark.process
def test_a_change_larger_than_the_disk_leaves_the_old_file(small_disk: Path) -> None:
    path = small_disk / "topology.json"
    file = TopologyFile(path)
    before = file.update(_add("a"))
    with pytest.raises(CannotCreate):
        file.update(_add("b", size=3_000_000))
    assert file.read() == before
    assert _left(path) == []


# -- files of others --------------------------------------------------------------------------------

BAD: list[tuple[str, bytes, type[ExoError], int, str]] = [
    ("empty", b"", BadData, 65, "is not JSON"),
    ("binary", bytes(range(256)), BadData, 65, "is not JSON"),
    ("truncated", encode(Topology(nodes=(node("a"),)))[:200], BadData, 65, "is not JSON"),
    ("foreign JSON", b'{"name":"left-pad"}', BadData, 65, "does not say which 'schema'"),
    ("a plan", b'{"schema":"exo.plan/1"}', BadData, 65, "is an exo.plan/1, not an exo.topology/1"),
    ("wrong shape", b'{"schema":"exo.topology/1","nodes":[{"id":1}]}', BadData, 65, r"\$\.nodes\[0\]\.id"),
    ("newer", b'{"schema":"exo.topology/2"}', VersionMismatch, 76, "exo.topology/2"),
    ("too large", b" " * (MAX_DOCUMENT_BYTES + 1), BadData, 65, "larger than 16 MiB"),
]


@pytest.mark.parametrize("use", ["read", "update"])
@pytest.mark.parametrize(
    ("data", "error", "exit", "words"), [row[1:] for row in BAD], ids=[row[0] for row in BAD]
)
def test_a_bad_file_is_refused_and_not_touched(
    path: Path, data: bytes, error: type[ExoError], exit: int, words: str, use: str
) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    file = TopologyFile(path)
    with pytest.raises(error, match=words) as caught:
        file.read() if use == "read" else file.update(_add("a"))
    assert int(caught.value.exit) == exit
    assert str(path) in caught.value.message
    hint = caught.value.hint or ""
    assert "Update exo" in hint if exit == 76 else f"rm {path}" in hint
    assert path.read_bytes() == data
    assert _left(path) == []


def test_an_endless_file_is_read_up_to_the_bound() -> None:
    with pytest.raises(BadData, match="larger than 16 MiB"):
        TopologyFile(Path("/dev/zero")).read()


def test_a_pipe_can_be_read(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(encode(Topology(nodes=(node("a", chip="x" * 200_000),))))
    with subprocess.Popen(["cat", str(source)], stdout=subprocess.PIPE) as cat:
        assert cat.stdout is not None
        assert _ids(TopologyFile(Path(f"/dev/fd/{cat.stdout.fileno()}")).read()) == ["a"]


def test_a_directory_in_its_place(path: Path) -> None:
    path.mkdir(parents=True)
    file = TopologyFile(path)
    uses: list[Callable[[], Topology]] = [file.read, lambda: file.update(_add("a"))]
    for use in uses:
        with pytest.raises(InputOutput, match=r"cannot read .*is a directory") as caught:
            use()
        assert int(caught.value.exit) == 74


def test_a_file_in_the_place_of_its_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputOutput, match="not a directory"):
        TopologyFile(tmp_path / "file" / "topology.json").read()
    with pytest.raises(CannotCreate, match="not a directory"):
        TopologyFile(tmp_path / "file" / "topology.json").update(_add("a"))


# Reads, then updates, as somebody to whom the file does not belong.
STRANGER = """
import os, sys
from pathlib import Path
from exo_cli.cluster.topology_file import TopologyFile
from exo_cli.errors import ExoError
from tests.support.records import node
import msgspec
if os.geteuid() == 0:
    os.setuid(int(sys.argv[2]))
file = TopologyFile(Path(sys.argv[1]))
for use in (file.read, lambda: file.update(lambda old: old)):
    try:
        use()
    except ExoError as error:
        print(int(error.exit), error.message)
"""


@pytest.mark.process
@pytest.mark.parametrize(
    ("file_mode", "directory_mode", "expected"),
    [
        (0o000, 0o755, ["74 cannot read PATH: permission denied", "73 cannot write PATH: permission denied"]),
        (0o444, 0o555, ["73 cannot write PATH: permission denied"]),
    ],
    ids=["unreadable", "read-only"],
)
def test_what_is_not_permitted(file_mode: int, directory_mode: int, expected: list[str]) -> None:
    # Not under tmp_path, which is closed to the user that the child becomes.
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "topology.json"
        path.write_bytes(encode(Topology()))
        path.chmod(file_mode)
        Path(name).chmod(directory_mode)
        child = subprocess.run(
            [sys.executable, "-c", STRANGER, str(path), str(NOBODY)],
            cwd=HERE,
            check=False,
            capture_output=True,
            text=True,
        )
        Path(name).chmod(0o755)
    if not ROOT and file_mode == 0:
        # The directory is our own, so the lock can be made and reading is what fails.
        expected = [expected[0], expected[0]]
    assert child.stdout.replace(str(path), "PATH").splitlines() == expected, child.stderr
