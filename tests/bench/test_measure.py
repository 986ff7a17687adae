"""A model measured for real: random weights on nodes that are processes, split, gated, recorded."""

import asyncio
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
import pytest

from exo_cli.bench.chain import vocabulary
from exo_cli.bench.load import Load
from exo_cli.bench.measure import Job, measure, measure_server, remarks, what_ran
from exo_cli.drive.driver import Settings, Telling
from exo_cli.errors import BadData
from exo_cli.models.directory import ModelDirectory
from exo_cli.schemas.bench import Bench
from exo_cli.schemas.plan import ModelRef
from exo_cli.schemas.topology import Node, Topology
from exo_cli.trust.keyring import KeyringSource
from tests.support import benches, cluster, tiny_models, toy_model
from tests.support.benches import level
from tests.support.cluster import shards
from tests.support.fake_target import FakeTarget

LOAD = Load(prompt_tokens=12, gen_tokens=6, concurrency=(1, 2), depths=(0, 24), repeat=2)


def settings(home: Path, model: Any, **more: Any) -> Settings:
    return Settings(
        model=model,
        weights_dir=home / ".cache" / "exo" / "weights",
        nodes_dir=home / "nodes",
        topology=home / "topology.json",
        numerics="exact",
        **more,
    )


def spoil(model: Path) -> None:
    """Other weights under the same headers: the same digest, and another model."""
    for path in [model, *model.rglob("*.safetensors")]:
        if path.is_file():
            data = bytearray(path.read_bytes())
            for at in range(len(data) // 2, len(data) - 4, 40):
                data[at : at + 4] = b"\x00\x00\x80\xbf"
            path.write_bytes(bytes(data))


def test_what_ran_is_told_of_each_stage_where_they_differ() -> None:
    fast = benches.stage("a", 0, 2, numerics="fast")
    exact = benches.stage("b", 2, 4, numerics="exact")
    assert what_ran([fast, fast]) == "fast"
    assert what_ran([fast, exact, fast]) == "fast, exact, fast"
    assert what_ran([]) is None


@pytest.mark.process
def test_a_split_model_is_measured_and_compared_with_the_whole(
    clean_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exo_cli.drive.choose.PLANNED_S", 60.0)
    mx.disable_compile()
    home = clean_environment
    model = tiny_models.build("llama", home / "llama")
    toy_model.write_tokenizer(model)
    rounds: list[tuple[int, int]] = []
    source = KeyringSource()

    async def measured(**more: Any) -> Bench:
        job = Job(settings(home, str(model), plan=split), LOAD)
        return await measure(
            job, source, Telling(), on_round=lambda each, done, total: rounds.append((done, total)), **more
        )

    with shards(home, "a", "b") as over:

        async def placed() -> list[Node]:
            return [await shard.node(source) for shard in over]

        nodes = asyncio.run(placed())
        (home / "topology.json").write_bytes(msgspec.json.encode(Topology(nodes=tuple(nodes))))
        reference = ModelRef(name="llama", revision=None, digest=ModelDirectory.open(model).digest)
        split = cluster.plan(reference, (0, 2, 4), nodes, context=64, concurrency=2)
        found = asyncio.run(measured())
        assert found.gate.valid
        checks = {check.name: check for check in found.gate.checks}
        assert (checks["levels"].state, checks["unsplit"].state) == ("agree", "agree"), checks
        assert checks["unsplit"].compared >= 2
        assert [stage.node for stage in found.stages] == ["a", "b"]
        assert [stage.layers for stage in found.stages] == [(0, 2), (2, 4)]
        assert all(stage.fresh and stage.load_ms for stage in found.stages)
        assert all(stage.node_memory_used_bytes for stage in found.stages)
        assert found.conditions.numerics == "exact"
        assert {(stage.numerics, stage.numerics_reason) for stage in found.stages} == {("exact", None)}
        assert found.load_ms is not None
        assert (found.model.kind, found.model.layers) == ("weights", 4)
        assert rounds[-1] == (9, 9)
        assert [(each.max_concurrency, each.depth, each.completed) for each in found.levels] == [
            (1, 0, 2),
            (2, 0, 4),
            (1, 24, 2),
        ]
        for each in found.levels:
            assert each.failed == 0
            assert set(each.output_lens) == {6}
            assert {interval.metric for interval in each.intervals} >= {
                "prefill_tokens_per_s",
                "mean_ttft_ms",
            }
        assert found.levels[2].cached_tokens == 2 * 24
        assert found.timeline is not None
        assert [stage.node for stage in found.timeline.stages] == ["a", "b"]
        # The first of the tokens comes with the prompt.
        assert found.timeline.steps == 6 - 1
        assert all(stage.compute_ms_p50 > 0 for stage in found.timeline.stages)
        assert [(link.from_node, link.to_node) for link in found.links] == [("a", "b"), ("b", "a")]
        assert all(link.bytes_per_token for link in found.links)
        assert msgspec.json.decode(msgspec.json.encode(found), type=Bench) == found

        # The same again, and what the whole model is computed from is spoilt before it is computed.
        def spoiled() -> None:
            spoil(model)
            spoil(home / ".cache")

        found = asyncio.run(measured(on_gate=spoiled))
        assert found.load_ms is None
        assert not found.gate.valid
        differing = [check.name for check in found.gate.checks if check.state == "differ"]
        assert differing == ["unsplit"]


def test_a_server_that_answers_otherwise_when_it_is_busy_is_told_of_and_not_condemned() -> None:
    lying = FakeTarget(lie=lambda tokens, running: tokens[::-1] if running > 1 else tokens)
    found = asyncio.run(measure_server(lying, "tiny", Load(8, 4, (1, 2), (0,), 2), notes=("said before",)))
    assert found.gate.valid
    assert found.gate.checks[0].state == "differ"
    assert found.notes[0] == "said before"
    assert found.notes[1].startswith("the server's answers are not the same at all levels: with 2 requests")


def test_what_a_reader_has_to_know_is_said() -> None:
    failed = level(4, failed=2, num_prompts=8, errors=("gone", "lost"))
    slow = level(2, 100)
    said = remarks([failed, slow, level(1, decode_tokens_per_s=5.0)])
    assert said[0] == "4 at a time: 2 of 8 requests failed: gone"
    assert said[1].startswith("2 at a time at depth 100: no rate of decoding")
    assert len(said) == 2


@pytest.mark.parametrize("config", [{}, {"vocab_size": None}, {"vocab_size": 1}, {"vocab_size": "many"}])
def test_a_model_that_does_not_say_its_vocabulary_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(BadData, match="vocab_size"):
        vocabulary(config)
    assert vocabulary({"text_config": {"vocab_size": 77}, **config}) == 77
