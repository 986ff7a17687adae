"""How a node comes to know its speed: calmly, once, alone on its machine, and anew when things change."""

import asyncio
import fcntl
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import msgspec
import pytest

from exo_cli.cluster.describe import Self
from exo_cli.schemas.topology import Rate
from exo_cli.shard import rates
from exo_cli.shard.engine import Surroundings
from exo_cli.shard.rates import FILE, Kept, Trial, know
from tests.support.nodes import eventually

SAYS = """
import os, sys, time
open(os.path.join(PLACE, "began"), "a").write(".")
assert sys.argv[1] == "--numerics"
how = sys.argv[2]
for name, rate in (("affine4", 2e9), ("float32", 5e9)):
    line = f'"format":"{name}","decode_bytes_per_s":{rate},"prefill_flop_per_s":3e10,"numerics":"{how}"'
    print("{" + line + "}", flush=True)
    time.sleep(0.1)
"""
WAITS = "import os, time; open(os.path.join(PLACE, 'began'), 'a').write('.'); time.sleep(600)"


@dataclass
class Told:
    """As much of a node as is told."""

    rates: tuple[Rate, ...] = ()
    times: int = 0


@dataclass
class Bench:
    """A node's directory, and what the node is like."""

    directory: Path
    calm: Callable[[], bool] = lambda: True
    room: Callable[[], bool] = lambda: True
    threads: str = "2"
    told: Told = field(default_factory=Told)

    def trial(self, program: str) -> Trial:
        script = self.directory.parent.parent / "trial.py"
        script.write_text(program.replace("PLACE", repr(str(self.directory))))
        return Trial(
            self.directory,
            lambda: Surroundings({"OMP_NUM_THREADS": self.threads}),
            lambda: self.calm(),
            lambda: self.room(),
            (sys.executable, str(script)),
            calm_s=0.02,
            lock=self.directory.parent / "rates.lock",
        )

    def know(self, program: str = SAYS) -> Told:
        self.told = Told()
        asyncio.run(self.knowing(program))
        return self.told

    async def knowing(self, program: str) -> None:
        def tell() -> None:
            self.told.times += 1

        await know(cast(Self, self.told), self.trial(program), tell)

    @property
    def trials(self) -> int:
        began = self.directory / "began"
        return len(began.read_text()) if began.exists() else 0


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    directory = tmp_path / "nodes" / "n"
    directory.mkdir(parents=True)
    return Bench(directory)


def test_it_is_measured_once_and_kept(bench: Bench) -> None:
    first = bench.know()
    assert [(rate.format, rate.decode_bytes_per_s) for rate in first.rates] == [
        ("affine4", 2e9),
        ("float32", 5e9),
    ]
    assert first.times == 1
    assert bench.know().rates == first.rates
    assert bench.trials == 1


def test_each_way_of_computing_has_its_rates(bench: Bench) -> None:
    assert {rate.numerics for rate in bench.know().rates} == {"exact"}
    both = replace(bench.trial(SAYS), numerics=("fast", "exact"))
    told = Told()
    asyncio.run(know(cast(Self, told), both, lambda: None))
    said = [(rate.numerics, rate.format) for rate in told.rates]
    assert said == [(how, name) for how in ("fast", "exact") for name in ("affine4", "float32")]
    # What was kept before said nothing of one of them.
    assert bench.trials == 3


def test_what_lacks_one_way_of_computing_is_told_and_not_kept(bench: Bench) -> None:
    fails = SAYS.replace("import os, time", "import os, sys, time", 1).replace(
        "for name", 'sys.exit(1) if "fast" in sys.argv else None\nfor name', 1
    )
    told = Told()
    both = replace(bench.trial(fails), numerics=("fast", "exact"))
    asyncio.run(know(cast(Self, told), both, lambda: None))
    assert {rate.numerics for rate in told.rates} == {"exact"}
    assert not (bench.directory / FILE).exists()


def test_other_threads_or_versions_are_measured_anew(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.know()
    bench.threads = "1"
    assert bench.know().rates
    assert bench.trials == 2
    monkeypatch.setattr(rates, "__version__", "9.9")
    assert bench.know().rates
    assert bench.trials == 3


@pytest.mark.parametrize("kept", [b"", b"[]", b"\xff\xfe", b'{"schema":"exo.rates/9","key":"","rates":[]}'])
def test_a_file_that_is_no_such_file_is_measured_over(kept: bytes, bench: Bench) -> None:
    (bench.directory / FILE).write_bytes(kept)
    assert bench.know().rates
    msgspec.json.decode((bench.directory / FILE).read_bytes(), type=Kept)


@pytest.mark.parametrize("program", ["raise SystemExit(1)", "print('nothing')", "pass"])
def test_what_cannot_be_measured_stays_unsaid(program: str, bench: Bench) -> None:
    assert bench.know(program) == Told()
    assert not (bench.directory / FILE).exists()


def test_a_request_ends_the_trial_which_begins_anew_when_it_is_over(bench: Bench) -> None:
    async def disturbed() -> None:
        waiting = asyncio.create_task(bench.knowing(WAITS))
        await eventually(lambda: bench.trials == 1)
        bench.calm = lambda: False
        bench.trial(SAYS)  # what the next one runs
        await asyncio.sleep(0.3)
        assert bench.told == Told()
        assert bench.trials == 1
        bench.calm = lambda: True
        await waiting

    asyncio.run(disturbed())
    assert bench.told.rates
    assert bench.trials == 2


def test_without_memory_nothing_begins(bench: Bench) -> None:
    async def full() -> None:
        bench.room = lambda: False
        waiting = asyncio.create_task(bench.knowing(SAYS))
        await asyncio.sleep(0.3)
        assert bench.trials == 0
        bench.room = lambda: True
        await waiting

    asyncio.run(full())
    assert bench.told.rates


def test_of_the_nodes_of_one_machine_one_measures_at_a_time(bench: Bench) -> None:
    async def beside() -> None:
        lock = os.open(bench.directory.parent / "rates.lock", os.O_RDWR | os.O_CREAT)
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = asyncio.create_task(bench.knowing(SAYS))
        await asyncio.sleep(0.3)
        assert bench.trials == 0
        os.close(lock)
        await waiting

    asyncio.run(beside())
    assert bench.told.rates


def test_a_trial_that_does_not_end_is_ended(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "TIMEOUT_S", 0.2)
    trial = replace(bench.trial(WAITS), calm_s=0.01)
    told = Told()
    asyncio.run(know(cast(Self, told), trial, lambda: None))
    assert told == Told()
