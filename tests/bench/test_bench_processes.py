"""`exo bench` on two real nodes: a stage that is slow, and one that computes something else."""

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
import psutil
import pytest

from exo_cli.fetch.stores import Stores
from exo_cli.models.directory import ModelDirectory
from exo_cli.schemas import registry
from exo_cli.schemas.bench import Bench
from exo_cli.schemas.plan import ModelRef
from tests.support import cluster, tiny_models, toy_model
from tests.support.html_page import Page
from tests.support.jsonschema import problems
from tests.support.processes import Running, Stage, is_engine, wait_until
from tests.support.records import node as record

pytestmark = pytest.mark.process

RUN_S, STOP_S = 0.003, 0.05
"""A stage that is slowed down: it is let go for less than a step of its own takes."""
WIDE = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_key_value_heads": 4}
HEAD = 4096
"""So many tokens that the last stage's head makes it the slowest if nothing is done to the first."""
BOUND_S = 240.0
"""For a run of the bench; a machine may do other things."""


@dataclass
class Nodes:
    """a with good weights and b with others under the same digest, and a home for whoever drives them."""

    stage: Stage
    home: Path
    model: Path
    running: dict[str, Running]

    def engine(self, name: str) -> psutil.Process:
        (found,) = filter(is_engine, psutil.Process(self.running[name].popen.pid).children())
        return found

    def plan(self, path: Path, model: ModelRef, bounds: tuple[int, int, int]) -> Path:
        made = cluster.plan(model, bounds, [record("a"), record("b")])
        path.write_bytes(msgspec.json.encode(made))
        return path

    def bench(self, *arguments: str) -> Running:
        peers = [word for each in self.running.values() for word in ("--peer", endpoint(each))]
        return self.stage.start("bench", *arguments, *peers, HOME=str(self.home))


def is_up(node: Running) -> bool:
    """Ready, or at an end."""
    return '"type":"ready"' in node.out() or node.popen.poll() is not None


def endpoint(node: Running) -> str:
    ready: dict[str, Any] = next(each for each in node.lines() if each["type"] == "ready")
    return str(ready["endpoint"])


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    home = tmp_path_factory.mktemp("home")
    mx.disable_compile()
    good = tiny_models.build("llama", tmp_path_factory.mktemp("good") / "toy")
    toy_model.write_tokenizer(good)
    wrong = with_another_tensor(good, tmp_path_factory.mktemp("wrong") / "toy")
    stores = {"a": home / ".cache", "b": home / ".cache of b"}
    Stores(stores["a"] / "exo" / "weights").open(good)
    Stores(stores["b"] / "exo" / "weights").open(wrong)
    stage = Stage(home)
    try:
        running = {
            name: stage.start(
                *("serve-shard", "--json", "--name", name, "--threads", "1"),
                HOME=str(home),
                XDG_CACHE_HOME=str(store),
            )
            for name, store in stores.items()
        }
        wait_until(lambda: all(map(is_up, running.values())), seconds=BOUND_S)
        yield Nodes(stage, home, good, running)
    finally:
        stage.close()


def with_another_tensor(model: Path, path: Path) -> Path:
    """A copy with the signs of the last layer's values turned round: the same headers, the same digest."""
    shutil.copytree(model, path)
    opened = ModelDirectory.open(path)
    tensor = opened.tensors["model.layers.3.self_attn.v_proj.weight"]
    assert tensor.dtype == "F32"
    with (path / tensor.file).open("r+b") as file:
        file.seek(tensor.start)
        data = bytearray(file.read(tensor.nbytes))
        data[3::4] = bytes(byte ^ 0x80 for byte in data[3::4])
        file.seek(tensor.start)
        file.write(data)
    assert ModelDirectory.open(path).digest == ModelDirectory.open(model).digest
    return path


@contextmanager
def pulses(engine: psutil.Process) -> Iterator[None]:
    """The process stands still most of the time; it goes on when the block ends."""
    over = threading.Event()

    def work() -> None:
        while not over.wait(RUN_S):
            engine.suspend()
            over.wait(STOP_S)
            engine.resume()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def share(timeline: dict[str, Any]) -> float:
    """How long the first stage computes, of the second one's time."""
    first, second = (stage["compute_ms_p50"] for stage in timeline["stages"])
    return float(first / second)


def ended(bench: Running) -> int:
    try:
        return bench.popen.wait(BOUND_S)
    except subprocess.TimeoutExpired:
        raise AssertionError(bench.told()) from None


def test_a_stage_that_is_slowed_down_is_the_slowest_in_the_file_and_on_the_page(
    nodes: Nodes, tmp_path: Path
) -> None:
    config, page = tmp_path / "config.json", tmp_path / "page.html"
    # A step takes longer than an engine is let go at a time.
    config.write_text(
        json.dumps(
            {
                **tiny_models.config("llama"),
                **WIDE,
                "head_dim": 64,
                "num_hidden_layers": 2,
                "vocab_size": HEAD,
            }
        )
    )
    plan = nodes.plan(
        tmp_path / "plan.json", ModelRef(name="wide", revision=None, digest="0" * 64), (0, 1, 2)
    )
    words = [
        *(
            "--geometry",
            str(config),
            "--bits",
            "32",
            "--numerics",
            "exact",
            "--plan",
            str(plan),
            "-v",
            "--json",
        ),
        *("--prompt-tokens", "4", "--gen-tokens", "8", "--concurrency", "1", "--depth", "0"),
        *("--warmup", "1", "--repeat", "1"),
    ]
    usual = nodes.bench(*words)
    assert ended(usual) == 0, usual.told()
    bench = nodes.bench(*words, "--report", str(page))
    wait_until(
        lambda: "warm-up" in bench.err() or bench.popen.poll() is not None, bench.told, seconds=BOUND_S
    )
    with pulses(nodes.engine("a")):
        code = ended(bench)
    assert code == 0, bench.told()
    found = json.loads(bench.out())
    assert problems(found, registry.json_schema("bench")) == []
    timeline = found["timeline"]
    assert [stage["node"] for stage in timeline["stages"]] == ["a", "b"]
    assert timeline["slowest"] == 0, timeline
    # It stood still for most of the time: no machine's other work makes one of two stages so much slower.
    assert share(timeline) > 3 * share(json.loads(usual.out())["timeline"])
    rects = Page.of(page.read_text()).named("rect")
    (slow,) = [each for each in rects if each.attributes["class"] == "slow"]
    others = [each for each in rects if each.attributes["class"] == "compute"]
    # The stages stand below each other in their order.
    assert all(float(slow.attributes["y"]) < float(each.attributes["y"]) for each in others)
    assert len(others) == 1


def test_a_stage_with_other_weights_makes_the_figures_invalid(nodes: Nodes, tmp_path: Path) -> None:
    out, page = tmp_path / "out.json", tmp_path / "page.html"
    digest = ModelDirectory.open(nodes.model).digest
    reference = ModelRef(name=nodes.model.name, revision=None, digest=digest)
    load = (
        *("--prompt-tokens", "8", "--gen-tokens", "8", "--concurrency", "1", "--depth", "0"),
        *("--warmup", "0", "--repeat", "1", "-o", str(out), "--report", str(page)),
    )
    plan = nodes.plan(tmp_path / "plan.json", reference, (0, 2, 4))
    bench = nodes.bench(str(nodes.model), "--plan", str(plan), *load)
    assert ended(bench) == 80, bench.told()
    made = msgspec.json.decode(out.read_bytes(), type=Bench)
    assert [stage.node for stage in made.stages] == ["a", "b"]
    assert made.gate.valid is False
    states = {check.name: check.state for check in made.gate.checks}
    assert states["unsplit"] == "differ"
    said = next(check.said for check in made.gate.checks if check.name == "unsplit")
    assert "than the whole model" in said
    assert f"INVALID: {said}" in bench.err()
    assert "error: the figures are invalid" in bench.err()
    assert said in Page.of(page.read_text()).words
