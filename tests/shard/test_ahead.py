"""An engine process that is started before anybody says what it is for."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec
import psutil
import pytest

from exo_cli.shard.ahead import ahead, alone
from exo_cli.shard.engine import Surroundings, spawn
from exo_cli.shard.engines import Engines
from exo_cli.shard.messages import LeafText, Ready, Start
from exo_cli.trust.authority import issue_leaf
from exo_cli.trust.keyring import load_keyring
from tests.support.tiny_models import Tiny

pytestmark = pytest.mark.process

Newcomer = Callable[[], psutil.Process]


def start(directory: Path) -> Start:
    leaf = issue_leaf(load_keyring().primary)
    text = LeafText(
        name=leaf.name,
        key_pem=leaf.key_pem.decode(),
        certificate_pem=leaf.certificate_pem.decode(),
        authority_pem=leaf.authority_pem.decode(),
    )
    return Start(
        stage_id="s",
        node_id="n",
        node_name="n",
        boot=1,
        model_dir=str(directory),
        first_layer=0,
        last_layer=4,
        layers_in_model=4,
        memory_bytes=1 << 30,
        hosts=["127.0.0.1"],
        ports=(0, 0),
        leaves=[text],
    )


@pytest.fixture
def newcomer() -> Newcomer:
    """The one process that we started since; others of this worker's may be there."""
    before = {each.pid for each in psutil.Process().children()}

    def find() -> psutil.Process:
        [one] = [each for each in psutil.Process().children() if each.pid not in before]
        return one

    return find


async def loaded(engines: Engines, line: Start) -> int:
    """The process that has the stage."""
    async for said in engines.load(line, model="toy", digest="d", keep_alive_s=60.0):
        if isinstance(said, Ready):
            assert said.weights_bytes > 0
    found = engines.find("s")
    assert found is not None
    return found.engine.pid


@pytest.mark.parametrize("numerics", ["exact", "fast"])
def test_the_next_engine_is_that_process(
    tiny: Tiny, newcomer: Newcomer, numerics: Literal["exact", "fast"]
) -> None:
    async def run() -> None:
        async with ahead(Surroundings({"OMP_NUM_THREADS": "1"})) as one:
            engines = Engines(lambda: 1 << 31, one)
            engines.surroundings = lambda: Surroundings({"OMP_NUM_THREADS": "1"})
            waiting = newcomer()
            line = msgspec.structs.replace(start(tiny("llama")), numerics=numerics)
            assert await loaded(engines, line) == waiting.pid
            await engines.close()
            assert not waiting.is_running()

    asyncio.run(run())


def test_one_with_other_surroundings_ends_unused(tiny: Tiny, newcomer: Newcomer) -> None:
    async def run() -> None:
        async with ahead(Surroundings({"OMP_NUM_THREADS": "1"})) as one:
            engines = Engines(lambda: 1 << 31, one)
            engines.surroundings = lambda: Surroundings({"OMP_NUM_THREADS": "2"})
            waiting = newcomer()
            assert await loaded(engines, start(tiny("llama"))) != waiting.pid
            assert not waiting.is_running()
            await engines.close()

    asyncio.run(run())


def test_one_that_nobody_needs_ends_with_its_pipe_or_its_node(newcomer: Newcomer) -> None:
    async def run() -> None:
        process = await spawn(Surroundings(), ahead=True)
        assert process.stdin is not None
        process.stdin.close()
        assert await asyncio.wait_for(process.wait(), 60) == 0
        async with ahead(Surroundings()):
            waiting = newcomer()
        assert not waiting.is_running()

    asyncio.run(run())


def test_alone_it_has_every_core_it_may_use() -> None:
    assert alone(3, frozenset({0})).environment["OMP_NUM_THREADS"] == "3"
    assert alone(3, frozenset({0})).cores == {0}
