"""An engine process that is started before anybody says what it is for."""

import asyncio
from pathlib import Path

import psutil
import pytest

from exo_cli.shard.engine import Surroundings, spawn
from exo_cli.shard.engines import Engines
from exo_cli.shard.messages import LeafText, Ready, Start
from exo_cli.trust.authority import issue_leaf
from exo_cli.trust.keyring import load_keyring
from tests.support.tiny_models import Tiny

pytestmark = pytest.mark.process


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


async def loaded(engines: Engines, line: Start) -> int:
    """The process that has the stage."""
    async for said in engines.load(line, model="toy", digest="d", keep_alive_s=60.0):
        if isinstance(said, Ready):
            assert said.weights_bytes > 0
    found = engines.find("s")
    assert found is not None
    return found.engine.pid


def test_the_next_engine_is_that_process(tiny: Tiny) -> None:
    async def run() -> None:
        engines = Engines(lambda: 1 << 31)
        engines.surroundings = lambda: Surroundings({"OMP_NUM_THREADS": "1"})
        await engines.prepare(Surroundings({"OMP_NUM_THREADS": "1"}))
        waiting = {each.pid for each in psutil.Process().children()}
        assert await loaded(engines, start(tiny("llama"))) in waiting
        await engines.close()
        assert not any(psutil.pid_exists(pid) for pid in waiting)

    asyncio.run(run())


def test_one_with_other_surroundings_ends_unused(tiny: Tiny) -> None:
    async def run() -> None:
        engines = Engines(lambda: 1 << 31)
        engines.surroundings = lambda: Surroundings({"OMP_NUM_THREADS": "2"})
        await engines.prepare(Surroundings({"OMP_NUM_THREADS": "1"}))
        [waiting] = psutil.Process().children()
        assert await loaded(engines, start(tiny("llama"))) != waiting.pid
        assert not waiting.is_running()
        await engines.close()

    asyncio.run(run())


def test_one_that_nobody_needs_ends_with_its_pipe_or_its_node() -> None:
    async def run() -> None:
        process = await spawn(Surroundings(), ahead=True)
        assert process.stdin is not None
        process.stdin.close()
        assert await asyncio.wait_for(process.wait(), 60) == 0
        engines = Engines(lambda: 1 << 31)
        await engines.prepare(Surroundings())
        [waiting] = psutil.Process().children()
        await engines.close()
        assert not waiting.is_running()

    asyncio.run(run())
