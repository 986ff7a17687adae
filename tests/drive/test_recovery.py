"""Answers that lose a part of their chain in the middle: the same tokens as without, through real nodes."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import mlx.core as mx
import pytest

from exo_cli.cluster.topology_file import TopologyFile
from exo_cli.drive import choose as choose_module
from exo_cli.drive import recover as recover_module
from exo_cli.drive.chain import Generation
from exo_cli.drive.driver import Driver, Settings, Telling
from exo_cli.drive.requests import Ask
from exo_cli.errors import Unavailable
from exo_cli.schemas.plan import ModelRef, Plan
from exo_cli.schemas.sampling import Sampling
from exo_cli.schemas.topology import Topology
from exo_cli.trust.keyring import KeyringSource
from tests.support import cluster, tiny_models, toy_model
from tests.support.cluster import Shard, shards

pytestmark = pytest.mark.process

PROMPT = (5, 6, 7, 8, 9)
NEW = 1000
AFTER = 10
CONTEXT = 500_000
"""So much KV that a node of so little memory has room for two layers and not for three."""
MEMORY = "445MiB"
GREEDY = Sampling()
RANDOM = Sampling(temperature=1.0, seed=5)
PATIENCE_S = 90


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    mx.disable_compile()
    overrides = {"vocab_size": 1002, "max_position_embeddings": 1 << 20}.items()
    path = tiny_models.build("llama", tmp_path_factory.mktemp("models") / "toy", overrides=overrides)
    toy_model.write_tokenizer(path)
    return path


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loaded machine may need more time; who has answered is not waited for."""
    for module, name in (
        (choose_module, "CONFIRM_S"),
        (choose_module, "KNOWN_S"),
        (recover_module, "ANSWER_S"),
    ):
        monkeypatch.setattr(module, name, 10.0)
    monkeypatch.setattr(recover_module, "BLAME_S", 20.0)
    monkeypatch.setattr(choose_module, "PROBE_S", 2.0)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[Shard]]]:
    """Three nodes whose engines are lost, and that live on."""
    home = tmp_path_factory.mktemp("three")
    with shards(home, "a", "b", "c", arguments=("--memory", MEMORY)) as running:
        yield home, running


@asynccontextmanager
async def driving(
    home: Path, model: Path, running: list[Shard], said: list[str], *, planned: bool = False
) -> AsyncIterator[Driver]:
    """A driver that knows these nodes, and what it says about recovery."""
    source = KeyringSource()
    records = [await shard.node(source) for shard in running]
    topology = home / "topology-of-the-driver.json"
    TopologyFile(topology).update(lambda old: Topology(nodes=tuple(records)))
    plan: Plan | None = None
    settings = Settings(str(model), home / "weights", home / "nodes", topology, numerics="exact")
    if planned:
        async with Driver(settings, source) as driver:
            reference = ModelRef(name="toy", revision=None, digest=driver.directory.digest)
        plan = cluster.plan(reference, (0, 2, 4), records[:2], memory_bytes=400 << 20)
        settings = Settings(str(model), home / "weights", home / "nodes", topology, plan, numerics="exact")
    async with Driver(settings, source, Telling(recovered=said.append)) as driver:
        yield driver


async def answer(
    driver: Driver,
    sampling: Sampling,
    act: Callable[[], None] = lambda: None,
    *,
    needed: int = CONTEXT,
    n: int = NEW,
) -> tuple[list[int], Generation]:
    """An answer's tokens; `act` is called in the middle of it."""
    chain = await driver.chain(needed)
    generation = chain.generate(Ask(PROMPT, n, sampling), recover=driver.recovery(chain, needed))
    seen: list[int] = []
    async with asyncio.timeout(PATIENCE_S):
        async for token in generation.tokens():
            seen.append(token.id)
            if len(seen) == AFTER:
                act()
    return seen, generation


def engine_of(driver: Driver, running: list[Shard], at: int) -> tuple[Shard, Callable[[int], None]]:
    """The node of the chain's stage, and how its engine is sent a signal."""
    id_ = driver.stages[at].node.name
    shard = next(shard for shard in running if f'"name":"{id_}"' in shard.process.out())
    (engine,) = shard.engines
    return shard, engine.send_signal


def test_engines_that_end_or_freeze_in_the_middle(
    nodes: tuple[Path, list[Shard]], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, running = nodes
    monkeypatch.setenv("HOME", str(home))
    said: list[str] = []

    async def main() -> None:
        async with driving(home, model, running, said) as driver:
            wanted = {sampling: (await answer(driver, sampling))[0] for sampling in (GREEDY, RANDOM)}
            assert [len(tokens) for tokens in wanted.values()] == [NEW, NEW]
            assert wanted[GREEDY] != wanted[RANDOM]
        assert said == []
        for at, number, sampling in (
            (1, signal.SIGKILL, GREEDY),
            (0, signal.SIGKILL, RANDOM),
            (1, signal.SIGSTOP, RANDOM),
            (0, signal.SIGSTOP, GREEDY),
        ):
            # Each by a driver of its own, which finds what the one before it left.
            said.clear()
            async with driving(home, model, running, said) as driver:
                await driver.chain(CONTEXT)
                victim, send = engine_of(driver, running, at)
                name = driver.stages[at].node.name
                before = len(driver.stages)
                seen, generation = await answer(driver, sampling, partial(send, number))
                assert seen == wanted[sampling]
                assert generation.request.epoch == 2
                after = [stage.node.name for stage in driver.stages]
                assert name not in after
                assert said == [f"the engine on {name} ended; going on on {' and '.join(after)}"]
                assert before >= len(after) == 2
                assert victim.process.popen.poll() is None

    asyncio.run(main())


def test_a_planned_chain_goes_on_where_the_plan_says_or_not_at_all(
    nodes: tuple[Path, list[Shard]], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, running = nodes
    monkeypatch.setenv("HOME", str(home))
    said: list[str] = []

    async def main() -> None:
        async with driving(home, model, running, said, planned=True) as driver:
            wanted, _ = await answer(driver, GREEDY, needed=4096)
            _, send = engine_of(driver, running, 1)
            seen, _ = await answer(driver, GREEDY, lambda: send(signal.SIGKILL), needed=4096)
            assert seen == wanted
            assert said == ["the engine on b ended; going on on a and b"]

    asyncio.run(main())


def test_nodes_that_go_until_too_few_are_left(clean_environment: Path, model: Path) -> None:
    said: list[str] = []

    async def main(running: list[Shard]) -> None:
        async with driving(clean_environment, model, running, said) as driver:
            wanted, _ = await answer(driver, GREEDY)
            # Two have room for it, and the third would only make it slower.
            assert len(driver.stages) == 2
            by_name = dict(zip("abc", running, strict=True))
            first = driver.stages[-1].node.name
            seen, _ = await answer(driver, GREEDY, by_name[first].process.popen.kill)
            assert seen == wanted
            after = [stage.node.name for stage in driver.stages]
            assert said == [f"{first} stopped answering; going on on {' and '.join(after)}"]
            # The next question needs no recovery; its chain loses one more, and what is left is too little.
            with pytest.raises(Unavailable) as caught:
                await answer(driver, GREEDY, by_name[after[0]].process.popen.kill, n=50 * NEW)
            message = caught.value.message
            assert message.startswith(
                f"{after[0]} stopped answering, and no other nodes can go on: toy needs"
            )
            assert f"{after[1]} has" in message
            assert len(said) == 1

    with ExitStack() as stack:
        running = stack.enter_context(
            shards(clean_environment, "a", "b", "c", arguments=("--memory", MEMORY))
        )
        asyncio.run(main(running))
