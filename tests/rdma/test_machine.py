"""Memory limit and sleep of a Mac."""

import pytest

from exo_cli.rdma.capture import Capture, Said
from exo_cli.rdma.machine import TEXTS, check_machine
from exo_cli.schemas.findings import Finding

GIB = 1 << 30


def findings(*, ram_gib: int = 48, wired_mb: int = 0, sleep: int = 0) -> dict[str, Finding]:
    texts = {
        "sysctl": Said(0, f"hw.memsize: {ram_gib * GIB}\niogpu.wired_limit_mb: {wired_mb}\n".encode()),
        "pmset": Said(0, f"Currently in use:\n standby 0\n sleep                {sleep} (by x)\n".encode()),
    }
    assert set(texts) == set(TEXTS)
    return {finding.id: finding for finding in check_machine(Capture("darwin", "studio", texts))}


@pytest.mark.parametrize(
    ("ram_gib", "wired_mb", "level", "do"),
    [
        (48, 0, "ok", "sudo sysctl iogpu.wired_limit_mb=40960"),
        (16, 0, "ok", None),
        (48, 40_000, "ok", None),
        (48, 20_000, "warning", "sudo sysctl iogpu.wired_limit_mb=0"),
        (48, 48_000, "warning", "sudo sysctl iogpu.wired_limit_mb=40960"),
        (512, 0, "ok", "sudo sysctl iogpu.wired_limit_mb="),
    ],
)
def test_the_limit_on_what_models_may_use(ram_gib: int, wired_mb: int, level: str, do: str | None) -> None:
    found = findings(ram_gib=ram_gib, wired_mb=wired_mb)["memory-limit"]
    assert found.level == level
    assert (found.do or "").startswith(do) if do else found.do is None


def test_a_mac_that_falls_asleep() -> None:
    assert findings()["sleep"].level == "ok"
    found = findings(sleep=10)["sleeps"]
    assert found.level == "warning"
    assert "10 min" in found.seen
    assert "pmset -a sleep 0" in (found.do or "")


def test_what_was_not_captured_or_read_says_nothing() -> None:
    assert list(check_machine(Capture("darwin", "m", {}))) == []
    noise = {name: Said(0, b"\xff\xfe") for name in TEXTS}
    assert list(check_machine(Capture("darwin", "m", noise))) == []
    assert list(check_machine(Capture("linux", "m", noise))) == []
