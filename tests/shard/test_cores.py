import os

import pytest

from exo_cli.errors import Misconfigured, UsageProblem
from exo_cli.shard import cores
from exo_cli.shard.cores import (
    THREAD_VARIABLES,
    cores_text,
    parse_cores,
    pin,
    thread_environment,
    usable_cores,
)


@pytest.fixture
def ten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of ten cores, of which this process may not use the last."""
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: None, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(9)), raising=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", {0}), ("0-3,8", {0, 1, 2, 3, 8}), (" 1 , 2 ", {1, 2}), ("3-3", {3}), ("0-2,1-4", {0, 1, 2, 3, 4})],
)
def test_lists_of_cores(text: str, expected: set[int], ten: None) -> None:
    assert parse_cores(text, "--cores") == expected


@pytest.mark.parametrize("text", ["", ",", "a", "3-1", "-1", "1-", "1;2", "1,,2", "٣", "1.5"])
def test_what_is_no_list_names_the_option(text: str, ten: None) -> None:
    with pytest.raises(UsageProblem, match="no list of cores for --cores") as caught:
        parse_cores(text, "--cores")
    assert "0-3,8" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("text", "says"),
    [("9", "core 9 for --cores is not there; there are 0-8"), ("7-9,11", "cores 9,11 for --cores")],
)
def test_cores_that_are_not_there_are_named(text: str, says: str, ten: None) -> None:
    with pytest.raises(UsageProblem, match=says) as caught:
        parse_cores(text, "--cores")
    assert caught.value.exit == 2


def test_a_system_that_cannot_says_so(ten: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_setaffinity")
    with pytest.raises(Misconfigured, match="needs Linux") as caught:
        parse_cores("0", "--cores")
    assert caught.value.exit == 78
    pin(os.getpid(), frozenset({0}))  # nothing that could fail


def test_a_set_is_written_as_it_is_read(ten: None) -> None:
    for text in ("0", "0-3,8", "1,3,5-6"):
        assert cores_text(parse_cores(text, "--cores")) == text


def test_a_process_that_has_ended_is_nobodys_trouble() -> None:
    pin(2**22 + 1, usable_cores())
    assert cores.usable_cores()


def test_threads_are_said_or_a_share_of_the_cores() -> None:
    said = thread_environment(5, 8, 2, {"OMP_NUM_THREADS": "1"})
    assert said == dict.fromkeys(THREAD_VARIABLES, "5")
    share = thread_environment(None, 8, 3, {"OMP_NUM_THREADS": "1"})
    assert share == {name: "2" for name in THREAD_VARIABLES if name != "OMP_NUM_THREADS"}
    assert set(thread_environment(None, 2, 7, {}).values()) == {"1"}
