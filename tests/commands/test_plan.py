"""`exo plan`, in process and as a shell starts it: every option, every shape of output, every refusal."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest

from exo_cli import config
from exo_cli.cli import run
from exo_cli.cluster.topology_file import TopologyFile, encode
from exo_cli.commands.options import count_of, share_of
from exo_cli.errors import Exit, UsageProblem
from exo_cli.fetch import patience
from exo_cli.schemas import registry
from exo_cli.schemas.topology import Topology
from tests.support import hub as hubs
from tests.support import tiny_models, topologies
from tests.support.cli import EXO, exo
from tests.support.hub import COMMIT
from tests.support.jsonschema import problems

Said = Callable[..., tuple[int, str, str]]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """Run a command line here: its exit code, standard output and standard error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(["plan", *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(autouse=True)
def macs() -> Topology:
    """Four Macs as the topology of this user."""
    return TopologyFile(config.topology_path()).update(lambda _: topologies.four_macs())


def planned(said: Said, *arguments: str) -> dict[str, Any]:
    code, out, err = said(*arguments, "--json")
    assert code == 0, err
    document: dict[str, Any] = json.loads(out)
    assert problems(document, registry.json_schema("plan")) == []
    return document


def who(plan: dict[str, Any]) -> list[list[tuple[str, list[int]]]]:
    return [
        [(stage["ranks"][0]["name"], stage["layers"]) for stage in replica["stages"]]
        for replica in plan["replicas"]
    ]


# -- what it says -----------------------------------------------------------------------------------


def test_a_model_of_the_catalogue_that_nobody_has(said: Said) -> None:
    plan = planned(said, "llama-3.3-70b")
    assert who(plan) == [[("studio", [0, 80])]]
    assert plan["model"] == {"name": "llama-3.3-70b", "revision": None, "digest": ""}
    assert plan["forecast"]["basis"] == "table"
    assert plan["left_out"][0] == {"name": "air", "reason": "would not help whole requests"}
    assert plan["context"] == 8192


def test_a_model_of_this_machine_has_its_digest(said: Said, tmp_path: Path) -> None:
    directory = tiny_models.build("llama", tmp_path / "small")
    plan = planned(said, str(directory), "--context", "256")
    assert plan["model"]["name"] == "small"
    assert len(plan["model"]["digest"]) == 64
    alone = planned(said, str(directory / "config.json"), "--context", "256")
    assert alone["model"] == {"name": "small", "revision": None, "digest": ""}
    assert who(alone) == who(plan)
    assert planned(said, "pocket", "--context", "256")["replicas"]


def test_the_options_reach_the_planner(said: Said) -> None:
    split = planned(said, "llama-3.3-70b", "--exclude", "studio", "--context", "1k")
    assert {name for name, _ in who(split)[0]} == {"mini-1", "mini-2"}
    assert ("studio", "is excluded") in {(each["name"], each["reason"]) for each in split["left_out"]}
    three = planned(
        said, "llama-3.3-70b", "--min-nodes", "3", "--max-nodes", "3", "--only-link", "thunderbolt"
    )
    assert {name for name, _ in who(three)[0]} == {"studio", "mini-1", "mini-2"}
    by_hand = planned(said, "llama-3.3-70b", "--layers", "mini-1=0:12")
    assert ("mini-1", [0, 12]) in who(by_hand)[0]
    many = planned(
        said, "qwen3-8b", "--concurrency", "4", "--parallel", "replicas", "--objective", "throughput"
    )
    assert sum(replica["concurrency"] for replica in many["replicas"]) == 4
    assert all(len(replica["stages"]) == 1 for replica in many["replicas"])
    limit = planned(said, "qwen3-8b", "--headroom", "0")["replicas"][0]["stages"][0]["ranks"][0]
    less = planned(said, "qwen3-8b", "--headroom", "0.5")["replicas"][0]["stages"][0]["ranks"][0]
    assert limit["memory"]["limit_bytes"] == pytest.approx(2 * less["memory"]["limit_bytes"], abs=2)
    full, bytes_ = (planned(said, "qwen3-8b", *words) for words in ((), ("--kv-bits", "8")))
    assert (full["kv_bits"], bytes_["kv_bits"]) == (None, 8)
    kv = [each["replicas"][0]["stages"][0]["ranks"][0]["memory"]["kv_bytes"] for each in (full, bytes_)]
    assert kv[1] * 32 == kv[0] * 9
    short = planned(said, "qwen3-8b", "--prompt-tokens", "16")["forecast"]
    assert short["prompt_tokens"] == 16
    assert short["ttft_ms"] < planned(said, "qwen3-8b")["forecast"]["ttft_ms"]


def test_a_file_that_others_can_use(said: Said, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    code, out, err = said("llama-3.3-70b", "-o", str(path))
    assert (code, out, err) == (0, "", f"wrote {path}\n")
    first = path.read_bytes()
    assert json.loads(first) == planned(said, "llama-3.3-70b")
    assert said("llama-3.3-70b", "-o", str(path), "-q")[0] == 0
    assert path.read_bytes() == first


def test_a_table_rows_ids_and_a_picture(said: Said) -> None:
    _, table, _ = said("llama-3.3-70b", "--min-nodes", "2", "--format", "table")
    for word in (
        "llama-3.3-70b, context 8192",
        "studio",
        "first token",
        "tok/s for one request",
        "limited by",
    ):
        assert word in table
    _, explained, _ = said("llama-3.3-70b", "--explain")
    assert "without studio:" in explained
    assert "instead: " in explained
    assert "air takes no part" in explained
    _, rows, _ = said("llama-3.3-70b", "--min-nodes", "2")
    header, *lines = [line.split("\t") for line in rows.splitlines()]
    assert header[:4] == ["replica", "stage", "node", "node_id"]
    assert len(lines) == 2
    assert {len(line) for line in lines} == {len(header)}
    _, ids, _ = said("llama-3.3-70b", "-q")
    assert ids == "studio-0123456789\n"
    _, picture, _ = said("llama-3.3-70b", "--min-nodes", "3", "--format", "svg")
    root = ElementTree.fromstring(picture)
    texts = [element.text or "" for element in root.iter() if element.text]
    assert any("studio" in text for text in texts)


def test_names_have_no_power_over_the_terminal(said: Said, tmp_path: Path) -> None:
    path = tmp_path / "hostile.json"
    path.write_bytes(encode(topologies.hostile()))
    for shape in ("table", "tsv", "svg"):
        code, out, err = said(
            "llama-3.1-8b", "--topology", str(path), "--format", shape, "--explain", "--min-nodes", "3"
        )
        assert code == 0, err
        assert "\x1b" not in out + err
        assert "\x07" not in out + err


# -- what fits ---------------------------------------------------------------------------------------


def test_what_does_not_fit(said: Said) -> None:
    code, out, err = said("kimi-k2", "--json")
    assert (code, out) == (Exit.DOES_NOT_FIT, "")
    error = json.loads(err)
    assert error["exit"] == 79
    assert "the nearest miss lacks" in error["message"]
    assert "It would fit with" in error["hint"]
    code, _, err = said("llama-3.3-70b", "--max-nodes", "1", "--exclude", "studio")
    assert code == Exit.DOES_NOT_FIT
    assert "which fits, but not with --max-nodes" in err


def test_suggestions(said: Said) -> None:
    code, out, _ = said("--suggest", "--json")
    assert code == 0
    document = json.loads(out)
    assert problems(document, registry.json_schema("plan")) == []
    names = [each["name"] for each in document["suggestions"]]
    assert "qwen3-235b-a22b" in names
    assert "kimi-k2" not in names
    sizes = [each["memory_bytes"] for each in document["suggestions"]]
    assert sizes == sorted(sizes, reverse=True)
    rows = said("--suggest")[1].splitlines()
    assert rows[0].startswith("model\tdownload")
    assert len(rows) == len(names) + 1
    assert said("--suggest", "-q")[1].split() == names


def test_two_plans_compared(said: Said, tmp_path: Path) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    said("llama-3.3-70b", "-o", str(a))
    said("llama-3.3-70b", "--exclude", "studio", "--context", "1k", "-o", str(b))
    code, out, _ = said("--diff", str(a), str(b), "--json")
    assert code == 0
    document = json.loads(out)
    assert problems(document, registry.json_schema("plan")) == []
    found = {each["what"]: (each["a"], each["b"]) for each in document["differences"]}
    assert found["context"] == ("8192", "1024")
    assert found["studio: layers"] == ("0-79", None)
    assert "one request" in found
    assert said("--diff", str(a), str(b))[1].startswith(f"what\t{a}\t{b}\n")
    assert said("--diff", str(a), str(a))[2] == "the two plans are the same\n"
    assert said("--diff", str(a), str(tmp_path / "none"))[0] == Exit.NOT_FOUND


# -- pipes and watching ------------------------------------------------------------------------------


def test_a_topology_from_a_pipe(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    class Piped:
        buffer = io.BytesIO(encode(topologies.mixed()))

        def isatty(self) -> bool:
            return False

    monkeypatch.setattr(sys, "stdin", Piped())
    plan = planned(said, "llama-3.1-8b", "--topology", "-")
    assert {name for chain in who(plan) for name, _ in chain} <= {"tower", "book", "nas", "nas-2"}


@pytest.mark.process
def test_in_a_shell_and_while_the_topology_changes(tmp_path: Path, macs: Topology) -> None:
    done = exo("plan", "llama-3.3-70b", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["schema"] == "exo.plan/1"
    watching = subprocess.Popen(
        [*EXO, "plan", "llama-3.3-70b", "--watch", "--json"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    try:
        assert watching.stdout is not None
        first = json.loads(watching.stdout.readline())
        assert (first["type"], first["reason"]) == ("plan", "the first plan")
        assert problems(first, registry.json_schema("plan")) == []
        gone = [
            msgspec.structs.replace(node, state="dead") if node.name == "studio" else node
            for node in macs.nodes
        ]
        file = TopologyFile(config.topology_path())
        file.update(lambda now: msgspec.structs.replace(now, nodes=tuple(gone)))
        second = json.loads(watching.stdout.readline())
        assert (second["type"], second["reason"]) == ("plan", "studio is dead")
        file.update(lambda now: msgspec.structs.replace(now, nodes=tuple(gone[-1:])))
        third = json.loads(watching.stdout.readline())
        assert third["type"] == "no-plan"
        assert problems(third, registry.json_schema("plan")) == []
        watching.send_signal(signal.SIGINT)
        assert watching.wait(10) == Exit.INTERRUPTED
    finally:
        watching.kill()
        watching.wait()
        watching.stdout.close()  # type: ignore[union-attr]


@pytest.mark.process
def test_the_same_bytes_from_every_process() -> None:
    texts = set()
    for seed in ("1", "2"):
        wanted = ["plan", "qwen3-32b", "--concurrency", "6", "--json"]
        done = exo(*wanted, env={**os.environ, "PYTHONHASHSEED": seed})
        assert done.returncode == 0, done.stderr
        texts.add(done.stdout)
    assert len(texts) == 1


# -- refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no model is named"),
        (["--suggest", "--watch"], "--suggest and --watch do not go together"),
        (["m", "--suggest"], "--suggest and a model do not go together"),
        (["--suggest", "-o", "x"], "--suggest and --output do not go together"),
        (["pocket", "--json", "--format", "svg"], "--format and --json do not go together"),
        (["pocket", "--context", "many"], "'many' is no number of tokens for --context"),
        (["pocket", "--context", "0"], "'0' is no number of tokens for --context"),
        (["pocket", "--context", "9M"], "the model knows a context of"),
        (["pocket", "--headroom", "100%"], "'100%' is no share for --headroom"),
        (["pocket", "--exclude", "nobody"], "there is no node 'nobody'"),
        (["pocket", "--layers", "studio"], "'studio' is no range for --layers"),
        (["pocket", "--layers", "studio=0:999"], "cannot be cut at layer 999"),
        (["pocket", "--layers", "studio=2:1"], "cannot be cut at layers 2 to 1"),
        (["pocket", "--layers", "studio=0:1", "--exclude", "studio"], "--layers: studio is excluded"),
        (["pocket", "--min-nodes", "3", "--max-nodes", "2"], "--max-nodes is less than --min-nodes"),
        (["pocket", "--watch", "--topology", "-"], "--watch needs a topology file"),
    ],
)
def test_what_is_refused(arguments: list[str], says: str, said: Said) -> None:
    code, out, err = said(*arguments)
    assert (code, out) == (Exit.USAGE, "")
    assert says in err


@pytest.mark.parametrize("way", ["tensor", "hybrid"])
def test_what_no_engine_runs_is_not_planned(way: str, said: Said) -> None:
    code, out, err = said("llama-3.3-70b", "--parallel", way)
    assert (code, out) == (Exit.UNAVAILABLE, "")
    assert f"--parallel {way}: layers cannot be shared between nodes yet" in err
    assert "--parallel pipeline" in err


def test_of_a_model_of_the_hub_its_configuration_is_enough(
    said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_models.build("llama", tmp_path / "model")
    with hubs.running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.add("org/model", model)
        plan = planned(said, "org/model")
        assert plan["model"] == {"name": "org/model", "revision": COMMIT, "digest": ""}
        here = planned(said, str(model))
        assert [each["ranks"][0]["memory"] for each in plan["replicas"][0]["stages"]] == [
            each["ranks"][0]["memory"] for each in here["replicas"][0]["stages"]
        ]
        assert hub.sent_bytes == (model / "config.json").stat().st_size
        code, _, err = said("org/another")
        assert code == Exit.NOT_AUTHORISED
        assert "org/another" in err
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        code, _, err = said("org/model")
        assert code == Exit.NOT_FOUND
        assert "keeps the hub from being asked" in err


def test_models_that_are_not_there(said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = said("unheard-of")
    assert code == Exit.NOT_FOUND
    assert "there is no model 'unheard-of'" in err
    monkeypatch.setattr(patience, "FIRST_WAIT_S", 0.01)
    assert said("org/unheard-of")[0] == Exit.UNAVAILABLE
    wrong = tmp_path / "wrong.json"
    wrong.write_text("[]")
    assert said(str(wrong))[0] == Exit.BAD_DATA
    strange = tmp_path / "strange.json"
    strange.write_text(json.dumps({"model_type": "rwkv99"}))
    assert said(str(strange))[0] == Exit.BAD_DATA


def test_nobody_to_plan_for(said: Said, tmp_path: Path) -> None:
    code, _, err = said("pocket", "--topology", str(tmp_path / "none.json"))
    assert code == Exit.UNAVAILABLE
    assert "no node takes work: nobody is there" in err


def test_numbers_as_people_write_them() -> None:
    assert [count_of(text, "--context") for text in ("8192", "32k", "1M")] == [8192, 32768, 1048576]
    assert [share_of(text, "--headroom") for text in ("10%", "0.1", "0")] == [0.1, 0.1, 0.0]
    with pytest.raises(UsageProblem):
        share_of("1", "--headroom")
