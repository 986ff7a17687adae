"""Captures in a directory: written and read back, and what is refused."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from exo_cli.errors import BadData, CannotCreate, NotFound
from exo_cli.rdma.capture import MANIFEST, MAX_BYTES, Capture, Said, read, write

MAC = Capture(
    "darwin",
    "mac-1",
    {
        "rdma_ctl": Said(0, b"enabled\n"),
        "thunderbolt": Said(0, b"{}\n"),
        "ibv_devinfo": Said(255, b"", b"No IB devices found\n"),
        "ibv_devices": Said(127, there=False),
    },
)


def manifest(directory: Path, **changes: Any) -> Path:
    directory.mkdir(exist_ok=True)
    document = {"schema": "exo.capture/1", "platform": "darwin", "node": "mac-1", "entries": [], **changes}
    (directory / MANIFEST).write_text(json.dumps(document))
    return directory


def entry(**changes: Any) -> dict[str, Any]:
    return {"name": "rdma_ctl", "argv": ["rdma_ctl", "status"], "exit": 0, "file": "rdma_ctl.txt", **changes}


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write((MAC,), tmp_path / "one", several=False)
    assert read(tmp_path / "one") == (MAC,)
    assert json.loads((tmp_path / "one" / MANIFEST).read_text())["entries"][0] == {
        "name": "rdma_ctl",
        "argv": ["rdma_ctl", "status"],
        "exit": 0,
        "file": "rdma_ctl.txt",
        "provenance": {"kind": "observed", "source": "exo rdma-check --capture"},
    }


def test_several_nodes_have_a_directory_each(tmp_path: Path) -> None:
    two = Capture("linux", "../b c", {"id": Said(0, b"uid=0(root) gid=0(root)\n")})
    write((MAC, two), tmp_path / "all", several=True)
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["___b_c", "mac-1"]
    assert sorted(one.node for one in read(tmp_path / "all")) == ["../b c", "mac-1"]


def test_a_directory_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(CannotCreate):
        write((MAC,), tmp_path, several=False)
    assert [path.name for path in tmp_path.iterdir() if path.name != "home"] == ["mine"]


def test_unknown_texts_and_keys_are_skipped(tmp_path: Path) -> None:
    entries = [entry(name="tomorrow", file=None, colour="red"), entry()]
    (manifest(tmp_path / "a", entries=entries, more=1) / "rdma_ctl.txt").write_bytes(b"enabled\n")
    (found,) = read(tmp_path / "a")
    assert found.texts == {"rdma_ctl": Said(0, b"enabled\n")}


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "..", ".", "", "a\\b", "a\0b"])
def test_no_file_outside_the_directory_is_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / "x").write_text("secret")
    with pytest.raises(BadData, match="inside its directory"):
        read(manifest(tmp_path / "a", entries=[entry(file=name)]))


def test_no_link_and_no_pipe_is_followed(tmp_path: Path) -> None:
    directory = manifest(tmp_path / "a", entries=[entry()])
    (tmp_path / "secret").write_text("secret")
    (directory / "rdma_ctl.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(BadData):
        read(directory)
    (directory / "rdma_ctl.txt").unlink()
    os.mkfifo(directory / "rdma_ctl.txt")
    with pytest.raises(BadData, match="no plain file"):
        read(directory)


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": "exo.capture/9"},
        {"platform": "plan9"},
        {"node": ""},
        {"node": 7},
        {"entries": {}},
        {"entries": [entry(path="/x")]},
        {"entries": [entry(argv=None)]},
        {"entries": [entry(exit="0")]},
        {"entries": [entry(file=None), entry(file=None)]},
        {"entries": [entry(stderr="missing.txt", file=None)]},
    ],
)
def test_a_manifest_that_does_not_say_what_it_must(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(BadData):
        read(manifest(tmp_path / "a", **changes))


def test_a_text_of_a_size_that_no_tool_prints_is_refused(tmp_path: Path) -> None:
    directory = manifest(tmp_path / "a", entries=[entry()])
    (directory / "rdma_ctl.txt").write_bytes(b"x" * (MAX_BYTES + 1))
    with pytest.raises(BadData, match="more than"):
        read(directory)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFound):
        read(tmp_path / "empty")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / MANIFEST).write_text("{")
    with pytest.raises(BadData):
        read(tmp_path / "broken")


def test_two_nodes_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        manifest(tmp_path / name)
    with pytest.raises(BadData, match="same name"):
        read(tmp_path)
