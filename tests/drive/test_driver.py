"""A model made ready from nothing but its directory; the node is a process of its own."""

import asyncio
from pathlib import Path

import pytest

from exo_cli.drive.answer import Answer
from exo_cli.drive.choose import Choice
from exo_cli.drive.driver import Driver, Settings, Telling
from exo_cli.drive.load import Progress
from exo_cli.drive.requests import Ask
from exo_cli.errors import ExoError, NotFound, Unavailable
from exo_cli.trust.keyring import KeyringSource
from tests.support import toy_model
from tests.support.chain import expected
from tests.support.fake_stage import node_process

pytestmark = pytest.mark.process


def settings(home: Path, model: str) -> Settings:
    return Settings(
        model=model,
        weights_dir=home / "weights",
        nodes_dir=home / "nodes",
        topology=home / "topology.json",
        numerics="exact",
    )


async def said(driver: Driver, text: str, n: int) -> str:
    prompt = driver.language.plain(text)
    chain = await driver.chain(len(prompt.ids) + n)
    answer = Answer(chain, driver.language, prompt, Ask(prompt.ids, n))
    async for _ in answer.pieces():
        pass
    return answer.text


def test_a_model_answers_through_a_node_that_is_heard_and_again_after_that_node_is_gone(
    clean_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exo_cli.drive.choose.PROBE_S", 1.0)
    model = toy_model.write(clean_environment / "toy")
    monkeypatch.chdir(model)
    choices: list[Choice] = []
    progress: list[Progress] = []
    source = KeyringSource()

    async def main() -> None:
        telling = Telling(chosen=choices.append, progress=progress.append)
        async with Driver(settings(clean_environment, "."), source, telling) as driver:
            with node_process(clean_environment, "one", "--voice") as one:
                assert driver.name == "toy"
                assert await said(driver, "t5 t7", 6) == toy_model.text(expected(1, (5, 7), 6))
                # The same chain serves the next question; more context needs another load.
                assert await said(driver, "t5", 6) == toy_model.text(expected(1, (5,), 6))
                assert len(choices) == 1
                assert driver.context == 8192
                await driver.chain(9000)
                assert driver.context == 16384
                one.child.kill()
                with pytest.raises(Unavailable):
                    await said(driver, "t5", 5)
            with node_process(clean_environment, "two", "--voice"):
                assert await said(driver, "t5 t7", 6) == toy_model.text(expected(1, (5, 7), 6))

    asyncio.run(main())
    assert [each.nodes[each.plan.replicas[0].stages[0].ranks[0].node].name for each in choices][-1] == "two"
    assert {each.doing for each in progress} == {"read"}


def test_a_model_that_is_nowhere(clean_environment: Path) -> None:
    async def main() -> ExoError | None:
        try:
            async with Driver(settings(clean_environment, "nothing-like-it"), KeyringSource()):
                return None
        except NotFound as error:
            return error

    error = asyncio.run(main())
    assert error is not None
    assert "nothing-like-it" in error.message
