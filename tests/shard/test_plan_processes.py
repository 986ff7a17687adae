"""Nodes started with a plan: what they hold when their ready file appears, and what they do when it goes."""

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import msgspec
import psutil
import pytest

from exo_cli import config
from exo_cli.cluster.remote import FOREVER_MS
from exo_cli.drive import choose
from exo_cli.drive.driver import Driver, Settings
from exo_cli.drive.requests import Ask
from exo_cli.fetch.stores import Stores
from exo_cli.models.directory import ModelDirectory
from exo_cli.schemas.plan import ModelRef
from exo_cli.shard.cores import THREAD_VARIABLES, usable_cores
from exo_cli.trust.keyring import KeyringSource
from tests.support import cluster, tiny_models, toy_model
from tests.support.cli import EXO
from tests.support.cluster import Shard
from tests.support.processes import Running, wait_until
from tests.support.records import node as record

pytestmark = pytest.mark.process

PROMPT, NEW = [1, 5, 7, 11], 6
QUESTION = "t5 t7 t11"
BOUND_S = 120.0


@dataclass
class Started:
    """Both nodes, up to date with the plan."""

    home: Path
    model: Path
    plan: Path
    shards: list[Shard]

    def engines(self) -> list[int]:
        return [engine.pid for shard in self.shards for engine in shard.engines]


def write_model(path: Path) -> Path:
    """One whose weights can be computed with and whose tokens can be read."""
    mx.disable_compile()
    tiny_models.build("llama", path)
    toy_model.write_tokenizer(path, template=True)
    return path


def write_plan(path: Path, model: Path, names: tuple[str, str]) -> Path:
    digest = ModelDirectory.open(model).digest
    reference = ModelRef(name=model.name, revision=None, digest=digest)
    plan = cluster.plan(reference, (0, 2, 4), [record(name) for name in names])
    path.write_bytes(msgspec.json.encode(plan))
    return path


@contextmanager
def nodes(
    home: Path, plan: Path, settings: dict[str, tuple[list[str], dict[str, str]]]
) -> Iterator[list[Running]]:
    """Started side by side with the plan, as `make -j` would."""
    kept = {name: os.environ[name] for name in cluster._KEPT if name in os.environ}
    running: list[Running] = []
    try:
        for name, (arguments, environment) in settings.items():
            out, err = home / f"{name}.out", home / f"{name}.err"
            with out.open("wb") as stdout, err.open("wb") as stderr:
                words = [
                    "--json",
                    "--name",
                    name,
                    "--plan",
                    str(plan),
                    "--ready-file",
                    str(home / f"{name}.ready"),
                ]
                popen = subprocess.Popen(
                    [*EXO, "serve-shard", *words, *arguments],
                    env={**kept, "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1", **environment},
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                )
            running.append(Running(popen, out, err))
        yield running
    finally:
        for process in running:
            if process.popen.poll() is None:
                process.popen.kill()
            process.popen.wait(10)


def is_up(ready_file: Path, process: Running) -> bool:
    """Ready, or at an end."""
    return ready_file.exists() or process.popen.poll() is not None


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """a has the weights and b gets them from a; neither was told of the other."""
    home = tmp_path_factory.mktemp("planned")
    model = write_model(tmp_path_factory.mktemp("models") / "toy")
    plan = write_plan(home / "plan.json", model, ("a", "b"))
    Stores(home / ".cache" / "exo" / "weights").open(model)
    core = min(usable_cores())
    settings = {
        "b": (["--threads", "3", "--cores", str(core)], {"XDG_CACHE_HOME": str(home / "empty")}),
        "a": ([], {"OMP_NUM_THREADS": "7"}),
    }
    with nodes(home, plan, settings) as running:
        for process, name in zip(running, settings, strict=True):
            wait_until(partial(is_up, home / f"{name}.ready", process), process.told, seconds=BOUND_S)
            assert (home / f"{name}.ready").exists(), process.told()
        b, a = (Shard(process, cluster._port(process)) for process in running)
        yield Started(home, model, plan, [a, b])


@pytest.fixture
def at_home(started: Started, monkeypatch: pytest.MonkeyPatch) -> Started:
    monkeypatch.setenv("HOME", str(started.home))
    return started


def run(started: Started, *arguments: str) -> "subprocess.CompletedProcess[str]":
    words = ["run", str(started.model), QUESTION, "--max-tokens", str(NEW), "--temperature", "0"]
    return subprocess.run(
        [*EXO, *words, *arguments],
        env={**os.environ, "HOME": str(started.home)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
    )


def died(shard: Shard, times: int) -> bool:
    said = "layers 2 to 3 was ended by SIGKILL; loading it again in "
    return shard.process.err().count(said) >= times


def unsplit(model: Path) -> list[int]:
    reference: Any = tiny_models.reference(model)
    ids = list(PROMPT)
    for _ in range(NEW):
        ids.append(cast(int, mx.argmax(reference(mx.array([ids]))[:, -1], axis=-1).item()))
    return ids[len(PROMPT) :]


def test_when_the_ready_files_are_there_a_run_loads_nothing(at_home: Started) -> None:
    before = at_home.engines()
    assert len(before) == 2
    done = run(at_home, "--plan", str(at_home.plan))
    assert (done.returncode, done.stdout) == (0, toy_model.text(unsplit(at_home.model))), done.stderr
    assert at_home.engines() == before
    # b had none of it: what it holds came from a.
    assert not list((at_home.home / "empty" / "huggingface").glob("*"))
    assert list((at_home.home / "empty" / "exo" / "weights").iterdir())


def test_a_run_without_the_plan_finds_the_stages(at_home: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "CONFIRM_S", 10.0)
    before = at_home.engines()
    settings = Settings(
        model=str(at_home.model),
        weights_dir=config.cache_dir() / "weights",
        nodes_dir=config.nodes_dir(),
        topology=config.topology_path(),
    )

    async def main() -> list[int]:
        async with Driver(settings, KeyringSource()) as driver:
            chain = await driver.chain(100)
            assert [stage.fresh for stage in driver.stages] == [False, False]
            return [token.id async for token in chain.generate(Ask(tuple(PROMPT), NEW)).tokens()]

    assert asyncio.run(main()) == unsplit(at_home.model)
    assert at_home.engines() == before


def test_a_plans_stage_stays_for_ever(at_home: Started) -> None:
    for shard in at_home.shards:
        (stage,) = asyncio.run(shard.stages(KeyringSource()))
        assert stage.keep_alive_ms == FOREVER_MS


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="read where Linux shows it")
def test_threads_and_cores_are_what_was_said(at_home: Started) -> None:
    a, b = (shard.engines[0].pid for shard in at_home.shards)
    said = dict.fromkeys(THREAD_VARIABLES, "3")
    assert said.items() <= psutil.Process(b).environ().items()
    # Nobody said how many for a: what its user has set stays, the rest is a's share of the cores.
    share = str(max(1, len(usable_cores()) // 2))
    found = psutil.Process(a).environ()
    assert found["OMP_NUM_THREADS"] == "7"
    assert found["NUMBA_NUM_THREADS"] in (share, str(len(usable_cores())))
    core = str(min(usable_cores()))
    for status in Path(f"/proc/{b}/task").glob("*/status"):
        allowed = next(
            line for line in status.read_text().splitlines() if line.startswith("Cpus_allowed_list")
        )
        assert allowed.split()[1] == core
    assert psutil.Process(a).cpu_affinity() == sorted(usable_cores())


def test_an_engine_that_dies_is_loaded_again_with_the_reason(at_home: Started) -> None:
    shard = at_home.shards[1]

    async def ready() -> bool:
        return [stage.state for stage in await shard.stages(KeyringSource())] == ["ready"]

    for times in (1, 2):
        (engine,) = shard.engines
        engine.kill()
        wait_until(partial(died, shard, times), shard.process.told)
        wait_until(lambda: asyncio.run(ready()), shard.process.told, seconds=BOUND_S)
    done = run(at_home, "--plan", str(at_home.plan))
    assert done.stdout == toy_model.text(unsplit(at_home.model)), done.stderr


def test_what_somebody_unloads_is_not_loaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    model = write_model(tmp_path / "toy")
    plan = write_plan(tmp_path / "plan.json", model, ("c", "c"))
    Stores(tmp_path / ".cache" / "exo" / "weights").open(model)
    with nodes(tmp_path, plan, {"c": ([], {})}) as (process,):
        wait_until(partial(is_up, tmp_path / "c.ready", process), process.told, seconds=BOUND_S)
        shard = Shard(process, cluster._port(process))
        assert len(asyncio.run(shard.stages(KeyringSource()))) == 2
        done = subprocess.run([*EXO, "unload"], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        time.sleep(1.5)  # longer than the first pause
        assert asyncio.run(shard.stages(KeyringSource())) == []
        assert shard.engines == []
        assert process.end() == 0


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        (None, 66, "there is no plan at"),
        ("{}", 65, "plan.json"),
        ("plan", 65, r"no stage for this node, elsewhere; it names a, b"),
    ],
)
def test_a_plan_that_is_no_use_ends_the_node(
    text: str | None, code: int, says: str, tmp_path: Path, started: Started
) -> None:
    path = tmp_path / "plan.json"
    if text is not None:
        path.write_text(started.plan.read_text() if text == "plan" else text)
    ready = tmp_path / "ready"
    done = subprocess.run(
        [*EXO, "serve-shard", "--name", "elsewhere", "--plan", str(path), "--ready-file", str(ready)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code
    assert says in done.stderr
    assert not ready.exists()
    if text == "plan":
        assert "--name" in done.stderr


def test_a_stage_that_nobody_has_is_waited_for_until_a_signal(tmp_path: Path) -> None:
    model = write_model(tmp_path / "toy")
    plan = write_plan(tmp_path / "plan.json", model, ("d", "d"))
    with nodes(tmp_path, plan, {"d": ([], {"HF_HUB_CACHE": str(tmp_path / "hub")})}) as (process,):
        process.until(lambda: "cannot load layers 0 to 1 of toy yet: " in process.err())
        process.until(lambda: process.err().count("cannot load layers 0 to 1 of toy yet: ") > 1)
        assert f"looked in {tmp_path}/.cache/exo/weights, {tmp_path}/hub" in process.err()
        assert not (tmp_path / "d.ready").exists()
        assert process.end() == 0
        assert [line["type"] for line in process.lines()] == ["stopped"]
