from pathlib import Path

import msgspec
import pytest

from exo_cli.cluster.describe import Self
from exo_cli.cluster.facts import Accelerator, Machine
from exo_cli.cluster.identity import claim
from exo_cli.cluster.interfaces import Interface
from exo_cli.schemas.decode import decode_node
from exo_cli.schemas.topology import LoadedStage, Rate


def me(tmp_path: Path, **other: object) -> Self:
    lan = Interface("en0", "ethernet", 4, (), ("192.0.2.7", "fe80::1%en0", "2001:db8::7"), True)
    numbers = iter(range(1, 100))
    fields: dict[str, object] = {
        "identity": claim(tmp_path / "nodes", "studio"),
        "machine": Machine(
            "h" * 16, "macOS 26.3", "M3 Ultra", 32, Accelerator(backend="metal", limit_bytes=7)
        ),
        "role": "shard",
        "host": "127.0.0.1",
        "port": 52416,
        "interfaces": lambda: [lan],
        "next_seq": lambda: next(numbers),
    }
    return Self(**(fields | other))  # type: ignore[arg-type]


def test_the_record_passes_the_check_that_others_make(tmp_path: Path) -> None:
    mine = me(tmp_path)
    record = mine.record()
    assert decode_node(msgspec.json.encode(record), where="it") == record
    assert (record.name, record.boot, record.seq) == ("studio", 1, 1)
    assert mine.record().seq == 2
    assert record.memory.limit_bytes == 7
    # An address with a scope means something here only.
    assert [address.ip for address in record.addresses] == ["192.0.2.7", "2001:db8::7"]


@pytest.mark.parametrize(
    ("host", "endpoint"),
    [("127.0.0.1", "127.0.0.1:52416"), ("192.0.2.7", "192.0.2.7:52416"), ("::1", "[::1]:52416")],
)
def test_its_endpoint_is_where_this_machine_reaches_it(tmp_path: Path, host: str, endpoint: str) -> None:
    assert me(tmp_path, host=host).record().endpoint == endpoint


def test_it_says_how_its_engine_can_compute(tmp_path: Path) -> None:
    assert (me(tmp_path).record().numerics, me(tmp_path / "2").record().kernels) == (("exact",), None)
    machine = Machine("h", "Linux", "Xeon", 2, Accelerator(backend="cpu"), "avx2", ("exact", "fast"))
    record = me(tmp_path / "3", machine=machine).record()
    assert (record.numerics, record.kernels) == (("exact", "fast"), "avx2")


def test_what_changes_is_asked_for_each_time(tmp_path: Path) -> None:
    stages: list[LoadedStage] = []
    mine = me(tmp_path, stages=lambda: tuple(stages))
    assert (mine.record().state, mine.record().stages) == ("ready", ())
    mine.draining = True
    mine.loopback_bytes_per_s = 5e9
    mine.rates = (Rate(format="affine4", decode_bytes_per_s=1.0, prefill_flop_per_s=2.0, measured_unix_ms=3),)
    stages.append(LoadedStage(model="m", layers=(0, 8), state="ready"))
    record = mine.record()
    assert (record.state, record.loopback_bytes_per_s) == ("draining", 5e9)
    assert (record.rates, record.stages) == (mine.rates, tuple(stages))
