"""What is run where nobody says how: real nodes of this machine, from the choice to what they say of it."""

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from exo_cli.cluster import processor
from exo_cli.cluster.remote import running
from exo_cli.cluster.topology_file import TopologyFile
from exo_cli.drive.driver import Driver, Settings, Telling
from exo_cli.drive.load import Progress
from exo_cli.drive.numerics import fell_back, ran
from exo_cli.drive.requests import Ask
from exo_cli.engine.cpu import jit
from exo_cli.schemas.topology import Node, Topology
from exo_cli.trust.keyring import KeyringSource
from tests.support import toy_model
from tests.support.cluster import Shard, shards
from tests.support.tiny_models import Tiny

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(
        "fast" not in processor.numerics_here("cpu", processor.kernels_here()), reason="exact"
    ),
]

PROMPT = (1, 5, 7, 11)


def compiled(home: Path) -> dict[str, int]:
    """Every kernel that is kept, and when it was written."""
    return {str(path): path.stat().st_mtime_ns for path in (home / ".cache/exo/kernels").rglob("*.nb?")}


async def records(nodes: Sequence[Shard], source: KeyringSource) -> list[Node]:
    return list(await asyncio.gather(*(shard.node(source) for shard in nodes)))


def test_cpus_compute_fast_by_themselves_and_a_second_start_compiles_nothing(
    tiny: Tiny, clean_environment: Path
) -> None:
    home, source = clean_environment, KeyringSource()
    # A cache of our own with all that other tests have compiled: what is missing is compiled once.
    shutil.copytree(jit.DIRECTORY, home / ".cache/exo/kernels" / jit.DIRECTORY.name)
    topology = home / "topology.json"

    def settings(model: Path) -> Settings:
        toy_model.write_tokenizer(model)
        return Settings(str(model), home / "weights", home / "nodes", topology)

    async def use(model: Path) -> tuple[Driver, list[Progress]]:
        heard: list[Progress] = []
        async with Driver(settings(model), source, Telling(progress=heard.append)) as driver:
            chain = await driver.chain(100)
            for _ in range(2):
                assert len([each async for each in chain.generate(Ask(PROMPT, 6)).tokens()]) == 6
        return driver, heard

    async def main() -> None:
        with shards(home, "a", "b") as nodes:
            found = await records(nodes, source)
            assert {each.numerics for each in found} == {("exact", "fast")}
            assert {each.kernels for each in found} == {processor.kernels_here()}
            TopologyFile(topology).update(lambda old: Topology(nodes=tuple(found)))
            driver, _ = await use(tiny("llama", bits=4))
            assert (ran(driver.stages), fell_back(driver.stages)) == ("fast", None)
            told = await running(found, source)
            assert {(each.numerics, each.numerics_reason) for each in told.stages} == {("fast", None)}
            before = compiled(home)
            assert before
            # Another model of the same kernels, in engines of its own.
            longer = tiny("llama", bits=4, overrides=(("max_position_embeddings", 512),))
            driver, heard = await use(longer)
            assert all(stage.fresh for stage in driver.stages)
            assert compiled(home) == before
            assert "pack" in {each.doing for each in heard}
            assert "compile kernels" not in {each.doing for each in heard}
            # One that the kernels do not know says so, in all places.
            driver, _ = await use(tiny("gemma3_text"))
            assert ran(driver.stages) == "exact"
            assert "gemma3_text" in (fell_back(driver.stages) or "")
            told = await running(found, source)
            assert any("gemma3_text" in (each.numerics_reason or "") for each in told.stages)
            held = [stage for each in await records(nodes, source) for stage in each.stages]
            assert {stage.numerics for stage in held} == {"fast", "exact"}

    asyncio.run(main())
