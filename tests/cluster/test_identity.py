"""Who a node is: ids that stay, boots that count, names that do not collide."""

import json
import multiprocessing
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from exo_cli.cluster import identity
from exo_cli.cluster.identity import Identity, claim, host_name, siblings
from exo_cli.errors import BadData, CannotCreate, TryAgain, UsageProblem


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("socket.gethostname", lambda: "studio.local")
    return tmp_path / "state" / "nodes"


def test_an_id_stays_and_boots_count_up(nodes: Path) -> None:
    first = claim(nodes, None)
    assert (first.name, first.boot, len(first.node_id)) == ("studio", 1, 32)
    first.publish(port=52416, voice_port=40000)
    first.release()
    first.release()
    second = claim(nodes, None)
    assert (second.node_id, second.name, second.boot) == (first.node_id, "studio", 2)
    # Ports are those of a run.
    assert (second.record.port, second.record.voice_port) == (0, 0)
    second.release()
    assert stat.S_IMODE((nodes / "studio").stat().st_mode) == 0o700
    assert stat.S_IMODE((nodes / "studio" / "node.json").stat().st_mode) == 0o600


def test_a_second_node_has_a_name_and_an_id_of_its_own(nodes: Path) -> None:
    claimed = [claim(nodes, None) for _ in range(3)]
    assert [each.name for each in claimed] == ["studio", "studio-2", "studio-3"]
    assert len({each.node_id for each in claimed}) == 3
    claimed[1].release()
    again = claim(nodes, None)
    assert (again.name, again.node_id, again.boot) == ("studio-2", claimed[1].node_id, 2)
    for each in (claimed[0], claimed[2], again):
        each.release()


def test_a_name_that_was_asked_for_is_taken_or_refused(nodes: Path) -> None:
    held = claim(nodes, "attic")
    with pytest.raises(TryAgain, match="a node named attic already runs"):
        claim(nodes, "attic")
    held.release()
    claim(nodes, "attic").release()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc", "-x", "a b", "é", "a" * 64, "a\n"])
def test_a_name_is_no_path(nodes: Path, name: str) -> None:
    with pytest.raises(UsageProblem, match="is no name for a node"):
        claim(nodes, name)
    assert not nodes.exists()


def test_64_nodes_are_enough_for_one_machine(nodes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nobody looks at these locks for a moment only, so there is nothing to wait for.
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    claimed = [claim(nodes, None) for _ in range(64)]
    with pytest.raises(TryAgain, match="64 nodes already run"):
        claim(nodes, None)
    for each in claimed:
        each.release()


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("studio.local", "studio"),
        ("My Mac", "My-Mac"),
        ("-x-", "x"),
        ("", "node"),
        ("büro", "b-ro"),
        ("...", "node"),
        ("a" * 100, "a" * 60),
    ],
)
def test_a_host_name_becomes_a_nodes_name(monkeypatch: pytest.MonkeyPatch, host: str, name: str) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: host)
    assert host_name() == name
    assert identity._NAME.fullmatch(f"{name}-64")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"id": "\xff", "name": "studio", "boot": 1}',
        b'{"id": "ab", "name": "studio", "boot": 1}',
        b'{"id": "' + b"0" * 32 + b'", "name": "studio", "boot": -1}',
        b'{"id": "' + b"0" * 32 + b'", "name": "studio", "boot": 4611686018427387904}',
        b'{"id": "' + b"0" * 32 + b'", "name": "studio"}',
        b'{"schema": "exo.node/2", "id": "' + b"0" * 32 + b'", "name": "studio", "boot": 1}',
    ],
    ids=["empty", "torn", "list", "no-text", "no-text-inside", "id", "minus", "huge", "no-boot", "newer"],
)
def test_a_corrupt_file_is_one_sentence_and_changes_nothing(nodes: Path, content: bytes) -> None:
    path = nodes / "studio" / "node.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    for name in (None, "studio"):
        with pytest.raises(BadData) as caught:
            claim(nodes, name)
        assert caught.value.exit == 65
        assert str(path) in caught.value.message
        assert "\n" not in caught.value.message
        assert caught.value.hint
    assert path.read_bytes() == content
    # It is no node that could be a sibling, and its lock is free.
    assert siblings(nodes) == []
    path.unlink()
    claim(nodes, "studio").release()


def test_a_file_that_cannot_be_read_is_one_sentence(nodes: Path) -> None:
    (nodes / "studio" / "node.json").mkdir(parents=True)
    with pytest.raises(BadData, match=r"cannot read .*node\.json: Is a directory$"):
        claim(nodes, None)


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotCreate, match="cannot keep this node's identity in") as caught:
        claim(tmp_path / "file" / "nodes", "a")
    assert caught.value.hint == "Make it writable, or set XDG_STATE_HOME."


def test_siblings_are_the_nodes_that_run_and_said_their_port(nodes: Path) -> None:
    assert siblings(nodes) == []
    one, two, silent = (claim(nodes, name) for name in ("one", "two", "silent"))
    one.publish(port=1, voice_port=41001)
    two.publish(port=2, voice_port=41002)
    (nodes / "notes.txt").write_text("no directory")
    (nodes / "empty").mkdir()
    assert siblings(nodes) == [41001, 41002]
    one.release()
    assert siblings(nodes) == [41002]
    for each in (two, silent):
        each.release()
    assert siblings(nodes) == []
    assert siblings(nodes / "notes.txt") == []


def test_a_node_that_was_killed_is_no_sibling_and_its_name_is_free(nodes: Path) -> None:
    program = (
        "import sys, time, pathlib; from exo_cli.cluster.identity import claim;"
        f"made = claim(pathlib.Path({str(nodes)!r}), 'short'); made.publish(port=1, voice_port=41001);"
        "print(made.node_id, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        node_id = process.stdout.readline().strip()
        assert siblings(nodes) == [41001]
        process.kill()
        process.wait(10)
    assert siblings(nodes) == []
    again = claim(nodes, "short")
    assert (again.node_id, again.boot) == (node_id, 2)
    again.release()


def _claim_and_wait(nodes: str, gate: str, out: "multiprocessing.Queue[tuple[str, str, int]]") -> None:
    while not os.path.exists(gate):
        pass
    made: Identity = claim(Path(nodes), None)
    siblings(Path(nodes))
    out.put((made.name, made.node_id, made.boot))
    while os.path.exists(gate):
        pass


@pytest.mark.process
def test_processes_that_claim_at_once_are_all_different(nodes: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    context = multiprocessing.get_context("spawn")
    claimed: multiprocessing.Queue[tuple[str, str, int]] = context.Queue()
    processes = [
        context.Process(target=_claim_and_wait, args=(str(nodes), str(gate), claimed)) for _ in range(6)
    ]
    for each in processes:
        each.start()
    gate.write_text("")
    try:
        results = [claimed.get(timeout=30) for _ in processes]
    finally:
        gate.unlink()
        for each in processes:
            each.join(10)
    assert len({name for name, _, _ in results}) == len(results)
    assert len({node_id for _, node_id, _ in results}) == len(results)
    assert {boot for _, _, boot in results} == {1}
    files = [json.loads(path.read_text()) for path in nodes.glob("*/node.json")]
    assert {(each["name"], each["id"]) for each in files} == {(name, id) for name, id, _ in results}
