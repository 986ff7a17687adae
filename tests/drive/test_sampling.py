import json
from pathlib import Path
from typing import Any

import pytest

from exo_cli.drive.sampling import PENALTY_WINDOW, recommended, sampling

RECOMMENDED = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "do_sample": True, "max_length": 7}


def directory(path: Path, said: dict[str, Any] | None) -> Path:
    if said is not None:
        (path / "generation_config.json").write_text(json.dumps(said))
    return path


def test_the_users_word_then_the_authors_then_greedy(tmp_path: Path) -> None:
    assert sampling({}, directory(tmp_path, None)).temperature == 0.0
    directory(tmp_path, RECOMMENDED)
    found = sampling({"top_p": 0.5, "temperature": None, "seed": 3}, tmp_path)
    assert (found.temperature, found.top_p, found.top_k, found.seed) == (0.6, 0.5, 20, 3)
    assert isinstance(found.top_k, int)
    # Greedy means greedy.
    greedy = sampling({"temperature": 0.0}, tmp_path)
    assert (greedy.temperature, greedy.top_p, greedy.top_k) == (0.0, 1.0, 0)


def test_a_seed_of_its_own_each_time(tmp_path: Path) -> None:
    assert len({sampling({}, tmp_path).seed for _ in range(4)}) > 1


@pytest.mark.parametrize(
    "said",
    [
        {**RECOMMENDED, "do_sample": False},
        {"temperature": "hot"},
        {"temperature": True},
        {"temperature": -1},
        {"top_p": 0},
        {"repetition_penalty": None},
    ],
)
def test_what_makes_no_sense_is_not_taken(said: dict[str, Any], tmp_path: Path) -> None:
    assert recommended(directory(tmp_path, said)) == {}


def test_penalties_look_back(tmp_path: Path) -> None:
    assert sampling({}, tmp_path).penalty_window == 0
    for name in ("repetition_penalty", "presence_penalty", "frequency_penalty"):
        assert sampling({name: 1.5}, tmp_path).penalty_window == PENALTY_WINDOW
