from dataclasses import replace
from itertools import product

import pytest

from exo_cli.planning.pace import Pace
from exo_cli.planning.problem import needed_bytes
from exo_cli.planning.tensor import exchange_s, group, rank_memory, step_s
from tests.planning.clusters import GB, cluster, place, problem, way, work


def test_units_follow_speed_and_memory() -> None:
    model = replace(work(8, 1.0), units=8)
    even = problem(model, cluster(place("a", 20), place("b", 20)))
    made = group(even, (0, 1), 0, 8, 1)
    assert made is not None
    assert made.units == (4, 4)
    uneven = problem(model, cluster(place("a", 20, speed=300), place("b", 20), place("c", 20)))
    made = group(uneven, (0, 1, 2), 0, 8, 1)
    assert made is not None
    assert max(made.units[0] / 3, *made.units[1:]) == 2
    assert sum(made.units) == 8
    small = problem(model, cluster(place("a", 4, speed=900), place("b", 20)))
    made = group(small, (0, 1), 0, 8, 1)
    assert made is not None
    assert made.units == (3, 5)
    for rank, at in enumerate(made.places):
        memory = rank_memory(small, at, made.share(rank), 0, 8, 1)
        assert needed_bytes(memory) <= memory.limit_bytes
    assert group(problem(model, cluster(place("a", 1), place("b", 3))), (0, 1), 0, 8, 1) is None
    assert (
        group(problem(replace(model, units=1), cluster(place("a", 9), place("b", 9))), (0, 1), 0, 8, 1)
        is None
    )


@pytest.mark.parametrize("speeds", [(100, 100, 100), (300, 100, 50), (90, 400, 110)])
def test_no_other_deal_has_a_quicker_slowest_rank(speeds: tuple[float, ...]) -> None:
    model = replace(work(4, 1.0), units=10)
    places = [place(f"n{at}", 40, speed=speed) for at, speed in enumerate(speeds)]
    made = group(problem(model, cluster(*places)), (0, 1, 2), 0, 4, 1)
    assert made is not None
    deals = (each for each in product(range(1, 9), repeat=3) if sum(each) == 10)

    def slowest(units: tuple[int, ...]) -> float:
        return max(n / speed for n, speed in zip(units, speeds, strict=True))

    assert slowest(made.units) == pytest.approx(min(map(slowest, deals)))


def test_a_group_of_one_is_a_stage_of_a_pipeline() -> None:
    made = problem(work(8, 1.0, ends=0.5, kv=2000), cluster(place("a", 20)))
    alone = group(made, (0,), 0, 8, 1)
    assert alone is not None
    line = Pace(made).decode(1, 1).lines[0]
    assert step_s(made, alone, 0, 8, 1, made.position) == pytest.approx(line.stage_s(0, 8))


def test_a_fast_link_pays_and_a_slow_one_does_not() -> None:
    """70B at 4 bits on 400 GB/s: two ranks win where an exchange takes less than about 312 us."""
    model = replace(work(80, 0.5), units=8, width=8192, wire_item_bytes=2)
    for milliseconds, pays in ((0.025, True), (0.2, True), (0.4, False)):
        both = cluster(place("a", 60, speed=400), place("b", 60, speed=400), between=way(milliseconds, 8))
        made = problem(model, both)
        two, one = group(made, (0, 1), 0, 80, 1), group(made, (0,), 0, 80, 1)
        assert two is not None and one is not None  # noqa: PT018
        assert (step_s(made, two, 0, 80, 1, 1) < step_s(made, one, 0, 80, 1, 1)) is pays


def test_the_shape_of_an_exchange_follows_its_size() -> None:
    four = [way(0.1, 1)] * 12
    assert exchange_s([], 1000) == 0
    assert exchange_s(four, 1000) == pytest.approx(0.0001 + 3 * 1000 / GB)
    large = 100_000_000
    assert exchange_s(four, large) == pytest.approx(6 * (0.0001 + large / 4 / GB))


def test_what_every_rank_has_whole() -> None:
    model = work(4, 1.0, kv=1000)
    part = replace(model.layers[0], whole_bytes=GB // 10)
    made = problem(replace(model, layers=(part,) * 4, units=4), cluster(place("a", 20)), context=256)
    half = rank_memory(made, 0, 0.5, 0, 4, 2)
    assert half.weights_bytes == 4 * (GB // 10 + int(0.9 * GB * 0.5))
    assert half.kv_bytes == 4 * 256 * 1000 * 4
    latent = replace(made, work=replace(made.work, latent=True))
    assert rank_memory(latent, 0, 0.5, 0, 4, 2).kv_bytes == 2 * half.kv_bytes
