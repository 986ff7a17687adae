"""Counters of joules: summed, wrapped around, absent, unreadable."""

from pathlib import Path

import pytest

from exo_cli.bench.energy import Energy


def zone(root: Path, name: str, joules: float, largest: float = 1000.0) -> Path:
    directory = root / name
    directory.mkdir(exist_ok=True)
    (directory / "energy_uj").write_text(f"{int(joules * 1e6)}\n")
    (directory / "max_energy_range_uj").write_text(f"{int(largest * 1e6)}\n")
    return directory


def test_it_counts_from_the_first_look_on_over_all_processors_and_not_their_parts(tmp_path: Path) -> None:
    for name in ("intel-rapl:0", "intel-rapl:1"):
        zone(tmp_path, name, 100)
    zone(tmp_path, "intel-rapl:0:0", 50)
    energy = Energy(tmp_path)
    assert energy.read() == 0
    zone(tmp_path, "intel-rapl:0", 103)
    zone(tmp_path, "intel-rapl:1", 104)
    zone(tmp_path, "intel-rapl:0:0", 900)
    assert energy.read() == pytest.approx(7)


def test_a_counter_that_began_again_is_followed(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", 998)
    energy = Energy(tmp_path)
    energy.read()
    zone(tmp_path, "intel-rapl:0", 3)
    assert energy.read() == pytest.approx(5)


def test_where_there_is_none_or_it_is_not_ours_to_read_nothing_is_known(tmp_path: Path) -> None:
    assert Energy(tmp_path).read() is None
    assert Energy(tmp_path / "nowhere").read() is None
    zone(tmp_path, "intel-rapl:0", 1)
    (zone(tmp_path, "intel-rapl:1", 1) / "energy_uj").unlink()
    assert Energy(tmp_path).read() is None
