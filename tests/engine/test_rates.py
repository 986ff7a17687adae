"""The engine's own trial: figures that plans can use, of bytes and arithmetic as plans count them."""

import asyncio
import json
from pathlib import Path
from typing import cast

import mlx.core as mx
import pytest

from exo_cli.cluster.describe import Self
from exo_cli.engine import rates
from exo_cli.planning.work import work_of
from exo_cli.schemas.topology import Rate
from exo_cli.shard import rates as node
from exo_cli.shard.engine import Surroundings

WIDTH = 256


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    mx.disable_compile()
    monkeypatch.setattr(rates, "ROUNDS_S", 0.0)


@pytest.mark.parametrize("name", sorted(rates.FORMATS))
def test_figures_of_every_format_of_both_kinds(name: str) -> None:
    found = rates.measure(name, "exact", (WIDTH,))
    assert found["format"] == name
    assert found["numerics"] == "exact"
    assert found["decode_bytes_per_s"] > 0
    assert found["prefill_flop_per_s"] > 0
    assert found["step_s"] >= 0
    assert [each["rows"] for each in found["batches"]] == list(rates.BATCHES)
    assert all(each["times"] > 0 for each in found["batches"])


@pytest.mark.parametrize("name", sorted(rates.FORMATS))
def test_bytes_and_arithmetic_are_what_plans_count(name: str) -> None:
    trial = rates.Trial(rates.FORMATS[name], WIDTH, 2, "exact")
    work = work_of(rates._config(rates.FORMATS[name], WIDTH, 2))
    assert work.format == name
    assert trial.layer_bytes == work.layers[0].weights_bytes
    # What an engine may keep in 16 bits is timed so.
    stored = sum(i.nbytes for i in trial._model.directory().tensors.values() if ".layers.0." in i.name)
    assert stored < trial.layer_bytes
    assert trial.layer_flop == work.layers[0].flop
    for rows in (1, 4):
        step = trial.decode_s(rows)
        assert all(step() > 0 for _ in range(3))
    assert trial.prefill_s() > 0


def test_a_further_layer_is_what_more_of_them_cost_beyond_fewer() -> None:
    def further(few: list[float], many: list[float]) -> tuple[float, float]:
        shallow, deep = iter(few), iter(many)
        return rates._further(lambda: next(shallow), lambda: next(deep))

    # The least of each, as much slower as the middle one of the deeper is: by 1.5 / 1.4.
    assert further([0.5, 0.6, 0.7], [1.5, 1.6, 1.4]) == pytest.approx((0.375, 0.0))
    assert further([0.9, 0.8, 0.9], [1.5, 1.6, 1.4]) == pytest.approx((0.3 * 1.5 / 1.4, 0.2 * 1.5 / 1.4))
    # A moment of somebody else's: not slower than all of it, not quicker than nothing.
    assert further([0.1, 0.1, 0.1], [1.2, 1.2, 1.2]) == pytest.approx((1.2 / 4, 0.0))
    assert further([2.0, 2.0, 2.0], [1.2, 1.2, 1.2]) == pytest.approx((1.2 / 4, 0.0))


@pytest.mark.process
def test_the_real_process_tells_a_node(tmp_path: Path) -> None:
    class Told:
        rates: tuple[Rate, ...] = ()

    directory = tmp_path / "nodes" / "n"
    directory.mkdir(parents=True)
    told = Told()
    trial = node.Trial(
        directory, Surroundings, lambda: True, lambda: True, calm_s=0.01, lock=tmp_path / "lock"
    )
    asyncio.run(node.know(cast(Self, told), trial, lambda: None))
    assert {rate.format for rate in told.rates} == set(rates.FORMATS)
    assert all(rate.decode_bytes_per_s > 0 and rate.prefill_flop_per_s > 0 for rate in told.rates)
    assert all(rate.step_s is not None and len(rate.batches) == len(rates.BATCHES) for rate in told.rates)
    kept = json.loads((directory / node.FILE).read_text())
    assert len(kept["rates"]) == len(told.rates)
