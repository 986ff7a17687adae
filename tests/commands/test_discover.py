"""`exo discover` as a shell starts it; without a cluster key, so it stays on this machine."""

import json
import os
import signal
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from exo_cli import config
from exo_cli.cluster.topology_file import TopologyFile
from exo_cli.schemas.topology import Topology
from tests.support.cli import EXO, exo
from tests.support.processes import Running, Stage, terminal
from tests.support.records import link, node

process = pytest.mark.process
ONE = ("--wait", "nodes=1", "--measure", "never")
BOTH = ("--wait", "nodes=2", "--measure", "never")


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    yield made
    made.close()


def some_topology() -> Topology:
    """Nodes of another network, which a run without a key neither asks nor judges."""
    topology = Topology(
        nodes=(node("a" * 32, name="studio"), node("b" * 32, name="mini", endpoint="192.168.1.8:52416")),
        links=(link("a" * 32, "b" * 32), link("b" * 32, "a" * 32)),
    )
    return TopologyFile(config.topology_path()).update(lambda _: topology)


def parsed(text: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(text)
    return value


# ---------------------------------------------------------------------------------- the whole thing


@process
def test_two_nodes_are_found_measured_and_shown_in_every_shape(stage: Stage, tmp_path: Path) -> None:
    elsewhere = ("--topology", str(tmp_path / "nodes.json"))
    one = stage.node("--name", "one", *elsewhere)
    # A port that nobody else takes when it is free again.
    two = stage.node("--name", "two", "--listen", "127.0.0.1:0", *elsewhere)
    ids = {process.lines()[0]["name"]: process.lines()[0]["id"] for process in (one, two)}

    # JSON: the bytes of the file, nothing else.
    done = exo("discover", "--wait", "nodes=2", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stdout == config.topology_path().read_text()
    topology = parsed(done.stdout)
    assert {each["name"]: each["id"] for each in topology["nodes"]} == ids
    assert len(topology["links"]) == 2
    for each in topology["links"]:
        assert each["error"] is None
        assert each["bytes_per_s"] > 1e6
        assert 0 < each["rtt_us_p50"] <= each["rtt_us_p99"]
    assert all(each["loopback_bytes_per_s"] for each in topology["nodes"])

    # Ids only, for a shell loop.
    done = exo("discover", "-q", *BOTH)
    assert (done.returncode, set(done.stdout.split()), done.stderr) == (0, set(ids.values()), "")

    # Tab-separated where nobody looks.
    done = exo("discover", *BOTH)
    header, *rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert header[:3] == ["record", "name", "id"]
    assert {len(row) for row in rows} == {len(header)}
    assert [row[0] for row in rows].count("node") == 2
    assert [row[0] for row in rows].count("link") == 2

    # A picture.
    done = exo("discover", "--format", "svg", *BOTH)
    assert ElementTree.fromstring(done.stdout).tag == "{http://www.w3.org/2000/svg}svg"

    # Why, in words and for programs.
    done = exo("discover", "--explain", "--json", "--for", "2s")
    explained = parsed(done.stdout)
    assert (explained["schema"], explained["type"]) == ("exo.explain/1", "explanation")
    assert {each["about"] for each in explained["findings"] if each["id"] == "node-found"} == {"one", "two"}
    assert all(each["seen"] for each in explained["findings"])
    done = exo("discover", "--explain", "--for", "0.6s")
    assert done.stdout.startswith("record\tabout\t")

    # One dies: whoever looks next says so.
    two.popen.kill()
    two.popen.wait(10)
    topology = parsed(exo("discover", "--json", "--for", "2s").stdout)
    assert {each["name"]: each["state"] for each in topology["nodes"]} == {"one": "ready", "two": "dead"}
    explained = parsed(exo("discover", "--explain", "--json", "--for", "0.6s").stdout)
    assert "node-silent-refused" in {each["id"] for each in explained["findings"]}


@process
def test_a_table_is_drawn_where_somebody_looks(stage: Stage) -> None:
    stage.node("--name", "studio")
    with terminal("discover", *ONE) as screen:
        assert screen.wait() == 0
        assert "studio" in screen.text
        assert "\x1b[" in screen.text
        assert "\t" not in screen.text
        assert max(len(line) for line in plain(screen.text).splitlines()) <= 100
    with terminal("discover", *ONE, NO_COLOR="1", LANG="C", LC_ALL="C", PYTHONUTF8="0") as screen:
        assert screen.wait() == 0
        assert "\x1b[3" not in screen.text
        assert "studio" in screen.text
    with terminal("discover", "--explain", "--for", "2s") as screen:
        assert screen.wait() == 0
        assert "node-found" not in screen.text  # an id is for programs
        assert "answers at 127.0.0.1" in screen.text


def plain(text: str) -> str:
    import re

    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "")


@process
def test_finding_nobody_is_no_error_unless_it_is_waited_for() -> None:
    done = exo("discover", "--json", "--for", "0.2s")
    assert (done.returncode, parsed(done.stdout)["nodes"]) == (0, [])
    assert config.topology_path().read_text() == done.stdout
    done = exo("discover", "--wait", "nodes=1", "--timeout", "0.2s", "--json")
    assert done.returncode == 75
    assert parsed(done.stdout)["nodes"] == []
    error = parsed(done.stderr.splitlines()[-1])
    assert (error["schema"], error["exit"]) == ("exo.error/1", 75)
    assert "0 of 1 nodes are ready after 0.2 s" in error["message"]


@process
def test_waiting_returns_when_the_node_is_there(stage: Stage) -> None:
    waiting = stage.start("discover", "--wait", "nodes=1", "--timeout", "50s", "--json", "--measure", "never")
    stage.node("--name", "late")
    assert waiting.popen.wait(40) == 0
    assert [each["name"] for each in parsed(waiting.out())["nodes"]] == ["late"]


@process
def test_what_other_networks_have_is_left_as_it_was() -> None:
    before = some_topology()
    done = exo("discover", "--json", "--for", "0.2s")
    assert done.returncode == 0
    assert TopologyFile(config.topology_path()).read() == before
    assert done.stdout == config.topology_path().read_text()
    # To the byte, also where somebody laid it out by hand and added a key that we do not know.
    by_hand = json.dumps({**parsed(done.stdout), "mine": 1})
    config.topology_path().write_text(by_hand)
    assert exo("discover", "--json", "--for", "0.2s").stdout == by_hand


@process
def test_the_file_may_lie_elsewhere(tmp_path: Path) -> None:
    flag, variable = tmp_path / "flag.json", tmp_path / "deep" / "variable.json"
    assert exo("discover", "--for", "0.1s", "--topology", str(flag)).returncode == 0
    environment = {**os.environ, "EXO_TOPOLOGY": str(variable)}
    assert exo("discover", "--for", "0.1s", env=environment).returncode == 0
    assert parsed(flag.read_text()) == parsed(variable.read_text())
    assert not config.topology_path().exists()


@process
def test_a_place_that_cannot_be_written_is_said_and_what_was_found_is_shown(
    stage: Stage, tmp_path: Path
) -> None:
    stage.node("--name", "studio", "--topology", str(tmp_path / "other.json"))
    path = tmp_path / "file" / "topology.json"
    (tmp_path / "file").write_text("")
    done = exo("discover", "--json", "--measure", "never", "--wait", "nodes=1", "--topology", str(path))
    assert done.returncode in (73, 74)
    assert str(path) in parsed(done.stderr.splitlines()[-1])["message"]


@process
def test_a_disk_that_fills_up_is_said_and_what_was_found_is_shown(stage: Stage, tmp_path: Path) -> None:
    stage.node("--name", "studio", "--topology", str(tmp_path / "other.json"))
    path = tmp_path / "directory" / "topology.json"
    path.parent.mkdir()
    # It can be read, and the temporary file beside it cannot be made: its name is too long there.
    long = path.parent / ("x" * 246 + ".json")
    done = exo("discover", "--json", "--measure", "never", "--wait", "nodes=1", "--topology", str(long))
    assert done.returncode == 73, done.stderr
    assert [each["name"] for each in parsed(done.stdout)["nodes"]] == ["studio"]
    assert "cannot write" in parsed(done.stderr.splitlines()[-1])["message"]


# ------------------------------------------------------------------------------------------ watching


def events(watching: Running) -> list[tuple[str, str]]:
    return [(each["change"], each["name"]) for each in watching.lines() if each["type"] == "node"]


@process
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_watching_streams_lines_until_it_is_ended(stage: Stage, number: signal.Signals, code: int) -> None:
    watching = stage.start("discover", "--watch", "--json", "--measure", "never")
    watching.until(lambda: bool(watching.lines()))
    node = stage.node("--name", "studio")
    watching.until(lambda: ("joined", "studio") in events(watching))
    watching.until(lambda: any(names(each) == ["studio"] for each in watching.lines()))
    assert node.end() == 0
    watching.until(lambda: ("left", "studio") in events(watching))
    watching.until(lambda: names(watching.lines()[-1]) == [])
    watching.popen.send_signal(number)
    assert watching.popen.wait(15) == code
    assert {each["schema"] for each in watching.lines()} == {"exo.discover/1"}
    assert all(list(each)[:2] == ["schema", "type"] for each in watching.lines())
    assert "Traceback" not in watching.err()


def names(event: dict[str, Any]) -> list[str] | None:
    return [node["name"] for node in event["topology"]["nodes"]] if event["type"] == "topology" else None


@process
def test_watching_measures_and_ctrl_c_ends_that_too(stage: Stage) -> None:
    stage.node("--name", "one")
    stage.node("--name", "two")
    watching = stage.start("discover", "--watch", "--json")
    watching.until(
        lambda: any(
            len(each["topology"]["links"]) == 2 for each in watching.lines() if each["type"] == "topology"
        )
    )
    assert watching.end(signal.SIGINT) == 130


@process
def test_watching_without_a_terminal_writes_a_line_for_each_change(stage: Stage) -> None:
    watching = stage.start("discover", "--watch", "--measure", "never")
    stage.node("--name", "studio")
    watching.until(lambda: "\n" in watching.out())
    _, change, node_id, name = watching.out().splitlines()[0].split("\t")
    assert (change, len(node_id), name) == ("joined", 32, "studio")
    assert watching.end() == 0


@process
def test_watching_on_a_terminal_draws_again_and_again(stage: Stage) -> None:
    with terminal("discover", "--watch", "--measure", "never") as screen:
        screen.until(lambda text: "\x1b[?25l" in text)
        node = stage.node("--name", "studio")
        screen.until(lambda text: "studio  joined" in text)
        assert node.end() == 0
        screen.until(lambda text: "studio  left" in text)
        screen.popen.send_signal(signal.SIGINT)
        assert screen.wait() == 130
        # The cursor is there again.
        assert screen.text.rindex("\x1b[?25h") > screen.text.rindex("\x1b[?25l")
        assert "Traceback" not in screen.text


@process
def test_a_reader_that_goes_away_ends_the_watch(stage: Stage) -> None:
    reading, writing = os.pipe()
    said = stage.directory / "said"
    with said.open("wb") as stderr:
        watching = subprocess.Popen([*EXO, "discover", "--watch", "--json"], stdout=writing, stderr=stderr)
    os.close(writing)
    try:
        assert os.read(reading, 1)
        os.close(reading)
        stage.node("--name", "studio")
        assert watching.wait(40) == 141
        assert said.read_bytes() == b""
    finally:
        watching.kill()
        watching.wait(10)


@process
def test_a_watch_that_cannot_keep_what_it_sees_says_so(stage: Stage, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 246 + ".json")
    watching = stage.start("discover", "--watch", "--json", "--measure", "never", "--topology", str(long))
    stage.node("--name", "studio", "--topology", str(tmp_path / "other.json"))
    watching.until(lambda: "warning: cannot write" in watching.err())
    watching.until(lambda: any(names(each) == ["studio"] for each in watching.lines()))
    assert watching.end() == 0


@process
def test_ctrl_c_ends_a_look_at_once(stage: Stage) -> None:
    looking = stage.start("discover", "--for", "500s", "-v", "--log-file", str(stage.directory / "log"))
    node = stage.node("--name", "studio")
    looking.until(lambda: "studio: joined" in looking.err())
    assert looking.end(signal.SIGINT) == 130
    assert looking.out() == ""
    assert "Traceback" not in looking.err()
    assert node.end() == 0
    entries = [parsed(line) for line in (stage.directory / "log").read_text().splitlines()]
    assert "studio: joined" in [entry["text"] for entry in entries]


# ---------------------------------------------------------------------------------------- announcing


@process
def test_announcing_is_a_node_that_takes_no_work(stage: Stage, tmp_path: Path) -> None:
    node = stage.node("--name", "laptop", verb=("discover", "--announce"))
    ready = node.lines()[0]
    assert (ready["type"], ready["name"]) == ("ready", "laptop")
    found = parsed(exo("discover", "--json", *ONE, "--topology", str(tmp_path / "mine.json")).stdout)
    assert [(each["name"], each["role"]) for each in found["nodes"]] == [("laptop", "announce")]
    assert "Ctrl-C" in node.err()
    assert node.end(signal.SIGINT) == 130
    assert node.lines()[-1]["reason"] == "SIGINT"


# ----------------------------------------------------------------- what does not go with what


MIXTURES = [
    ("--explain", "--watch"),
    ("--explain", "--announce"),
    ("--explain", "--wait", "nodes=1"),
    ("--explain", "--measure", "never"),
    ("--explain", "--format", "svg"),
    ("--watch", "--announce"),
    ("--watch", "--wait", "nodes=1"),
    ("--watch", "--for", "3s"),
    ("--watch", "--format", "svg"),
    ("--announce", "--wait", "nodes=1"),
    ("--announce", "--for", "3s"),
    ("--announce", "--measure", "always"),
    ("--announce", "--format", "svg"),
    ("--wait", "nodes=1", "--for", "3s"),
    ("--timeout", "3s"),
    ("--name", "studio"),
    ("--listen", ":7000"),
    ("--format", "svg", "--json"),
]


@pytest.mark.parametrize("arguments", MIXTURES, ids=" ".join)
def test_options_that_do_not_go_together_are_refused(
    arguments: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    from exo_cli.cli import run

    assert run(["discover", *arguments]) == 2
    said = capfd.readouterr()
    assert said.out == ""
    if "--json" in arguments:
        assert parsed(said.err)["exit"] == 2
        return
    error, hint = said.err.splitlines()
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    for option in arguments:
        if option.startswith("--"):
            assert option in error


@process
def test_what_the_environment_says_for_other_verbs_is_no_mistake() -> None:
    environment = {**os.environ, "EXO_NAME": "studio", "EXO_LISTEN": ":7000", "EXO_FOR": "0.1s"}
    done = exo("discover", "--json", env=environment)
    assert done.returncode == 0, done.stderr
    done = exo("discover", "--wait", "nodes=0", env=environment)
    assert done.returncode == 0, done.stderr
