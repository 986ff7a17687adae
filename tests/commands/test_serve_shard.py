"""`exo serve-shard` as a shell starts it; without a cluster key, so it stays on this machine."""

import json
import os
import plistlib
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from exo_cli import config
from tests.support.cli import EXO, exo
from tests.support.processes import Stage, terminal, wait_until

pytestmark = pytest.mark.process

PLAN = (
    '{"schema":"exo.plan/1","model":{"name":"m","revision":null,"digest":"0"},"dtype":"float32","context":1,'
    '"concurrency":1,"replicas":[],"forecast":null,"binding":null,"reason":""}'
)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    yield made
    made.close()


def topology(path: Path | None = None) -> dict[str, Any]:
    found = path or config.topology_path()
    value: dict[str, Any] = json.loads(found.read_text()) if found.exists() else {"nodes": []}
    return value


def names(path: Path | None = None) -> set[str]:
    return {node["name"] for node in topology(path)["nodes"]}


def test_two_nodes_of_one_machine(stage: Stage) -> None:
    first, second = stage.node(), stage.node()
    one, two = first.lines()[0], second.lines()[0]
    assert two["name"] == f"{one['name']}-2"
    assert one["id"] != two["id"]
    assert one["endpoint"] != two["endpoint"]
    assert {one["endpoint"].rpartition(":")[0], two["endpoint"].rpartition(":")[0]} == {"127.0.0.1"}
    wait_until(lambda: names() == {one["name"], two["name"]}, first.told)
    for node in topology()["nodes"]:
        # What the engine's child said is in the record; this process never imported MLX.
        assert node["backend"] in ("cpu", "metal", "cuda")
        assert node["memory"]["ram_bytes"] > 0
        assert node["state"] == "ready"
    # One leaves: the other one takes it out of the file at once.
    assert second.end() == 0
    wait_until(lambda: names() == {one["name"]}, first.told)
    assert first.end(signal.SIGINT) == 130
    assert names() == set()


def test_it_says_who_it_is_for(stage: Stage) -> None:
    node = stage.start("serve-shard", "--name", "studio")
    node.until(lambda: "listens on" in node.err())
    assert re.search(r"^node studio listens on 127\.0\.0\.1:\d+ \(this machine only; exo key new", node.err())
    assert node.out() == ""
    assert node.end() == 0
    assert node.err().endswith("stopped by SIGTERM\n")


def test_quietly_it_says_nothing_at_all(stage: Stage, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    node = stage.start("serve-shard", "-q", "--ready-file", str(ready))
    node.until(ready.exists)
    assert node.end() == 0
    assert (node.out(), node.err()) == ("", "")


def test_a_port_that_is_taken_is_named_with_its_holder(stage: Stage) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        done = exo("serve-shard", "--listen", f"127.0.0.1:{port}")
        assert done.returncode == 71
        assert f"port {port} is taken by " in done.stderr
        assert "(process " in done.stderr
        assert "--listen" in done.stderr


def test_the_topology_may_lie_elsewhere(stage: Stage, tmp_path: Path) -> None:
    by_flag, by_environment = tmp_path / "flag.json", tmp_path / "environment.json"
    one = stage.node("--topology", str(by_flag), "--name", "one")
    two = stage.start("serve-shard", "--json", "--name", "two", EXO_TOPOLOGY=str(by_environment))
    two.until(lambda: '"ready"' in two.out())
    wait_until(lambda: {"one", "two"} <= names(by_flag), one.told)
    wait_until(lambda: {"one", "two"} <= names(by_environment), two.told)
    assert not config.topology_path().exists()


def test_a_topology_that_cannot_be_written_is_a_warning(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    node = stage.node("--topology", str(tmp_path / "directory" / "topology.json"))
    assert node.end() == 0
    blocked = stage.start("serve-shard", "--json", "--topology", str(tmp_path / "file" / "topology.json"))
    wait_until(lambda: "warning:" in blocked.err() or blocked.popen.poll() is not None, blocked.told)
    assert "file/topology.json" in blocked.err()


def test_a_log_file_has_json_lines(stage: Stage, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    node = stage.node("--log-file", str(log))
    assert node.end() == 0
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert {entry["schema"] for entry in entries} == {"exo.log/1"}
    assert any("listens on" in entry["text"] for entry in entries)
    assert any("stopped by SIGTERM" in entry["text"] for entry in entries)


@pytest.mark.parametrize("kind", ["systemd", "launchd"])
def test_a_unit_starts_this_very_node_and_nothing_is_started_now(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plan.json").write_text(PLAN)
    monkeypatch.delenv("EXO_NUMERICS")
    line = "serve-shard --name my-node --plan plan.json --ready-file 'a b/ready' --json --interface 'l*'"
    line += f" --interface 'lo*' -vv --keep-alive forever --print-unit {kind}"
    done = subprocess.run(
        [*EXO, *shlex.split(line)],
        cwd=tmp_path,
        env={**os.environ, "EXO_MEMORY": "2GiB", "EXO_INSECURE": "1", "XDG_CONFIG_HOME": "/etc/my exo"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    given = shlex.split(
        f"serve-shard --name my-node --plan {tmp_path}/plan.json --interface 'l*' --interface 'lo*'"
        f" --ready-file '{tmp_path}/a b/ready' --memory 2GiB --keep-alive forever --insecure"
        " --json --verbose --verbose"
    )
    if kind == "launchd":
        parsed = plistlib.loads(done.stdout.encode())
        words, environment = parsed["ProgramArguments"], parsed["EnvironmentVariables"]
    else:
        lines = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
        words = shlex.split(lines["ExecStart"])
        environment = dict(each.split("=", 1) for each in shlex.split(lines["Environment"]))
    assert words[-len(given) :] == given
    assert os.access(words[0], os.X_OK)
    assert environment == {"XDG_CONFIG_HOME": "/etc/my exo"}
    # What stands there starts exo from anywhere.
    started = subprocess.run([*words[: -len(given)], "--version"], cwd="/", capture_output=True, check=False)
    assert started.returncode == 0
    assert not config.nodes_dir().exists()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--cores", "99999"], 2 if sys.platform == "linux" else 78, "--cores"),
        (["--threads", "0"], 2, "--threads"),
        (["--keep-alive", "soon"], 2, "--keep-alive"),
        (["--print-unit", "cron"], 2, "--print-unit"),
        (["--plan", "missing.json"], 66, "missing.json"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(arguments: list[str], code: int, says: str) -> None:
    done = exo("serve-shard", *arguments)
    assert done.returncode == code
    assert says in done.stderr
    assert not config.nodes_dir().exists()


def test_ctrl_c_in_a_terminal_ends_it(stage: Stage) -> None:
    with terminal("serve-shard") as screen:
        screen.until(lambda text: "listens on" in text)
        screen.popen.send_signal(signal.SIGINT)
        assert screen.wait() == 130
        assert "stopped by SIGINT" in screen.text
        assert "Traceback" not in screen.text


def test_a_reader_that_goes_away_ends_it(stage: Stage) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*EXO, "serve-shard", "--json"], stdout=writing, stderr=subprocess.PIPE, timeout=60, check=False
    )
    os.close(writing)
    assert done.returncode == 141
    assert b"Traceback" not in done.stderr
