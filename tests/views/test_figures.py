"""Numbers as people read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo_cli.views.figures import age_text, bytes_text, gib, plural, rate_text, round_trip_text

GIB = 2**30


@pytest.mark.parametrize(
    ("bytes_per_s", "text"),
    [
        (8.05e9, "8.05 GB/s"),
        (1.1e9, "1.10 GB/s"),
        (0.112e9, "0.11 GB/s"),
        (0.0995e9, "0.10 GB/s"),
        (40e6, "40.0 MB/s"),
        (11.8e6, "11.8 MB/s"),
        (99.4e6, "99.4 MB/s"),
        (2e3, "2.00 kB/s"),
        (0.0, "0.00 kB/s"),
        (123.4e9, "123 GB/s"),
        (999.9e9, "1.00 TB/s"),
        (None, "?"),
        (float("nan"), "?"),
        (-1.0, "?"),
    ],
)
def test_rates(bytes_per_s: float | None, text: str) -> None:
    assert rate_text(bytes_per_s) == text


@pytest.mark.parametrize(
    ("us", "text"),
    [
        (4.2, "4 µs"),
        (210, "0.21 ms"),
        (9_994, "9.99 ms"),
        (9_996, "10.0 ms"),
        (54_000, "54.0 ms"),
        (999_000, "999 ms"),
        (1_200_000, "1.20 s"),
        (None, "?"),
    ],
)
def test_round_trips(us: float | None, text: str) -> None:
    assert round_trip_text(us) == text


@given(st.floats(0, 1e30, allow_nan=False))
def test_figures_fit_their_columns(number: float) -> None:
    assert len(rate_text(number)) <= 9
    assert len(round_trip_text(number)) <= 8


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (512 * 2**20, "512 MiB"),
        (24 * GIB, "24.0 GiB"),
        (1536 * GIB, "1536.0 GiB"),
        (12 * 1024 * GIB, "12.0 TiB"),
        (-5, "0 B"),
    ],
)
def test_sizes(size_bytes: int, text: str) -> None:
    assert bytes_text(size_bytes) == text


def test_a_column_of_sizes_has_no_unit() -> None:
    assert gib(21.44 * GIB) == "21.4"
    assert gib(-1) == "0.0"


def test_ages_never_lie_in_the_future() -> None:
    assert age_text(1_000, 13_000) == "12 s"
    assert age_text(13_000, 1_000) == "0 s"
    assert age_text(0, 300_000) == "5 min"


def test_one_is_singular() -> None:
    assert [plural(n, "node") for n in (0, 1, 2)] == ["0 nodes", "1 node", "2 nodes"]
