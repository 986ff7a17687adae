"""`exo bench` as a process: what it prints and writes, what it refuses, and what it says of two runs."""

import asyncio
import json
import subprocess
from asyncio.subprocess import PIPE
from pathlib import Path

import msgspec
import pytest

from exo_cli import cli
from exo_cli.commands import bench as verb
from exo_cli.commands import bench_work
from exo_cli.commands.session import COMMON_NAMES, Session
from exo_cli.errors import CheckFailed, Unavailable
from exo_cli.output import Output
from exo_cli.schemas import registry
from exo_cli.schemas.bench import Bench, Comparison, Gate, GateCheck, Links
from exo_cli.views import bench_table
from tests.support import tiny_models
from tests.support.benches import bench, interval, level, stage
from tests.support.cli import EXO, exo
from tests.support.jsonschema import problems
from tests.support.openai_server import serving

SMALL = (
    "--prompt-tokens",
    "8",
    "--gen-tokens",
    "4",
    "--concurrency",
    "1,2",
    "--repeat",
    "2",
    "--threads",
    "1",
)


def result(path: Path, factor: float = 1.0, **parts: object) -> Path:
    values = [value * factor for value in (100.0, 101.0, 99.0, 100.5)]
    made = level(1, intervals=[interval("decode_tokens_per_s", values, 1.0)], decode_tokens_per_s=values[0])
    made = msgspec.structs.replace(made, mean_ttft_ms=None)
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(bench(), levels=(made,), **parts)))
    return path


@pytest.mark.process
def test_random_weights_are_measured_on_this_machine_and_compared_with_themselves(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(tiny_models.config("llama")))
    out, page = tmp_path / "out.json", tmp_path / "out.html"
    line = (
        *("bench", "--geometry", str(config), "--bits", "16", *SMALL, "--depth", "0,16"),
        *("--json", "-o", str(out), "--report", str(page)),
    )
    # A node of its own has to start, on a machine that may do other things.
    done = subprocess.run([*EXO, *line], capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert problems(found, registry.json_schema("bench")) == []
    assert msgspec.json.decode(out.read_bytes(), type=Bench) == msgspec.json.decode(done.stdout, type=Bench)
    assert (found["schema"], found["target"], found["model"]["kind"]) == ("exo.bench/1", "chain", "random")
    assert [(each["max_concurrency"], each["depth"], each["completed"]) for each in found["levels"]] == [
        (1, 0, 2),
        (2, 0, 4),
        (1, 16, 2),
    ]
    assert found["levels"][2]["cached_tokens"] == 2 * 16
    assert found["conditions"]["threads"] == 1
    assert found["gate"]["valid"] is True
    assert page.read_text().lower().startswith("<!doctype html>")

    done = exo("bench", "--compare", str(out), str(out), "--json")
    assert done.returncode == 0, done.stderr
    assert problems(json.loads(done.stdout), registry.json_schema("bench")) == []
    assert msgspec.json.decode(done.stdout, type=Comparison).verdict == "same"


def test_a_server_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "out.json"

    async def main() -> tuple[int, str, str]:
        async with serving() as server:
            line = (
                *("bench", "--http", server.url, "--prompt-tokens", "9", "--gen-tokens", "5"),
                *("--concurrency", "1,2", "--repeat", "2", "--json", "-o", str(out)),
            )
            child = await asyncio.create_subprocess_exec(*EXO, *line, stdout=PIPE, stderr=PIPE)
            stdout, stderr = await child.communicate()
            assert child.returncode is not None
            return child.returncode, stdout.decode(), stderr.decode()

    code, stdout, stderr = asyncio.run(main())
    assert code == 0, stderr
    found = json.loads(stdout)
    assert problems(found, registry.json_schema("bench")) == []
    assert (found["model"]["kind"], found["model"]["name"]) == ("http", "tiny")
    assert [(each["max_concurrency"], each["completed"]) for each in found["levels"]] == [(1, 2), (2, 4)]
    assert all(set(each["output_lens"]) == {5} for each in found["levels"])
    assert (found["stages"], found["timeline"], found["load_ms"]) == ([], None, None)
    checks = {check["name"]: check["state"] for check in found["gate"]["checks"]}
    assert checks == {"levels": "agree", "unsplit": "skipped"}


def test_two_results_are_compared_and_a_slower_one_is_exit_code_80(tmp_path: Path) -> None:
    a, b = result(tmp_path / "a.json"), result(tmp_path / "b.json", 0.7)
    out = tmp_path / "comparison.json"
    done = exo("bench", "--compare", str(a), str(b), "-o", str(out))
    assert done.returncode == 80
    header, row = done.stdout.splitlines()
    assert header.split("\t") == list(bench_table.CHANGES)
    assert row.split("\t")[-1] == "worse"
    assert (
        "error: b.json is worse than a.json: decode_tokens_per_s with 1 at a time is 0.70 times"
        in done.stderr
    )
    assert msgspec.json.decode(out.read_bytes(), type=Comparison).verdict == "worse"
    done = exo("bench", "--compare", str(b), str(a))
    assert done.returncode == 0
    assert "a.json is faster than b.json" in done.stderr


def test_results_that_have_nothing_in_common_say_so(tmp_path: Path) -> None:
    a = result(tmp_path / "a.json")
    empty = tmp_path / "b.json"
    empty.write_bytes(msgspec.json.encode(msgspec.structs.replace(bench(), levels=())))
    done = exo("bench", "--compare", str(a), str(empty))
    assert done.returncode == 0
    assert "no level in common" in done.stderr


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    good = result(tmp_path / "a.json")
    (tmp_path / "plan.json").write_text('{"schema": "exo.plan/1"}')
    (tmp_path / "newer.json").write_text('{"schema": "exo.bench/9"}')
    (tmp_path / "broken.json").write_text('{"schema": "exo.bench/1", "model"')
    (tmp_path / "words.json").write_text("nonsense")
    cases = {"words": 65, "plan": 65, "newer": 76, "broken": 65, "missing": 66}
    for name, code in cases.items():
        done = exo("bench", "--compare", str(good), str(tmp_path / f"{name}.json"))
        assert (done.returncode, done.stdout) == (code, ""), name
        assert f"{name}.json" in done.stderr
        assert "jSON" not in done.stderr
        assert "hint: " in done.stderr


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ([], 2, "nothing to measure"),
        (["pocket", "--links"], 2, "--links takes no MODEL"),
        (["--geometry", "pocket", "--http", "http://127.0.0.1:9"], 2, "two ways"),
        (["pocket", "--bits", "4"], 2, "--bits means nothing on a model"),
        (["pocket", "--api-key-file", "key"], 2, "--api-key-file means nothing on a model"),
        (["--links", "--gen-tokens", "3"], 2, "--gen-tokens means nothing with --links"),
        (["--compare", "a", "b", "--report", "x"], 2, "--report means nothing with --compare"),
        (["--http", "http://127.0.0.1:9", "--threads", "2"], 2, "--threads means nothing with --http"),
        (["pocket", "--threads", "2", "--nodes", "2"], 2, "--threads is for this machine's own node"),
        (["pocket", "--memory", "1GB", "--peer", "127.0.0.1"], 2, "--memory is for this machine's own node"),
        (["pocket", "--memory", "plenty"], 2, "no size for --memory"),
        (["pocket", "--concurrency", "1,0"], 2, "no numbers for --concurrency"),
        (["pocket", "--concurrency", "one"], 2, "no numbers for --concurrency"),
        (["pocket", "--depth", "0,-1"], 2, "no numbers for --depth"),
        (["pocket", "--repeat", "0"], 2, "--repeat"),
        (["pocket", "--gen-tokens", "0"], 2, "--gen-tokens"),
        (["pocket", "--numerics", "roughly"], 2, "--numerics"),
        (["pocket", "--depth", "9999999"], 65, "the model knows 1024"),
        (["pocket", "--prompt-tokens", "5000"], 65, "the prompt and its answer make 5064 tokens"),
        (["--http", "http://127.0.0.1:9", "--api-key-file", "none"], 66, "there is no file none"),
        (["--geometry", "no-such-model"], 66, "no geometry called"),
        (["--geometry", "pocket", "--bits", "9"], 2, "9 bits"),
        (["--http", "ftp://127.0.0.1"], 2, "ftp"),
        (["--http", "http://127.0.0.1:9"], 69, "127.0.0.1:9"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_done_is_said_before_anything_runs(
    line: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["bench", *line, "--json"]) == code
    out, err = capsys.readouterr()
    error = json.loads(err.splitlines()[-1])
    assert (out, error["exit"]) == ("", code)
    assert said in error["message"]
    assert error["hint"]


def test_every_option_is_of_some_use() -> None:
    known = {name for names in verb._TAKES.values() for name in names}
    own = {"session", "context", "model", "geometry", "http", "links", "compare"}
    assert set(verb.bench.__annotations__) - own - COMMON_NAMES == known - own


def test_wrong_tokens_are_exit_code_80_and_all_is_shown_and_written_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = (GateCheck(name="levels", state="differ", compared=3, said="with 2 it says another thing"),)
    made = msgspec.structs.replace(bench(), gate=Gate(valid=False, checks=checks))
    out = tmp_path / "out.json"
    with pytest.raises(CheckFailed, match="with 2 it says another thing") as caught:
        bench_work.finish(Session(Output(), tmp_path / "topology.json"), made, tmp_path / "page.html", out)
    assert caught.value.exit == 80
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 1 + len(made.levels)
    assert "INVALID: with 2 it says another thing" in shown.err
    assert msgspec.json.decode(out.read_bytes(), type=Bench).gate == made.gate
    assert "with 2 it says another thing" in (tmp_path / "page.html").read_text()


def test_where_no_request_was_answered_that_is_an_error(tmp_path: Path) -> None:
    made = msgspec.structs.replace(
        bench(), levels=(level(1, ttfts_s=(), itls_s=(), completed=0, failed=2, errors=("gone",)),)
    )
    with pytest.raises(Unavailable, match="gone"):
        bench_work.finish(Session(Output(), tmp_path / "topology.json"), made, None, None)


def test_figures_are_shown_with_their_intervals_and_the_rest_in_words() -> None:
    made = bench()
    header, rows = bench_table.levels(made)
    assert len(rows) == len(made.levels)
    assert all(len(row) == len(header) for row in rows)
    words = "\n".join(bench_table.words(made))
    assert made.model.name in words
    assert all(stage.node in words for stage in made.stages)
    assert "INVALID" not in words
    assert "numerics exact" in words.splitlines()
    why = stage("mini", 9, 16, numerics="exact", numerics_reason="models of the family x")
    fell_back = msgspec.structs.replace(made, stages=(made.stages[0], why))
    assert "no fast kernels on mini: models of the family x" in bench_table.words(fell_back)
    broken = msgspec.structs.replace(made, gate=msgspec.structs.replace(made.gate, valid=False))
    assert "INVALID" in "\n".join(bench_table.words(broken))


def test_what_is_not_known_is_a_dash() -> None:
    made = msgspec.structs.replace(bench(), levels=(level(3),), stages=(), links=(), load_ms=None)
    header, (row,) = bench_table.levels(made)
    cells = dict(zip(header, row, strict=True))
    assert (cells["at once"], cells["decode t/s"]) == ("3", "-")
    header, rows = bench_table.links(Links(version="1", unix_ms=0, links=()))
    assert rows == []


def test_intervals_that_tell_nothing_are_a_question_mark() -> None:
    wild = level(1, intervals=[interval("decode_tokens_per_s", (50.0, 120.0), 80.0)])
    calm = level(1, intervals=[interval("decode_tokens_per_s", (99.0, 100.0, 101.0), 1.0)])
    shown = {}
    for name, each in (("wild", wild), ("calm", calm)):
        made = msgspec.structs.replace(bench(), levels=(each,))
        header, (row,) = bench_table.levels(made)
        said = "interval ?" in "\n".join(bench_table.words(made))
        shown[name] = (row[header.index("decode t/s") + 1], said)
    assert shown["wild"] == ("?", True)
    assert "-" in shown["calm"][0]
    assert not shown["calm"][1]


def test_a_file_that_cannot_be_written_is_told_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Nothing of the model is looked for yet: its name is of no use.
    cases = {"-o": tmp_path / "nowhere" / "out.json", "--report": tmp_path}
    for option, path in cases.items():
        assert cli.run(["bench", "no-such-model", option, str(path)]) == 73, option
        assert f"cannot write {path}" in capsys.readouterr().err


def test_what_is_no_configuration_is_called_by_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in {"a.json": "nonsense", "b.json": "[]", "c.json": "{}"}.items():
        path = tmp_path / name
        path.write_text(text)
        assert cli.run(["bench", "--geometry", str(path), "--json"]) == 65
        error = json.loads(capsys.readouterr().err.splitlines()[-1])
        assert str(path) in error["message"]
        assert "catalogue" in error["hint"]
