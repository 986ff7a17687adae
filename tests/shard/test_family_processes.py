"""Twelve families through chains of real processes: mlx-lm's unsplit tokens, whatever is asked in one load.

Each load is a chain over the same nodes, with every stage in an engine process of its own.
"""

import asyncio
from collections.abc import Callable, Iterator
from functools import cache
from itertools import product
from pathlib import Path

import mlx.core as mx
import pytest

from exo_cli.engine.core import MAX_CHUNK
from exo_cli.engine.loading import look
from exo_cli.models.directory import ModelDirectory
from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire import exo_pb2 as pb
from tests.support import cluster, parity, tiny_models
from tests.support.cluster import Driven, Shard, loaded, shards
from tests.support.tiny_families import TWELVE

pytestmark = pytest.mark.process

FORMATS = {"float32": None, "4bit": 4}
LONG = [(7 * i + 3) % 90 + 1 for i in range(MAX_CHUNK + 52)]
LENGTHS = (400, 1100, len(LONG))
"""A chunk is what an engine takes for a third of a second's work: the first of these that is longer does."""
LONG_NEW = 3
PATIENCE_S = 15.0


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[Shard]]]:
    """Three nodes, and their home."""
    home = tmp_path_factory.mktemp("families")
    with shards(home, "a", "b", "c") as running:
        yield home, running


@pytest.fixture
def to_the_end() -> Iterator[Callable[[], None]]:
    """Called by a case when it is through; a case that stops before, by a skip for example, is an error."""
    ends: list[None] = []
    yield lambda: ends.append(None)
    assert ends, "the case did not run to its end"


async def ask_for_everything(driven: Driven, expected: parity.Expected) -> None:
    """One request, two and four, and a chat of three turns."""
    for n in (1, 2, 4):
        asked = (driven.tokens(prompt, parity.NEW) for prompt in parity.ASKED[:n])
        assert await asyncio.gather(*asked) == expected.asked[:n]
    known = 0
    for turn in expected.turns:
        generation = driven.generation(turn.prompt, parity.NEW, keep_prefix=True)
        assert [token.id async for token in generation.tokens()] == turn.answer
        assert generation.request.prefix == known
        known = turn.known
        # Its second token goes round the ring behind the end of the turn: every stage has kept that then.
        await driven.tokens([1], 2)


async def ask_in_chunks(driven: Driven, nodes: list[Shard], answer: Callable[[int], list[int]]) -> None:
    """A prompt that is too long for one step; nothing was asked before."""
    source, steps = KeyringSource(), 0
    for length in LENGTHS:
        assert await driven.tokens(LONG[:length], LONG_NEW) == answer(length)

        def through(stage: pb.StageStats, least: int = steps + LONG_NEW) -> bool:
            return cluster.is_idle(stage) and stage.steps >= least

        await cluster.settled(source, nodes[:1], through, seconds=PATIENCE_S)
        (stage,) = await nodes[0].stages(source)
        if stage.steps - steps > LONG_NEW:
            return
        steps = stage.steps
    raise AssertionError("every prompt went in one piece")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("family", TWELVE.values())
def test_two_and_three_processes_give_the_unsplit_tokens(
    family: str,
    form: str,
    three: tuple[Path, list[Shard]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    to_the_end: Callable[[], None],
) -> None:
    home, nodes = three
    monkeypatch.setenv("HOME", str(home))
    mx.disable_compile()
    directory = tiny_models.build(family, tmp_path / "model", bits=FORMATS[form])
    anatomy = look(ModelDirectory.open(directory)).anatomy
    n_layers, allowed = anatomy.n_layers, anatomy.allowed
    model = tiny_models.reference(directory)
    expected = parity.expected(model)
    source = KeyringSource()

    @cache
    def answer(length: int) -> list[int]:
        return parity.greedy(model, LONG[:length], LONG_NEW)

    async def main() -> None:
        # Most layers at the first stage, by which the chunks are sized.
        for cuts in (allowed[-1:], allowed[-2:]):
            used = nodes[: len(cuts) + 1]
            async with loaded(source, directory, (0, *cuts, n_layers), used) as driven:
                assert all(stage.fresh for stage in driven.stages)
                assert [len(node.engines) for node in used] == [1] * len(used)
                await ask_in_chunks(driven, used, answer)
                await ask_for_everything(driven, expected)
            assert not [engine for node in nodes for engine in node.engines]

    asyncio.run(main())
    to_the_end()


def test_twelve_families_run(request: pytest.FixtureRequest) -> None:
    """In both formats; what is left out of a run, or marked so that it may be skipped, does not count."""
    run: set[tuple[object, ...]] = set()
    for item in request.session.items:
        if isinstance(item, pytest.Function) and item.module is request.module and item is not request.node:
            assert not {mark.name for mark in item.iter_markers()} & {"skip", "skipif", "xfail", "nightly"}
            run.add((item.callspec.params["family"], item.callspec.params["form"]))
    assert len(set(TWELVE.values())) == 12
    assert run == set(product(TWELVE.values(), FORMATS))
