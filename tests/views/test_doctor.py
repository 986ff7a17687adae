"""`exo rdma-check` as lines and as rows: the machines, the cable matrix, the findings."""

import pytest
from rich.cells import cell_len

from exo_cli.rdma.capture import read
from exo_cli.rdma.diagnose import diagnose
from exo_cli.schemas.doctor import Collective, RdmaCheck
from exo_cli.views import doctor as view
from tests.support.captures import CAPTURES, READABLE
from tests.support.screen import shown

FIGURES = Collective(
    backend="ring",
    ranks=2,
    where="this machine, two processes",
    latency_us_p50=61.2,
    latency_us_p99=412.0,
    bytes_per_s=1.25e9,
    message_bytes=16 << 20,
    rounds=500,
    seconds=3.1,
    error=None,
)


def check(name: str, collective: Collective | None = None) -> RdmaCheck:
    return diagnose(read(CAPTURES / name), collective=collective)


def test_the_matrix_and_the_one_cable_that_is_missing() -> None:
    text = shown(view.render(check("mac-missing-cable-three"), unicode=True, width=100), 100)
    assert (
        """\
Cables  the port in the row's machine, by what is at its end
        mac-1  mac-2  mac-3
 mac-1  ·      en2    en3
 mac-2  en2    ·      none
 mac-3  en2    none   ·
 missing  mac-2 - mac-3
 neither a mesh nor a ring
"""
        in text
    )
    assert (
        """\
 ✗ failure  mac-2 and mac-3
   seen   no cable joins mac-2 and mac-3
   means  neither a mesh (each pair has a cable) nor a ring can be made of the cables there are
   do     1. connect mac-2 and mac-3, with a Thunderbolt 5 cable from Mac to Mac
          2. exo rdma-check --cluster
   known  L1: Apple TN3205; mlx.distributed_config
"""
        in text
    )
    assert text.endswith(
        "1 failure\n"
        "RDMA would work: no  MLX would use its ring over TCP, over whatever network the Macs share\n"
    )


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("mac-two-cables", "en2+en3"),
        ("mac-hub", "en2 hub"),
        ("mac-pair-one-disabled", "en2 down"),
        ("mac-missing-cable-four", "no mesh, but a ring"),
        ("mac-four-healthy", " a mesh"),
    ],
)
def test_what_a_cable_is_like(name: str, cell: str) -> None:
    assert cell in shown(view.render(check(name), unicode=True, width=100), 100)


def test_a_matrix_that_is_too_wide_becomes_a_list() -> None:
    text = shown(view.render(check("mac-four-healthy"), unicode=False, width=30), 30)
    assert " mac-1 en2 - mac-2 en2  active\n" in text


def test_one_mac_shows_its_ports_and_no_matrix() -> None:
    text = shown(view.render(check("mac-port-down"), unicode=True, width=110), 110)
    assert "rdma_en2, Thunderbolt 1, PORT_DOWN, 80 Gb/s, with Mac mini" in text
    assert "Cables" not in text


@pytest.mark.parametrize("name", READABLE)
@pytest.mark.parametrize(("unicode", "width"), [(True, 100), (False, 40)])
def test_no_line_is_too_wide_and_ascii_stays_ascii(name: str, unicode: bool, width: int) -> None:
    text = shown(view.render(check(name, FIGURES), unicode=unicode, width=width), width)
    assert all(cell_len(line) <= width for line in text.splitlines())
    assert unicode or text.isascii()


def test_what_was_measured() -> None:
    text = shown(view.render(check("mac-two-healthy", FIGURES), unicode=True, width=120), 120)
    assert (
        " 2 ranks: an all-sum of 4 B takes 0.06 ms (p99 0.41 ms, 500 rounds), "
        "one of 16 MiB runs at 1.25 GB/s\n" in text
    )


def test_rows_for_awk() -> None:
    header, rows = view.rows(check("mac-missing-cable-three", FIGURES))
    table = [dict(zip(header, row, strict=True)) for row in rows]
    records = [row["record"] for row in table]
    assert records.count("node") == 3
    assert records.count("cable") == 2
    assert [row["about"] for row in table if row["record"] == "missing-cable"] == ["mac-2 - mac-3"]
    (failure,) = (row for row in table if row["level"] == "failure" and row["record"] == "finding")
    assert failure["do"].startswith("1. connect mac-2 and mac-3")
    assert (table[-1]["record"], table[-1]["level"]) == ("verdict", "failure")


def test_a_name_from_elsewhere_has_no_power() -> None:
    (capture,) = read(CAPTURES / "mac-disabled")
    evil = type(capture)("darwin", "\x1b[31m[bold]x[/bold]\n", capture.texts)
    text = shown(view.render(diagnose([evil]), unicode=True, width=100), 100)
    assert "\x1b" not in text
    assert "[bold]x[/bold]" in text
    header, rows = view.rows(diagnose([evil]))
    assert all("\n" not in cell for row in rows for cell in row)
    assert header
