import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo_cli.commands import options
from exo_cli.commands.options import peers, port_range, seconds, seconds_or_forever
from exo_cli.errors import Unavailable, UsageProblem


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30s", 30.0),
        ("500ms", 0.5),
        ("2m", 120.0),
        ("2min", 120.0),
        ("1h", 3600.0),
        ("1.5s", 1.5),
        ("7", 7.0),
        (" 3 s ", 3.0),
        ("0", 0.0),
    ],
)
def test_durations(text: str, expected: float) -> None:
    assert seconds(text, "--for") == expected


@pytest.mark.parametrize(
    "text", ["", "s", "-1s", "1,5s", "3 days", "1e3", "nan", "inf", "٣s ago", "3ss", "0x3"]
)
def test_what_is_no_duration_names_the_option(text: str) -> None:
    with pytest.raises(UsageProblem, match="no duration for --timeout") as caught:
        seconds(text, "--timeout")
    assert "30s" in (caught.value.hint or "")


def test_a_duration_or_for_ever() -> None:
    assert seconds_or_forever("10m", "--keep-alive") == 600
    assert seconds_or_forever("0", "--keep-alive") == 0
    assert seconds_or_forever(" Forever", "--keep-alive") == float("inf")
    with pytest.raises(UsageProblem, match="no duration for --keep-alive") as caught:
        seconds_or_forever("-1s", "--keep-alive")
    assert "forever" in (caught.value.hint or "")


@given(st.integers(0, 10**6), st.sampled_from(["ms", "s", "m", "h"]))
def test_a_duration_grows_with_its_number(number: int, unit: str) -> None:
    assert seconds(f"{number}{unit}", "--for") < seconds(f"{number + 1}{unit}", "--for")


@pytest.mark.parametrize(
    ("text", "least", "expected"),
    [("0", 2, (0, 0)), ("7000", 1, (7000, 7000)), ("7000-7001", 2, (7000, 7001)), (" 1-99 ", 2, (1, 99))],
)
def test_ports(text: str, least: int, expected: tuple[int, int]) -> None:
    assert port_range(text, "--data-ports", least=least) == expected


@pytest.mark.parametrize("text", ["", "x", "-1", "7001-7000", "65536", "1-2-3", "1,2", "٣"])
def test_what_are_no_ports(text: str) -> None:
    with pytest.raises(UsageProblem, match="are no ports for --data-ports"):
        port_range(text, "--data-ports")


def test_too_few_ports_are_refused_before_anything_is_loaded() -> None:
    with pytest.raises(UsageProblem, match="--data-ports 7000 is too few: each loaded stage needs 2"):
        port_range("7000", "--data-ports", least=2)


def test_addresses_are_taken_as_they_are_and_each_once() -> None:
    assert peers(None) == ()
    assert peers(["127.0.0.1", "127.0.0.1:7000", "[::1]:7001", "127.0.0.1"]) == (
        ("127.0.0.1", 52416),
        ("127.0.0.1", 7000),
        ("::1", 7001),
    )


def test_a_name_that_nobody_knows_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(UsageProblem, match="'nowhere'"):
        peers(["nowhere"])


def test_a_name_server_that_is_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = threading.Event()

    def silent(*_: object, **__: object) -> None:
        answers.wait(60)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    monkeypatch.setattr(options, "LOOKUP_S", 0.05)
    with pytest.raises(
        Unavailable, match=r"no name server answers within 0\.05 s what 'studio' is"
    ) as caught:
        peers(["studio"])
    assert "address" in (caught.value.hint or "")
    answers.set()
