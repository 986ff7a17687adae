"""Random weights through real nodes: nothing is downloaded, nothing sent, and the halves fit together."""

import asyncio
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from exo_cli import config
from exo_cli.drive.chain import Chain
from exo_cli.drive.choose import Choice
from exo_cli.drive.driver import Driver, Settings, Telling
from exo_cli.drive.load import Progress, addresses, load, unload
from exo_cli.drive.requests import Ask
from exo_cli.errors import BadData
from exo_cli.models.random_model import RandomModel
from exo_cli.schemas.plan import ModelRef, Plan
from exo_cli.trust.keyring import KeyringSource
from tests.support import parity
from tests.support.cluster import plan, shards
from tests.support.random_models import LAYERS, small

pytestmark = pytest.mark.process

STEPS = 6


def expected(made: RandomModel, directory: Path) -> list[int]:
    """mlx-lm's own answer over the written directory."""
    mx.disable_compile()
    made.write(directory)
    return parity.unsplit(directory)[0][:STEPS]


def settings(made: RandomModel, **changes: Any) -> Settings:
    return Settings(
        model=made,
        weights_dir=config.cache_dir() / "weights",
        nodes_dir=config.nodes_dir(),
        topology=config.topology_path(),
        numerics="exact",
        **changes,
    )


async def said(chain: Chain) -> list[int]:
    return [token.id async for token in chain.generate(Ask(tuple(parity.PROMPT), STEPS)).tokens()]


def test_two_nodes_make_their_halves_of_one_model(clean_environment: Path, tmp_path: Path) -> None:
    made = small("qwen3", tmp_path, torch_dtype="float32")
    wanted = expected(made, tmp_path / "written")
    model = ModelRef(name=made.name, revision=None, digest=made.digest)
    source = KeyringSource()
    heard: list[Progress] = []

    async def main() -> None:
        with shards(clean_environment, "one", "two") as nodes:
            placed = [await node.node(source) for node in nodes]
            by_id = {node.id: node for node in placed}
            split: Plan = plan(model, (0, 1, LAYERS), placed)
            stages = await load(split, by_id, LAYERS, source, random=made, on_progress=heard.append)
            async with Chain(addresses(stages, ()), source) as chain:
                assert await said(chain) == wanted
            again = await load(split, by_id, LAYERS, source, random=made)
            assert not any(stage.fresh for stage in again)
            # Under the name of other weights nobody gets them.
            real = plan(ModelRef(name="real", revision=None, digest="0" * 64), (0, LAYERS), placed[:1])
            with pytest.raises(BadData, match="does not name them by their digest"):
                await load(real, by_id, LAYERS, source, random=made)
            await unload(again, source)
            assert [stage for node in nodes for stage in await node.stages(source)] == []

    asyncio.run(main())
    # Neither node kept or fetched a file of it.
    assert not list(clean_environment.rglob("*.safetensors"))
    assert {(each.node, each.doing) for each in heard} >= {("one", "make"), ("two", "make")}
    assert "fetch" not in {each.doing for each in heard}


def test_a_driver_takes_random_weights_in_place_of_a_model(clean_environment: Path, tmp_path: Path) -> None:
    made = small("llama", tmp_path, torch_dtype="float32")
    wanted = expected(made, tmp_path / "written")
    choices: list[Choice] = []

    async def main() -> None:
        telling = Telling(chosen=choices.append)
        async with Driver(settings(made, alone=True), KeyringSource(), telling) as driver:
            assert driver.name == made.name
            assert driver.size.layers == LAYERS
            assert driver.directory.digest == made.digest
            assert await said(await driver.chain(100)) == wanted
            assert driver.stages[0].weights_bytes == made.directory().weights_bytes

    asyncio.run(main())
    assert [choice.plan.model.digest for choice in choices] == [made.digest]


def test_a_plan_that_was_made_for_the_real_model_says_where_the_layers_go(
    clean_environment: Path, tmp_path: Path
) -> None:
    made = small("llama", tmp_path, torch_dtype="float32")
    wanted = expected(made, tmp_path / "written")
    source = KeyringSource()

    async def main() -> None:
        with shards(clean_environment, "one", "two") as nodes:
            placed = [await node.node(source) for node in nodes]
            real = ModelRef(name="real", revision=None, digest="0" * 64)
            split = plan(real, (0, 3, LAYERS), placed, context=64)
            peers = tuple(("127.0.0.1", node.port) for node in nodes)
            async with Driver(settings(made, plan=split, peers=peers), source) as driver:
                assert await said(await driver.chain(20)) == wanted
                assert [stage.layers for stage in driver.stages] == [(0, 3), (3, LAYERS)]

    asyncio.run(main())
