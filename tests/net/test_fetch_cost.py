"""What a fetch costs the hub: a stage's own bytes, and of three nodes the model once. Real processes."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from exo_cli.fetch.ranges import stage_ranges
from exo_cli.models.directory import ModelDirectory
from exo_cli.schemas.plan import ModelRef, Plan, PlannedStage, Rank, RankMemory, Replica
from exo_cli.trust.keyring import KeyringSource
from tests.support import hub as hubs
from tests.support.cluster import Shard
from tests.support.fetching import NAME, Fetcher, served, total_bytes
from tests.support.hub import COMMIT, Hub
from tests.support.processes import Stage

LAYERS = 4
STAGE, ONCE = 1.02, 1.05

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return served(tmp_path_factory.mktemp("model") / "served", pieces_a_file=2.5, files=3)


@pytest.fixture
def hub(model: Path) -> Iterator[Hub]:
    with hubs.running() as running:
        running.add(NAME, model)
        yield running


def metadata_bytes(model: Path) -> int:
    """Of small files and headers."""
    directory = ModelDirectory.open(model)
    small = sum(each.stat().st_size for each in model.iterdir() if each.suffix == ".json")
    return small + sum(header.data_start for header in directory.files)


@pytest.mark.parametrize("layers", [(0, 1), (1, 3), (3, 4), (0, 4)])
def test_a_stage_costs_its_tensors(hub: Hub, model: Path, tmp_path: Path, layers: tuple[int, int]) -> None:
    directory = ModelDirectory.open(model)
    wanted = stage_ranges(directory, *layers, LAYERS)
    fetcher = Fetcher(hub, tmp_path / "cache")
    asked = (NAME, "--layers", f"{layers[0]}:{layers[1]}")
    done = fetcher.run(*asked)
    assert done.returncode == 0, done.stderr
    tensors = sum(span.size for span in wanted)
    assert hub.sent_bytes <= STAGE * tensors + metadata_bytes(model)
    # Everything there: nobody is asked.
    hub.clear()
    done = fetcher.run(*asked)
    assert done.returncode == 0, done.stderr
    assert hub.requests == []
    # The rest of it, and nothing twice.
    assert fetcher.run().returncode == 0
    assert hub.sent_bytes <= total_bytes(model) - tensors + metadata_bytes(model)


def test_what_a_stage_has_is_the_models(hub: Hub, model: Path, tmp_path: Path) -> None:
    fetcher = Fetcher(hub, tmp_path / "cache")
    assert fetcher.run(NAME, "--layers", "1:3").returncode == 0
    directory = ModelDirectory.open(model)
    (store,) = [each.parent for each in Path(f"{tmp_path}/cache-of-exo").rglob(".exo-map.json")]
    assert store.name == directory.digest
    for name, start, end in stage_ranges(directory, 1, 3, LAYERS):
        assert (store / name).read_bytes()[start:end] == (model / name).read_bytes()[start:end]


@dataclass
class Node:
    """A node with stores of its own."""

    name: str
    id: str
    cache: Path


@contextmanager
def three_nodes(hub: Hub, tmp_path: Path) -> Iterator[list[Node]]:
    """serve-shard processes of one user on one machine, who share nothing but that user's key."""
    home = tmp_path / "nodes"
    home.mkdir()
    stage = Stage(home)
    with ExitStack() as stack:
        stack.callback(stage.close)
        nodes = []
        for name in ("a", "b", "c"):
            places = {"HF_HUB_CACHE": f"{home}/{name}/hub", "XDG_CACHE_HOME": f"{home}/{name}/cache"}
            running = stage.start("serve-shard", "--json", "--name", name, HF_ENDPOINT=hub.url, **places)
            nodes.append((name, running))
        found = []
        for name, running in nodes:
            running.until(lambda running=running: '"type":"ready"' in running.out())  # type: ignore[misc]
            ready = next(each for each in running.lines() if each["type"] == "ready")
            shard = Shard(running, int(ready["endpoint"].rpartition(":")[2]))
            described = asyncio.run(shard.node(KeyringSource()))
            found.append(Node(name, described.id, home / name))
        yield found


def plan_over(model: Path, replicas: list[list[tuple[Node, tuple[int, int]]]]) -> bytes:
    digest = ModelDirectory.open(model).digest
    memory = RankMemory(weights_bytes=1, kv_bytes=0, buffers_bytes=0, base_bytes=0, limit_bytes=1 << 30)
    made = Plan(
        model=ModelRef(name=NAME, revision=COMMIT, digest=digest),
        dtype="float32",
        context=0,
        concurrency=1,
        replicas=tuple(
            Replica(
                stages=tuple(
                    PlannedStage(layers=layers, ranks=(Rank(node=node.id, share=1.0, memory=memory),))
                    for node, layers in stages
                )
            )
            for stages in replicas
        ),
        forecast=None,
        binding=None,
        reason="a test",
    )
    return msgspec.json.encode(made)


def held(node: Node, model: Path, layers: tuple[int, int]) -> bool:
    """Whether a node has these layers' bytes, in whichever place."""
    directory = ModelDirectory.open(model)
    places = [each.parent for each in node.cache.rglob("config.json")]
    spans = stage_ranges(directory, *layers, LAYERS)
    return any(
        all(
            (place / name).exists()
            and (place / name).read_bytes()[start:end] == (model / name).read_bytes()[start:end]
            for name, start, end in spans
        )
        for place in places
    )


@pytest.mark.parametrize("shape", ["every node all of it", "a third each"])
def test_three_nodes_cost_the_hub_the_model_once(
    hub: Hub, model: Path, tmp_path: Path, shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "driver/hub"))
    with three_nodes(hub, tmp_path) as nodes:
        if shape == "every node all of it":
            replicas = [[(node, (0, LAYERS))] for node in nodes]
        else:
            replicas = [list(zip(nodes, pairwise((0, 1, 3, LAYERS)), strict=True))]
        plan = tmp_path / "plan.json"
        plan.write_bytes(plan_over(model, replicas))
        stage = Stage(tmp_path)
        try:
            fetch = stage.start("fetch", NAME, "--plan", str(plan), "--json", EXO_DEBUG="1")
            assert fetch.popen.wait(120) == 0, fetch.told()
        finally:
            stage.close()
        assert hub.sent_bytes <= ONCE * total_bytes(model), hub.sent
        for stages in replicas:
            for node, layers in stages:
                assert held(node, model, layers), node.name
