"""`exo rdma-check` as a process: this machine, captures, a cluster of real nodes, the probe."""

import json
import os
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from exo_cli.cli import run
from exo_cli.rdma.capture import read
from exo_cli.schemas import registry
from tests.support.captures import ALL, CAPTURES, expected
from tests.support.cli import exo
from tests.support.jsonschema import problems
from tests.support.processes import Stage, terminal, wait_until


def asked(*arguments: str, **options: Any) -> tuple[int, dict[str, Any]]:
    done = exo("rdma-check", "--json", *arguments, **options)
    assert done.returncode in (0, 80), done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert problems(found, registry.json_schema("rdma-check")) == []
    return done.returncode, found


# ------------------------------------------------------------------------------- this machine


@pytest.mark.skipif(sys.platform != "linux", reason="what Linux says")
def test_this_linux_machine(tmp_path: Path) -> None:
    code, found = asked()
    (node,) = found["nodes"]
    assert node["platform"] == "linux"
    assert found["schema"] == "exo.rdma-check/1"
    if not Path("/sys/class/infiniband").exists():
        assert code == 80
        first = found["findings"][0]
        assert (first["id"], first["level"]) == ("no-rdma-device", "failure")
        assert "MLX will use" in first["means"]
        assert any(one["id"] == "jaccl" and "Linux wheels" in one["seen"] for one in found["findings"])
        assert "TCP" in found["uses"]
    done = exo("rdma-check")
    assert done.returncode == code
    assert done.stdout.splitlines()[0].split("\t")[:4] == ["record", "about", "level", "id"]


def test_what_is_saved_gives_the_same_answer_elsewhere(tmp_path: Path) -> None:
    done = exo("rdma-check", "--json", "--capture", str(tmp_path / "me"))
    assert "domain UUIDs" in done.stderr
    here = json.loads(done.stdout)
    code, again = asked("--from", str(tmp_path / "me"))
    assert code == done.returncode
    general = ("port-taken", "upstream-exo", "versions-differ", "wrong-interface")
    assert again["findings"] == [one for one in here["findings"] if one["id"] not in general]
    assert again["nodes"] == here["nodes"]
    refused = exo("rdma-check", "--capture", str(tmp_path / "me"))
    assert refused.returncode == 73


# ----------------------------------------------------------------------------------- captures


@pytest.mark.parametrize("name", ALL)
def test_the_exit_code_of_every_capture(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = expected(name)
    assert run(["rdma-check", "--from", str(CAPTURES / name), "--json"]) == wanted["exit"]
    out, err = capsys.readouterr()
    if wanted["exit"] == 65:
        assert out == ""
        assert json.loads(err)["code"] == "bad-data"
    else:
        assert problems(json.loads(out), registry.json_schema("rdma-check")) == []


def test_quiet_prints_what_is_wrong_by_id(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["rdma-check", "-q", "--from", str(CAPTURES / "mac-two-cables-three")]) == 80
    assert capsys.readouterr().out.split() == ["two-cables", "cable-missing"]
    assert run(["rdma-check", "-q", "--from", str(CAPTURES / "mac-two-healthy")]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--from", "x", "--cluster"], 2),
        (["--from", "x", "--capture", "y"], 2),
        (["--from", "x", "--probe"], 2),
        (["--cluster", "--probe"], 2),
        (["--timeout", "3s"], 2),
        (["--probe", "--timeout", "0s"], 2),
        (["--probe", "--timeout", "soon"], 2),
        (["--insecure"], 2),
        (["--from", "nowhere"], 66),
        (["--cluster"], 66),
    ],
)
def test_what_does_not_go_together(
    arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["rdma-check", *arguments]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert "hint: " in err


# ------------------------------------------------------------------------------------ cluster


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    stage.close()


def topology() -> dict[str, Any]:
    done = exo("discover", "--json", "--for", "200ms", "--measure", "never")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.process
def test_three_nodes_and_the_one_cable_that_is_missing(nodes: Stage, tmp_path: Path) -> None:
    directory = CAPTURES / "mac-missing-cable-three"
    names = ("mac-1", "mac-2", "mac-3")
    running = [
        nodes.start(
            *("serve-shard", "--json", "--name", name, "--listen", "127.0.0.1:0"),
            EXO_DIAGNOSE_FROM=str(directory / name),
        )
        for name in names
    ]
    for process in running:
        process.until(lambda process=process: '"type":"ready"' in process.out())  # type: ignore[misc]
    # A copy of the file with all three: a busy machine's nodes may say any moment that one is suspect.
    known = tmp_path / "known.json"

    def all_there() -> bool:
        found = topology()
        known.write_text(json.dumps(found))
        return {node["name"] for node in found["nodes"] if node["state"] == "ready"} >= set(names)

    wait_until(all_there)
    cluster = ("--cluster", "--topology", str(known))

    code, found = asked(*cluster, "--capture", str(tmp_path / "saved"))
    assert code == 80
    assert {node["name"] for node in found["nodes"]} == set(names)
    assert found["missing_cables"] == [["mac-2", "mac-3"]]
    (failure,) = (one for one in found["findings"] if one["level"] == "failure")
    assert (failure["id"], failure["nodes"]) == ("cable-missing", ["mac-2", "mac-3"])
    assert {one.node for one in read(tmp_path / "saved")} == set(names)

    with terminal("rdma-check", *cluster) as screen:
        assert screen.wait() == 80
        text = re.sub(r"\x1b\[[0-9;]*m", "", screen.text).replace("\r", "")
    assert " mac-2  en2    ·      none\n mac-3  en2    none   ·\n missing  mac-2 - mac-3\n" in text

    running[2].popen.kill()
    running[2].popen.wait(10)
    code, found = asked(*cluster)
    assert code == 80
    assert [one["nodes"] for one in found["findings"] if one["id"] == "silent"] == [["mac-3"]]


def test_a_node_of_a_cluster_never_gives_a_capture_for_its_own(nodes: Stage, clean_environment: Path) -> None:
    assert exo("key", "new").returncode == 0
    done = exo(
        *("serve-shard", "--interface", "lo", "--listen", "127.0.0.1:0"),
        env={**os.environ, "EXO_DIAGNOSE_FROM": str(CAPTURES / "mac-disabled")},
    )
    assert done.returncode == 2
    assert "EXO_DIAGNOSE_FROM" in done.stderr


# -------------------------------------------------------------------------------------- probe


@pytest.mark.process
def test_the_probe_measures_two_processes_here() -> None:
    done = exo("rdma-check", "--probe", "--timeout", "50s", "--json")
    found = json.loads(done.stdout)
    assert problems(found, registry.json_schema("rdma-check")) == []
    measured = found["collective"]
    assert measured["error"] is None, measured
    assert (measured["backend"], measured["ranks"]) == ("ring", 2)
    assert measured["latency_us_p50"] > 0
    assert measured["bytes_per_s"] > 0


@pytest.mark.process
def test_a_peer_that_never_answers_is_a_finding_within_the_deadline(tmp_path: Path) -> None:
    with socket.socket() as silent, socket.socket() as own:
        for each in (silent, own):
            each.bind(("127.0.0.1", 0))
        silent.listen()
        hosts = [[f"127.0.0.1:{each.getsockname()[1]}"] for each in (own, silent)]
        own.close()
        (tmp_path / "hosts.json").write_text(json.dumps(hosts))
        environment = {**os.environ, "MLX_RANK": "0", "MLX_HOSTFILE": str(tmp_path / "hosts.json")}
        code, found = asked("--probe", "--timeout", "2s", env=environment)
    assert code == 80
    assert "collective-failed" in {one["id"] for one in found["findings"] if one["level"] == "failure"}
    assert found["collective"]["error"]
    # Three times what was promised.
    assert found["collective"]["seconds"] < 6
