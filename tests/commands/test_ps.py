"""`exo ps` and `exo unload` against real nodes with real engines."""

import asyncio
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from exo_cli.commands.ps import table
from exo_cli.schemas import registry
from exo_cli.schemas.running import NodeMemory, Running, RunningStage
from exo_cli.trust.keyring import KeyringSource
from tests.support import cluster, tiny_models
from tests.support.cli import EXO
from tests.support.cluster import loaded, shards
from tests.support.jsonschema import problems


def exo_at(home: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*EXO, *arguments],
        env={**os.environ, "HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.process
def test_what_runs_is_shown_and_why_an_engine_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mx.disable_compile()
    model = tiny_models.build("llama", tmp_path / "llama")
    home = tmp_path / "node"
    with shards(home, "a", "b", arguments=("--keep-alive", "90s")) as (a, _):
        monkeypatch.setenv("HOME", str(home))
        source = KeyringSource()

        def ps() -> dict[str, Any]:
            done = exo_at(home, "ps", "--json")
            assert done.returncode == 0, done.stderr
            found: dict[str, Any] = json.loads(done.stdout)
            assert problems(found, registry.json_schema("ps")) == []
            return found

        async def main() -> None:
            async with loaded(source, model, (0, 4), [a]) as driven:
                tokens = driven.generation([5, 6, 7], 50_000).tokens()
                for _ in range(5):
                    await anext(tokens)
                await cluster.settled(source, [a], lambda stage: stage.requests == 1, seconds=10)
                found = await asyncio.to_thread(ps)
                (stage,) = found["stages"]
                assert (stage["node"], stage["model"], stage["layers"]) == ("a", "llama", [0, 4])
                assert (stage["state"], stage["requests"], stage["failure"]) == ("ready", 1, None)
                assert stage["tokens_per_s"] > 0
                assert 0 < stage["kv_used_bytes"] <= stage["kv_budget_bytes"]
                # The load did not say for how long, so the node's own rule holds.
                assert stage["keep_alive_s"] == 90
                memory = {node["node"]: node for node in found["nodes"]}
                assert memory["a"]["used_bytes"] == cluster.MEMORY_BYTES
                assert memory["b"]["used_bytes"] == 0 < memory["b"]["free_bytes"]
                await tokens.aclose()

                (engine,) = a.engines
                engine.kill()
                await cluster.settled(source, [a], lambda stage: stage.state == "failed", seconds=10)
                (stage,) = (await asyncio.to_thread(ps))["stages"]
                why = "the engine of layers 0 to 3 was ended by SIGKILL"
                assert (stage["state"], stage["failure"]) == ("failed", why)
                done = await asyncio.to_thread(exo_at, home, "ps")
                assert f"warning: a: {why}" in done.stderr
                assert any(
                    line.split("\t")[:4] == ["a", "llama", "0-3", "failed"]
                    for line in done.stdout.splitlines()
                )
                done = await asyncio.to_thread(exo_at, home, "unload")
                assert done.returncode == 0, done.stderr
                assert (await asyncio.to_thread(ps))["stages"] == []

        asyncio.run(main())


def stage(node: str, **other: object) -> RunningStage:
    fields: dict[str, object] = {
        "node": node,
        "node_id": node,
        "stage_id": "s",
        "model": "toy",
        "digest": "d",
        "layers": (0, 4),
        "state": "ready",
        "requests": 2,
        "tokens_per_s": 12.34,
        "kv_used_bytes": 1 << 20,
        "kv_budget_bytes": 3 << 20,
        "weights_bytes": 5 << 20,
        "step_ms_p50": 1.0,
        "step_ms_p99": 2.0,
        "idle_s": 0.0,
        "keep_alive_s": None,
    }
    return RunningStage(**(fields | other))  # type: ignore[arg-type]


def test_a_row_a_stage_and_one_for_every_idle_node() -> None:
    nodes = tuple(
        NodeMemory(node=name, node_id=name, used_bytes=0, free_bytes=7 << 20, error=error)
        for name, error in (("a", None), ("b", None), ("gone", "it is silent"))
    )
    header, rows = table(Running(nodes=nodes, stages=(stage("b"),)))
    assert [dict(zip(header, row, strict=True)) for row in rows] == [
        {
            **dict.fromkeys(header, "-"),
            "node": "a",
            "state": "idle",
            "requests": "0",
            "node free": "7 MiB",
        },
        {
            "node": "b",
            "model": "toy",
            "layers": "0-3",
            "state": "ready",
            "requests": "2",
            "tokens/s": "12.3",
            "kv used": "1 MiB",
            "kv free": "2 MiB",
            "weights": "5 MiB",
            "idle": "0 s",
            "node free": "7 MiB",
        },
    ]
