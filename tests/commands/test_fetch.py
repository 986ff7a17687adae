"""`exo fetch` as a person types it, against the hub of the tests."""

import asyncio
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from exo_cli import config
from exo_cli.cli import run
from exo_cli.cluster.remote import shards
from exo_cli.cluster.topology_file import TopologyFile
from exo_cli.errors import Exit
from exo_cli.models.directory import ModelDirectory
from exo_cli.schemas import registry
from exo_cli.schemas.plan import ModelRef
from exo_cli.schemas.topology import Node
from exo_cli.trust.keyring import KeyringSource
from tests.support import cluster, faults
from tests.support.fetching import NAME, asked_hub, same, served, total_bytes
from tests.support.hub import COMMIT, Hub
from tests.support.jsonschema import problems
from tests.support.processes import wait_until

SECOND = "model-00002-of-00002.safetensors"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return served(tmp_path / "served", pieces_a_file=0.5)


@pytest.fixture
def hub(clean_environment: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with asked_hub(monkeypatch, model) as running:
        yield running


@pytest.fixture
def snapshot(clean_environment: Path) -> Path:
    return clean_environment / ".cache/huggingface/hub/models--org--name/snapshots" / COMMIT


def lines(text: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in text.splitlines()]
    schema = registry.json_schema("fetch")
    assert [problem for line in found for problem in problems(line, schema)] == []
    return found


def test_the_directory_is_what_it_prints(
    hub: Hub, model: Path, snapshot: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["fetch", NAME]) == Exit.OK
    said = capsys.readouterr()
    assert said.out == f"{snapshot}\n"
    assert "fetching org/name" in said.err
    assert "from hub" in said.err
    assert same(snapshot, model)
    assert hub.sent_bytes == total_bytes(model)
    # The second time nobody is asked, and nothing is said.
    hub.clear()
    assert run(["fetch", NAME, "--offline"]) == Exit.OK
    said = capsys.readouterr()
    assert (said.out, said.err) == (f"{snapshot}\n", "")
    assert hub.requests == []


def test_programs_read_lines(
    hub: Hub, model: Path, snapshot: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["fetch", NAME, "--dry-run", "--json"]) == Exit.OK
    (forecast,) = lines(capsys.readouterr().out)
    assert forecast["type"] == "forecast"
    (share,) = forecast["shares"]
    assert share["total_bytes"] == total_bytes(model)
    assert forecast["hub_bytes"] == share["hub_bytes"]
    assert not snapshot.exists()
    assert run(["fetch", NAME, "--json"]) == Exit.OK
    *progress, last = lines(capsys.readouterr().out)
    assert {line["type"] for line in progress} == {"progress"}
    assert {line["file"] for line in progress} >= {SECOND, "config.json"}
    assert (progress[-1]["done_bytes"], progress[-1]["total_bytes"]) == (total_bytes(model),) * 2
    assert (last["type"], last["path"], last["revision"]) == ("fetched", str(snapshot), COMMIT)
    # Each byte once, the look and the fetch together.
    assert hub.sent_bytes == total_bytes(model)
    assert run(["fetch", NAME, "--json"]) == Exit.OK
    (last,) = lines(capsys.readouterr().out)
    assert last["by_source"] == {}


def test_layers_then_the_rest(
    hub: Hub, model: Path, snapshot: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["fetch", NAME, "--layers", "0:1"]) == Exit.OK
    store = Path(capsys.readouterr().out.strip())
    assert ".cache/exo/weights" in str(store)
    assert run(["fetch", "--list"]) == Exit.OK
    header, row = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    shown = dict(zip(header, row, strict=True))
    assert (shown["model"], shown["layers"], shown["state"]) == (NAME, "0-0", "unverified")
    assert run(["fetch", NAME, "--layers", "0:9"]) == Exit.BAD_DATA
    capsys.readouterr()
    assert run(["fetch", NAME]) == Exit.OK
    assert same(snapshot, model)
    assert not store.exists()
    assert hub.sent_bytes == total_bytes(model)
    # Layers of what is whole: it is here.
    assert run(["fetch", NAME, "--layers", "1:3", "-q"]) == Exit.OK
    assert capsys.readouterr().out.splitlines()[-1] == str(snapshot)


def test_list_verify_prune(
    hub: Hub, model: Path, snapshot: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["fetch", "--list"]) == Exit.OK
    assert "No model is here" in capsys.readouterr().err
    assert run(["fetch", NAME]) == Exit.OK
    capsys.readouterr()
    assert run(["fetch", "--list", "--json"]) == Exit.OK
    (here,) = lines(capsys.readouterr().out)
    assert (here["state"], here["layers"], here["place"]) == ("complete", [[0, 4]], "hub")
    assert run(["fetch", "--verify", NAME, "--json"]) == Exit.OK
    assert {line["state"] for line in lines(capsys.readouterr().out)} == {"right"}
    blob = (snapshot / SECOND).resolve()
    data = blob.read_bytes()
    blob.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert run(["fetch", "--verify"]) == Exit.CHECK_FAILED
    said = capsys.readouterr().err
    assert SECOND in said
    assert f"exo fetch --prune {NAME}" in said
    # Nobody is there to say yes.
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert run(["fetch", "--prune", NAME]) == Exit.USAGE
    assert snapshot.exists()
    assert run(["fetch", "--prune", NAME, "--yes", "--json"]) == Exit.OK
    removed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert removed[-1]["type"] == "removed"
    assert not snapshot.exists()
    assert run(["fetch", NAME]) == Exit.OK
    assert same(snapshot, model)
    # What is complete is not removed unless it is named.
    assert run(["fetch", "--prune", "--yes"]) == Exit.OK
    assert snapshot.exists()
    assert run(["fetch", "--list", "other"]) == Exit.NOT_FOUND


def test_by_hand_to_a_machine_without_internet(
    hub: Hub, model: Path, snapshot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stick = tmp_path / "stick"
    assert run(["fetch", NAME, "--export", str(stick)]) == Exit.NOT_FOUND
    assert run(["fetch", NAME]) == Exit.OK
    capsys.readouterr()
    assert run(["fetch", NAME, "--export", str(stick)]) == Exit.OK
    assert capsys.readouterr().err.startswith("writing org/name: ")
    assert run(["fetch", "--prune", NAME, "--yes"]) == Exit.OK
    hub.clear()
    capsys.readouterr()
    assert run(["fetch", "--import", str(stick)]) == Exit.OK
    assert capsys.readouterr().out == f"{snapshot}\n"
    assert same(snapshot, model)
    assert hub.requests == []


def test_a_token_is_never_shown(
    hub: Hub, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.repositories[NAME].token = "hf_right"
    monkeypatch.setenv("HF_TOKEN", "hf_wrong_and_secret")
    log = tmp_path / "log"
    assert run(["fetch", NAME, "-vv", "--log-file", str(log)]) == Exit.NOT_AUTHORISED
    said = capsys.readouterr()
    assert "HF_TOKEN" in said.err
    assert "hf_wrong" not in said.out + said.err + log.read_text()
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert run(["fetch", NAME]) == Exit.OK


def test_a_wait_is_told(hub: Hub, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.fail(faults.Status(503), file=SECOND, times=2)
    assert run(["fetch", NAME, "--json"]) == Exit.OK
    notes = [line["message"] for line in lines(capsys.readouterr().out) if line["type"] == "note"]
    assert any("503" in note and "asked again" in note for note in notes)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "which model"),
        (["--list", "--verify"], "two things"),
        (["--export", "x"], "which model"),
        (["a/b", "--import", "x"], "says which model"),
        (["a/b", "--layers", "3:3"], "no range"),
        (["a/b", "--layers", "x"], "no range"),
        (["a/b", "--layers", "0:1", "--plan", "x"], "--plan says which layers"),
        (["a/b", "--node", "x"], "needs a plan"),
        (["a/b", "--list", "--dry-run"], "nothing to do with"),
        (["a/b", "--limit-rate", "fast"], "no size"),
    ],
)
def test_what_makes_no_sense(
    clean_environment: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["fetch", *arguments]) == Exit.USAGE
    assert said in capsys.readouterr().err


def test_offline_without_it(clean_environment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fetch", "org/name", "--offline"]) == Exit.NOT_FOUND
    assert "--offline" in capsys.readouterr().err
    assert run(["fetch", "--plan", "nowhere.json"]) == Exit.NOT_FOUND


@pytest.mark.process
def test_a_plan_says_what_each_node_would_cost(
    hub: Hub, model: Path, clean_environment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with cluster.shards(clean_environment, "a", "b") as (a, b):
        source = KeyringSource()

        async def nodes() -> list[Node]:
            return [await a.node(source), await b.node(source)]

        placed = asyncio.run(nodes())
        # The nodes write the file, each when it has heard of the other.
        file = TopologyFile(config.topology_path())
        ids = {node.id for node in placed}
        wait_until(lambda: ids <= {node.id for node in shards(file.read())}, lambda: str(file.read()))
        ref = ModelRef(name=NAME, revision=COMMIT, digest=ModelDirectory.open(model).digest)
        plan = tmp_path / "plan.json"
        plan.write_bytes(msgspec.json.encode(cluster.plan(ref, (0, 1, 4), placed)))
        assert run(["fetch", "--plan", str(plan), "--dry-run", "--json"]) == Exit.OK
        (forecast,) = lines(capsys.readouterr().out)
        shares = {share["node"]: share for share in forecast["shares"]}
        assert {name: share["layers"] for name, share in shares.items()} == {"a": [0, 1], "b": [1, 4]}
        assert all(share["free_bytes"] > 0 for share in shares.values())
        assert forecast["hub_bytes"] == sum(share["hub_bytes"] for share in shares.values())
        assert forecast["hub_bytes"] <= total_bytes(model)
        for share in shares.values():
            assert set(share["by_source"]) <= {"hub", "a", "b", "driver"}
            assert sum(share["by_source"].values()) == share["hub_bytes"] + share["neighbour_bytes"]
            assert share["here_bytes"] + sum(share["by_source"].values()) == share["total_bytes"]
        assert run(["fetch", "--plan", str(plan), "--dry-run", "--offline"]) == Exit.NOT_FOUND
        assert "a, b do not have it either" in capsys.readouterr().err
        assert run(["fetch", "--plan", str(plan), "--dry-run", "--node", "b", "--json"]) == Exit.OK
        (forecast,) = lines(capsys.readouterr().out)
        assert [share["node"] for share in forecast["shares"]] == ["b"]
        assert run(["fetch", "--plan", str(plan), "--node", "c"]) == Exit.NOT_FOUND
        # Nodes with this user's cache: they are asked what they have, and nobody else is.
        assert run(["fetch", NAME]) == Exit.OK
        hub.clear()
        capsys.readouterr()
        assert run(["fetch", "--plan", str(plan)]) == Exit.OK
        assert capsys.readouterr().out == "a: everything was there\nb: everything was there\n"
        assert hub.requests == []
        plan.write_bytes(plan.read_bytes().replace(ref.digest.encode(), b"0" * 64))
        assert run(["fetch", "--plan", str(plan), "--dry-run"]) == Exit.BAD_DATA
        assert "Make the plan again" in capsys.readouterr().err
