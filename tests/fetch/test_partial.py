import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from exo_cli import atomic
from exo_cli.errors import BadData, CannotCreate, ExoError, Internal, TryAgain
from exo_cli.fetch import sparse
from exo_cli.fetch.partial import LOCK, MAP, MapFile, Partial, coverage
from exo_cli.fetch.partial_writer import PartialWriter
from exo_cli.fetch.pieces import Span

DIGEST = "ab" * 32
NAME = "model.safetensors"
SIZE = 10_000_000


def opened(tmp_path: Path) -> PartialWriter:
    writer = PartialWriter.open(tmp_path, DIGEST, name="org/name", revision="r1")
    writer.add({NAME: SIZE})
    return writer


def read(tmp_path: Path) -> Partial:
    found = Partial.read(tmp_path / DIGEST)
    assert found is not None
    return found


def test_what_was_kept_is_there(tmp_path: Path) -> None:
    with opened(tmp_path) as writer:
        writer.keep(NAME, 5_000_001, b"hello")
        writer.keep(NAME, 5_000_006, b" world")
    store = read(tmp_path)
    assert (store.map.name, store.map.revision, store.is_complete) == ("org/name", "r1", False)
    assert store.covers(NAME, 5_000_001, 5_000_012)
    assert not store.covers(NAME, 5_000_000, 5_000_012)
    assert not store.covers("other.safetensors", 0, 1)
    assert not store.covers(NAME, 0, SIZE + 1)
    assert store.missing([Span(NAME, 5_000_000, 5_000_014)]) == [
        Span(NAME, 5_000_000, 5_000_001),
        Span(NAME, 5_000_012, 5_000_014),
    ]
    file = tmp_path / DIGEST / NAME
    assert file.stat().st_size == SIZE
    assert file.stat().st_blocks * 512 < SIZE / 2
    assert file.read_bytes()[5_000_001:5_000_012] == b"hello world"


def test_small_files_are_whole_or_absent(tmp_path: Path) -> None:
    with opened(tmp_path) as writer:
        writer.add({"config.json": 2})
        assert not (writer.path / "config.json").exists()
        assert not writer.view.covers("config.json", 0, 2)
        writer.put("config.json", b"{}")
        assert writer.view.covers("config.json", 0, 2)
        writer.put("config.json", b"{ }")
    assert read(tmp_path).file("config.json") == MapFile("config.json", 3, [(0, 3)])


def test_complete_when_every_byte_is_there(tmp_path: Path) -> None:
    with PartialWriter.open(tmp_path, DIGEST) as writer:
        assert not writer.view.is_complete
        writer.add({"a.safetensors": 4, "b.safetensors": 3})
        writer.keep("a.safetensors", 0, b"aaaa")
        writer.keep("b.safetensors", 1, b"bb")
        assert not read(tmp_path).is_complete
        writer.keep("b.safetensors", 0, b"b")
    assert read(tmp_path).is_complete


def test_bytes_are_on_the_disk_before_the_map_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    true_sync, true_replace = sparse._sync, atomic.replace

    def sync(descriptor: int) -> None:
        order.append("bytes")
        true_sync(descriptor)

    def replace(path: Path, data: bytes) -> None:
        order.append("map")
        true_replace(path, data)

    monkeypatch.setattr(sparse, "_sync", sync)
    monkeypatch.setattr(atomic, "replace", replace)
    with opened(tmp_path) as writer:
        order.clear()
        writer.keep(NAME, 0, b"x")
        assert order == ["bytes", "map"]

        def full(_fd: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(sparse, "_sync", full)
        with pytest.raises(CannotCreate):
            writer.keep(NAME, 100, b"x")
        assert not writer.view.covers(NAME, 100, 101)
    assert not read(tmp_path).covers(NAME, 100, 101)
    assert read(tmp_path).covers(NAME, 0, 1)


def test_one_writer_at_a_time_and_a_dead_one_is_none(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom exo_cli.fetch.partial_writer import PartialWriter\n"
        f"w = PartialWriter.open(Path(sys.argv[1]), '{DIGEST}')\nprint('mine', flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "mine\n"
            with pytest.raises(TryAgain):
                PartialWriter.open(tmp_path, DIGEST)
        finally:
            other.kill()
        other.wait()
    first = PartialWriter.open(tmp_path, DIGEST)
    with pytest.raises(TryAgain):
        PartialWriter.open(tmp_path, DIGEST)
    first.close()
    first.close()
    PartialWriter.open(tmp_path, DIGEST).close()


def test_a_thread_that_outlives_its_writer_changes_no_map(tmp_path: Path) -> None:
    writer = opened(tmp_path)
    writer.close()
    writer.keep(NAME, 0, b"late")
    assert not read(tmp_path).covers(NAME, 0, 1)


def test_threads_lose_no_marks(tmp_path: Path) -> None:
    with opened(tmp_path) as writer:

        def work(number: int) -> None:
            for turn in range(8):
                writer.keep(NAME, (turn * 4 + number) * 100, bytes([number]) * 100)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    store = read(tmp_path)
    assert store.file(NAME) == MapFile(NAME, SIZE, [(0, 3200)])
    assert (store.path / NAME).read_bytes()[:3200] == b"".join(bytes([n % 4]) * 100 for n in range(32))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / MAP).unlink(),
        lambda path: (path / MAP).write_bytes(b""),
        lambda path: (path / MAP).write_bytes(b'{"schema":'),
        lambda path: (path / MAP).write_text((path / MAP).read_text().replace("exo.map/1", "exo.map/9")),
        lambda path: (path / MAP).write_text((path / MAP).read_text().replace(DIGEST, "cd" * 32)),
        lambda path: (path / MAP).write_text((path / MAP).read_text().replace("[0,5]", "[0,99999999]")),
        lambda path: (path / MAP).write_text((path / MAP).read_text().replace("[0,5]", "[-5,5]")),
        lambda path: (path / MAP).write_text((path / MAP).read_text().replace(NAME, "../" + NAME)),
        lambda path: (path / NAME).unlink(),
        lambda path: os.truncate(path / NAME, 3),
        lambda path: ((path / NAME).rename(path / "x"), (path / NAME).symlink_to("x")),
    ],
)
def test_a_damaged_store_claims_nothing(tmp_path: Path, damage: object) -> None:
    with opened(tmp_path) as writer:
        writer.keep(NAME, 0, b"hello")
    path = tmp_path / DIGEST
    assert coverage(path)(NAME, 0, 5)
    assert callable(damage)
    damage(path)
    assert not coverage(path)(NAME, 0, 1)
    store = Partial.read(path)
    assert store is None or not store.covers(NAME, 0, 1)
    if (path / NAME).is_symlink():
        with PartialWriter.open(tmp_path, DIGEST) as writer, pytest.raises(ExoError):
            writer.add({NAME: SIZE})
        return
    with opened(tmp_path) as writer:
        writer.keep(NAME, 0, b"again")
    assert read(tmp_path).covers(NAME, 0, 5)
    assert (path / NAME).stat().st_size == SIZE


def test_any_other_directory_counts_as_whole(tmp_path: Path) -> None:
    assert coverage(tmp_path)("model.safetensors", 0, 10)


def test_what_belongs_nowhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadData):
        PartialWriter.open(tmp_path, "../" + "a" * 61)
    with opened(tmp_path) as writer:
        for name in ("../x.safetensors", "/x.safetensors", "x.py", LOCK, MAP):
            with pytest.raises(BadData):
                writer.add({name: 5})
            with pytest.raises(BadData):
                writer.put(name, b"x")
            with pytest.raises(Internal):
                writer.write_at(name, 0, b"x")
        for start in (-1, SIZE):
            with pytest.raises(Internal):
                writer.write_at(NAME, start, b"x")
    assert sorted(each.name for each in (tmp_path / DIGEST).iterdir()) == [LOCK, MAP, NAME]


def test_forgetting_takes_the_files_along(tmp_path: Path) -> None:
    with opened(tmp_path) as writer:
        writer.keep(NAME, 0, b"hello")
        writer.forget()
        assert not writer.view.map.files
        assert not (writer.path / NAME).exists()


def test_the_map_is_json_that_says_what_it_is(tmp_path: Path) -> None:
    with opened(tmp_path) as writer:
        writer.keep(NAME, 0, b"hello")
    found = json.loads((tmp_path / DIGEST / MAP).read_text())
    assert found["schema"] == "exo.map/1"
    file = {"path": NAME, "size": SIZE, "ranges": [[0, 5]], "etag": "", "verified": False}
    assert found["files"] == [file]
