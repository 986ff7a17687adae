"""A node that is told to end while requests run: real processes, and what their drivers get."""

import asyncio
import json
import signal
from pathlib import Path

import mlx.core as mx
import psutil
import pytest

from exo_cli import config
from exo_cli.errors import ExoError, TryAgain
from exo_cli.trust.keyring import KeyringSource
from tests.support import cluster, tiny_models
from tests.support.cluster import Driven, Shard, loaded, shards
from tests.support.processes import wait_until

pytestmark = pytest.mark.process

PROMPT = [5, 6, 7]
SOME = 600
"""Tokens: far more than there are when the signal comes, and far less than a node waits for."""
MANY = 50_000
BOUND_S = 90.0


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    mx.disable_compile()
    return tiny_models.build("llama", tmp_path / "llama")


async def collected(driven: Driven, n: int, begun: asyncio.Event) -> "list[int] | ExoError":
    """An answer's tokens, or why there are no more."""
    found = []
    try:
        async for token in driven.generation(PROMPT, n).tokens():
            found.append(token.id)
            if len(found) == 5:
                begun.set()
    except ExoError as error:
        return error
    return found


async def refused(driven: Driven) -> ExoError | None:
    try:
        await driven.tokens(PROMPT, 3)
    except ExoError as error:
        return error
    return None


def states() -> dict[str, str]:
    return {each["name"]: each["state"] for each in json.loads(config.topology_path().read_text())["nodes"]}


def gone(process: psutil.Process) -> bool:
    """Ended, whether or not anybody has looked after it."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def leaving(driven: Driven, shard: Shard) -> ExoError:
    """Signal it, and try until it says no; it takes a moment until the engine has heard of it."""
    shard.process.popen.send_signal(signal.SIGTERM)
    async with asyncio.timeout(BOUND_S):
        while (said := await refused(driven)) is None:
            pass
    return said


@pytest.mark.parametrize("which", [0, 1])
def test_a_request_that_runs_gets_all_its_tokens_and_new_ones_are_refused(
    which: int, tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "node"
    with shards(home, "a", "b") as nodes:
        monkeypatch.setenv("HOME", str(home))
        source, leaver = KeyringSource(), nodes[which]

        async def main() -> None:
            async with loaded(source, llama, (0, 2, 4), nodes) as driven:
                wanted = await driven.tokens(PROMPT, SOME)
                engines = leaver.engines
                begun = asyncio.Event()
                running = asyncio.create_task(collected(driven, SOME, begun))
                await begun.wait()
                said = await leaving(driven, leaver)
                assert isinstance(said, TryAgain)
                assert f"{'ab'[which]}: this node is leaving and takes no new requests" in said.message
                assert await running == wanted
                assert await asyncio.to_thread(leaver.process.popen.wait, BOUND_S) == 0
                assert all(map(gone, engines))
            assert '"type":"stopped"' in leaver.process.out()
            assert "cut off" not in leaver.process.err()

        asyncio.run(main())
        assert nodes[1 - which].process.popen.poll() is None
        wait_until(lambda: "ab"[which] not in states())


def test_a_second_signal_ends_it_under_its_requests(
    tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "node"
    with shards(home, "a", "b") as nodes:
        monkeypatch.setenv("HOME", str(home))
        source, leaver = KeyringSource(), nodes[1]

        async def main() -> None:
            async with loaded(source, llama, (0, 2, 4), nodes) as driven:
                begun = asyncio.Event()
                running = asyncio.create_task(collected(driven, MANY, begun))
                await begun.wait()
                engines: list[psutil.Process] = leaver.engines
                await leaving(driven, leaver)
                # Meanwhile it takes no load either, and the others know.
                with pytest.raises(TryAgain, match="is leaving and takes no new work"):
                    async with loaded(source, llama, (0, 4), [leaver]):
                        pass
                await asyncio.to_thread(wait_until, lambda: states()["b"] == "draining")
                assert leaver.process.popen.poll() is None
                leaver.process.popen.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(leaver.process.popen.wait, BOUND_S) == 143
                error = await running
                assert isinstance(error, ExoError)
                await asyncio.to_thread(wait_until, lambda: all(map(gone, engines)))
                await cluster.settled(source, nodes[:1], cluster.is_idle, seconds=10)

        asyncio.run(main())


def test_ctrl_c_does_not_wait(tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "node"
    with shards(home, "a") as (node,):
        monkeypatch.setenv("HOME", str(home))
        source = KeyringSource()

        async def main() -> None:
            async with loaded(source, llama, (0, 4), [node]) as driven:
                begun = asyncio.Event()
                running = asyncio.create_task(collected(driven, MANY, begun))
                await begun.wait()
                node.process.popen.send_signal(signal.SIGINT)
                assert await asyncio.to_thread(node.process.popen.wait, BOUND_S) == 130
                assert isinstance(await running, ExoError)

        asyncio.run(main())
