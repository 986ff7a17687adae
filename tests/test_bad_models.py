"""Models, plans and nodes that are not as they should be, through `exo run`: sentence, hint, exit code.

The table is the documentation: what is wrong, and what comes of it. Each row is a real `exo run` beside a
real node that is ready to load the model; afterwards nothing is loaded there and no engine is left.
"""

import asyncio
import json
import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
import pytest

from exo_cli import config
from exo_cli.cluster.service import NodeService
from exo_cli.cluster.topology_file import TopologyFile
from exo_cli.errors import MEANINGS, Exit
from exo_cli.models.directory import ModelDirectory
from exo_cli.schemas.plan import ModelRef
from exo_cli.schemas.topology import Node, Topology
from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.hello import hello
from exo_cli.wire.stubs import control
from tests.support import cluster, nodes, tiny_models, toy_model
from tests.support.cli import EXO
from tests.support.cluster import Shard, shards

pytestmark = pytest.mark.process

LAYERS = 2


@dataclass(frozen=True)
class Stand:
    """A node that waits for work, and a model in good order."""

    home: Path
    node: Shard
    record: Node
    model: Path
    source: KeyringSource

    def run(self, *words: str, home: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*EXO, "run", "--json", *words],
            capture_output=True,
            text=True,
            timeout=120,
            stdin=subprocess.DEVNULL,
            check=False,
            env={**os.environ, "HOME": str(home or self.home)},
        )

    def refused(self, code: int, said: str, *words: str, home: Path | None = None) -> str:
        """It says `said`, with a hint; returns the sentence. Nothing is left of it."""
        done = self.run(*words, home=home)
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
        error = json.loads(done.stderr.splitlines()[-1])
        assert done.returncode == error["exit"] == code, error
        assert said in error["message"], error
        assert error["hint"], error
        assert len(error["message"]) < 600
        assert not error["message"].endswith(".")
        self.nothing_is_left()
        return str(error["message"])

    def nothing_is_left(self) -> None:
        assert self.node.engines == []
        assert asyncio.run(self.node.stages(self.source)) == []

    def plan(self, **changes: Any) -> dict[str, Any]:
        """One that this node would carry out, changed at the top."""
        named = ModelRef(name="good", revision=None, digest=ModelDirectory.open(self.model).digest)
        document = msgspec.to_builtins(cluster.plan(named, (0, LAYERS), [self.record]))
        return {**document, **changes}


@pytest.fixture(scope="module")
def stand_(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    home = tmp_path_factory.mktemp("stand")
    mx.disable_compile()
    model = tiny_models.build(
        "llama",
        home / "good",
        overrides=[("num_hidden_layers", LAYERS), ("max_position_embeddings", 2048)],
    )
    toy = toy_model.write(home / "toy")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(toy / name, model / name)
    with pytest.MonkeyPatch.context() as patch, shards(home, "a") as (node,):
        patch.setenv("HOME", str(home))
        source = KeyringSource()
        record = asyncio.run(node.node(source))
        TopologyFile(config.topology_path()).update(lambda old: Topology(nodes=(record,)))
        yield Stand(home, node, record, model, source)


@pytest.fixture
def stand(stand_: Stand, monkeypatch: pytest.MonkeyPatch) -> Stand:
    monkeypatch.setenv("HOME", str(stand_.home))
    return stand_


@pytest.fixture
def model(stand: Stand, tmp_path: Path) -> Path:
    """A copy of the good one, to be spoilt."""
    return Path(shutil.copytree(stand.model, tmp_path / "spoilt"))


def test_the_model_runs_if_nothing_is_wrong_and_no_program_in_it_is_run(stand: Stand, model: Path) -> None:
    """Without this the table would mean nothing. What transformers would import is left alone."""
    mark = model / "it-was-run"
    for name in ("modeling_llama.py", "tokenization_llama.py", "__init__.py", "llama.py", "sitecustomize.py"):
        (model / name).write_text(f"open({str(mark)!r}, 'w').write('x')\nclass Model: ...\n")
    settings(auto_map={"AutoModelForCausalLM": "modeling_llama.Model"}, trust_remote_code=True)(model)
    edit(model / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_llama.Model", None]})
    done = subprocess.run(
        [*EXO, "run", str(model), "t5 t6", "--max-tokens", "3"],
        cwd=model,
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
        check=False,
        # A directory that is the current one is on Python's path: that is Python's doing, not the model's.
        env={**os.environ, "HOME": str(stand.home), "PYTHONSAFEPATH": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 3
    assert not mark.exists()
    asyncio.run(unload(stand))
    stand.nothing_is_left()


async def unload(stand: Stand) -> None:
    async with nodes.channel(stand.source, stand.node.port) as channel:
        await control(channel).Unload(pb.UnloadRequest(hello=hello()))


# -- ways to spoil a model ----------------------------------------------------------------------------

Spoil = Callable[[Path], object]


def edit(path: Path, **changes: Any) -> None:
    document = json.loads(path.read_text())
    document.update(changes)
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))


def settings(**changes: Any) -> Spoil:
    """Other values in config.json; None takes one out."""
    return lambda model: edit(model / "config.json", **changes)


def text(name: str, content: str) -> Spoil:
    return lambda model: (model / name).write_text(content)


def gone(name: str) -> Spoil:
    return lambda model: (model / name).unlink()


WEIGHTS = "model.safetensors"


def cut(keep: float) -> Spoil:
    """The file ends early."""

    def spoil(model: Path) -> None:
        path = model / WEIGHTS
        os.truncate(path, int(path.stat().st_size * keep))

    return spoil


def header(change: Callable[[dict[str, Any]], object]) -> Spoil:
    """Another header in front of the same tensors."""

    def spoil(model: Path) -> None:
        path = model / WEIGHTS
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        document = json.loads(data[8 : 8 + length])
        change(document)
        said = json.dumps(document).encode()
        path.write_bytes(struct.pack("<Q", len(said)) + said + data[8 + length :])

    return spoil


def length(by: int) -> Spoil:
    """The header's length says otherwise."""

    def spoil(model: Path) -> None:
        path = model / WEIGHTS
        data = path.read_bytes()
        path.write_bytes(struct.pack("<Q", struct.unpack("<Q", data[:8])[0] + by) + data[8:])

    return spoil


def turned(sign: bytes, bit: int) -> Spoil:
    """One bit of the header, in the first such sign."""

    def spoil(model: Path) -> None:
        path = model / WEIGHTS
        data = bytearray(path.read_bytes())
        data[data.index(sign, 8)] ^= 1 << bit
        path.write_bytes(data)

    return spoil


NORM = "model.norm.weight"
UP = "model.layers.1.mlp.up_proj.weight"


def overlapping(document: dict[str, Any]) -> None:
    """The last tensor of a shape lies on the first one."""
    alike = [each for each in document.values() if each.get("shape") == document[UP]["shape"]]
    alike.sort(key=lambda each: each["data_offsets"])
    alike[-1]["data_offsets"] = alike[0]["data_offsets"]


def renamed(old: str, new: str) -> Spoil:
    return header(lambda document: document.update({new: document.pop(old)}))


def in_pickles(model: Path) -> None:
    (model / WEIGHTS).rename(model / "pytorch_model.bin")


def in_a_directory(model: Path) -> None:
    (model / WEIGHTS).unlink()
    (model / WEIGHTS).mkdir()


def with_index(file: str) -> Spoil:
    def spoil(model: Path) -> None:
        index = {"metadata": {}, "weight_map": {NORM: file}}
        (model / "model.safetensors.index.json").write_text(json.dumps(index))

    return spoil


def template(source: str) -> Spoil:
    return lambda model: edit(model / "tokenizer_config.json", chat_template=source)


BROKEN: list[tuple[str, Spoil, int, str]] = [
    ("no config.json", gone("config.json"), 66, "no config.json is there"),
    ("config.json is not JSON", text("config.json", "{"), 65, "config.json is not JSON"),
    ("config.json is a list", text("config.json", "[]"), 65, "config.json is not a JSON object"),
    ("config.json is huge", text("config.json", "{" + " " * 5_000_000 + "}"), 65, "larger than 4 MiB"),
    ("no model_type", settings(model_type=None), 65, "model_type"),
    ("unknown architecture", settings(model_type="llamma"), 65, "no architecture called 'llamma'"),
    ("a path as an architecture", settings(model_type="../llama"), 65, "model_type"),
    ("a program of its own", settings(model_file="llama.py"), 65, "exo runs none"),
    ("no number of layers", settings(num_hidden_layers=None), 65, "num_hidden_layers"),
    ("a key is missing", settings(hidden_size=None), 65, "hidden_size"),
    ("wider than it is", settings(hidden_size=128), 65, "but config.json makes it"),
    ("more layers than there are", settings(num_hidden_layers=3), 65, "have no tensor for"),
    ("fewer layers than there are", settings(num_hidden_layers=1), 65, "tensors that this family does not"),
    ("more layers than anything", settings(num_hidden_layers=10**6), 65, "out of range"),
    ("more words than it has", settings(vocab_size=500), 65, "but config.json makes it"),
    ("other heads", settings(num_attention_heads=8), 65, "but config.json makes it"),
    ("quantized and is not", settings(quantization={"group_size": 7, "bits": 99}), 65, "group_size 7"),
    ("no weights", gone(WEIGHTS), 66, "no safetensors files"),
    ("only pickles", in_pickles, 66, "no safetensors files"),
    ("a directory for weights", in_a_directory, 74, "cannot be read"),
    ("an empty file", cut(0.0), 65, "too short"),
    ("cut off in the header", cut(0.001), 65, "ends inside its header"),
    ("cut off in the tensors", cut(0.7), 65, "it is cut off"),
    ("a header longer than the file", length(2**50), 65, "says its header has"),
    ("a header longer than it is", length(8), 65, "the header is not JSON"),
    ("a header shorter than it is", length(-8), 65, "the header is not JSON"),
    ("a bit of the header's braces", turned(b"{", 0), 65, "header is not a JSON object"),
    ("a bit of a tensor's dtype", turned(b"F32", 1), 65, "unknown dtype"),
    ("a bit of a tensor's name", turned(b"model.layers", 0), 65, "have no tensor for"),
    ("tensors on top of each other", header(overlapping), 65, "overlaps"),
    ("a missing tensor", renamed(UP, UP.replace("up_proj", "side_proj")), 65, "have no tensor for"),
    ("an index of missing files", with_index("model-7.safetensors"), 66, "names it"),
    ("an index that leads away", with_index("../model.safetensors"), 65, "index.json"),
    ("a tokenizer that is not JSON", text("tokenizer.json", "{"), 65, "tokenizer.json"),
    ("a tokenizer that is none", text("tokenizer.json", "{}"), 65, "tokenizer.json"),
    ("settings that are none", text("tokenizer_config.json", "[]"), 65, "tokenizer_config.json"),
    ("a template that does not parse", template("{% for m in %}"), 65, "chat template"),
    ("a template that fails", template("{{ messages[7].content.x }}"), 65, "chat template"),
    ("a template that goes out", template("{{ ''.__class__.__mro__ }}"), 65, "chat template"),
]


@pytest.mark.parametrize(
    ("spoil", "code", "said"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN]
)
def test_a_broken_model(stand: Stand, model: Path, spoil: Spoil, code: int, said: str) -> None:
    spoil(model)
    stand.refused(code, said, str(model), "t5 t6", "--max-tokens", "3")


def test_every_code_is_a_documented_one() -> None:
    assert {Exit(code) for _, _, code, _ in BROKEN} <= set(MEANINGS)


# -- plans and nodes ----------------------------------------------------------------------------------


def other_layers(document: dict[str, Any], *layers: tuple[int, int]) -> dict[str, Any]:
    """The same node for stages of these layers."""
    (stage,) = document["replicas"][0]["stages"]
    return {**document, "replicas": [{"stages": [{**stage, "layers": list(each)} for each in layers]}]}


PLANS: list[tuple[str, Callable[[Stand], Any], int, str]] = [
    ("not JSON", lambda _: "{", 65, "not JSON"),
    ("not a plan", lambda _: {"schema": "exo.topology/1", "nodes": []}, 65, "exo.topology/1"),
    ("of tomorrow", lambda at: at.plan(schema="exo.plan/9"), 76, "exo.plan/9"),
    ("half a plan", lambda _: {"schema": "exo.plan/1"}, 65, "missing"),
    ("without stages", lambda at: at.plan(replicas=[]), 65, "has no stages"),
    (
        "for another model",
        lambda at: at.plan(model={"name": "x", "revision": None, "digest": "0" * 64}),
        65,
        "for another model",
    ),
    ("with a gap", lambda at: other_layers(at.plan(), (0, 1)), 65, "is for 1 layers"),
    ("out of order", lambda at: other_layers(at.plan(), (1, 2), (0, 1)), 65, "do not follow each other"),
    ("for more layers", lambda at: other_layers(at.plan(), (0, 9)), 65, "is for 9 layers"),
    (
        "on a node that is not",
        lambda at: json.loads(json.dumps(at.plan()).replace(at.record.id, "f" * 32)),
        69,
        "do not answer",
    ),
    (
        "in too little memory",
        lambda at: json.loads(json.dumps(at.plan()).replace(str(cluster.MEMORY_BYTES), "1000")),
        79,
        "may use 1000",
    ),
]


@pytest.mark.parametrize(("made", "code", "said"), [row[1:] for row in PLANS], ids=[row[0] for row in PLANS])
def test_a_bad_plan(stand: Stand, tmp_path: Path, made: Callable[[Stand], Any], code: int, said: str) -> None:
    document = made(stand)
    plan = tmp_path / "plan.json"
    plan.write_text(document if isinstance(document, str) else json.dumps(document))
    stand.refused(code, said, str(stand.model), "t5", "--plan", str(plan))


def test_a_plan_that_is_not_there_and_one_that_cannot_be_read(stand: Stand, tmp_path: Path) -> None:
    stand.refused(66, "no plan at", str(stand.model), "t5", "--plan", str(tmp_path / "none"))
    stand.refused(74, "cannot read", str(stand.model), "t5", "--plan", str(tmp_path))


def test_a_prompt_longer_than_the_model_knows(stand: Stand) -> None:
    words = " ".join(["t5"] * 3000)
    stand.refused(65, "the model knows 2048", str(stand.model), words, "--max-tokens", "3")


def test_a_node_that_may_use_too_little_memory(stand: Stand, tmp_path: Path) -> None:
    with shards(tmp_path / "small", "small", arguments=["--memory", "2MB"]) as (small,):
        home = tmp_path / "small"
        # Its driver is of the same home, and so of the same cluster.
        message = stand.refused(
            79, "needs", str(stand.model), "t5", "--peer", f"127.0.0.1:{small.port}", home=home
        )
        assert "small" in message
        assert small.engines == []


def test_a_node_of_another_protocol(stand: Stand, tmp_path: Path) -> None:
    class Tomorrows(NodeService):
        async def Describe(self, request: pb.DescribeRequest, context: Any) -> pb.DescribeReply:
            reply = await super().Describe(request, context)
            reply.hello.protocol = 9
            return reply

    async def main() -> str:
        async with nodes.serving(stand.source, "tomorrow", make=Tomorrows) as there:
            return await asyncio.to_thread(at_another, stand, tmp_path, there.me.record(), 76)

    message = asyncio.run(main())
    assert "protocol 9" in message
    assert "speaks 1" in message


def test_a_node_that_has_another_key(stand: Stand, tmp_path: Path) -> None:
    """Without a cluster key every home has its own."""
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    message = at_another(stand, tmp_path, stand.record, 77, home=stranger)
    assert "key" in message


def at_another(stand: Stand, directory: Path, node: Node, code: int, *, home: Path | None = None) -> str:
    """What is said where the plan names this node."""
    topology, plan = directory / "topology.json", directory / "plan.json"
    TopologyFile(topology).update(lambda old: Topology(nodes=(node,)))
    plan.write_text(json.dumps(stand.plan()).replace(stand.record.id, node.id))
    words = ("--plan", str(plan), "--topology", str(topology))
    return stand.refused(code, "", str(stand.model), "t5", *words, home=home)


def test_a_node_that_cannot_keep_weights(stand: Stand, tmp_path: Path) -> None:
    home = tmp_path / "full"
    with shards(home, "full") as (full,):
        (home / ".cache").write_text("a file is in the way")
        words = (str(stand.model), "t5", "--peer", f"127.0.0.1:{full.port}")
        message = stand.refused(73, "full", *words, home=home)
        assert "file exists" in message.lower() or "not a directory" in message.lower()
        assert full.engines == []
