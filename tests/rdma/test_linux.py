"""Cases of one Linux machine that no capture shows: made from a healthy one, one text changed at a time."""

import pytest

from exo_cli.rdma.capture import Capture, Said, read
from exo_cli.rdma.diagnose import diagnose
from exo_cli.schemas.findings import Finding
from tests.support.captures import CAPTURES, replaced, slugs, steps, troubles, with_text

(HEALTHY,) = read(CAPTURES / "linux-infiniband-healthy")
(ROCE,) = read(CAPTURES / "linux-roce-healthy")


def first(capture: Capture) -> Finding:
    return troubles(diagnose([capture]))[0]


@pytest.mark.parametrize(("capture", "uses"), [(HEALTHY, "InfiniBand"), (ROCE, "RoCE")])
def test_what_mlx_would_use(capture: Capture, uses: str) -> None:
    assert diagnose([capture]).uses == f"NCCL over {uses}"


def test_a_device_that_the_verbs_library_does_not_see() -> None:
    header = b"    device          \t   node GUID\n    ------          \t----------------\n"
    none = with_text(HEALTHY, "ibv_devices", header)
    unloaded = Capture("linux", "n", {**none.texts, "ibv_devinfo": Said(255, b"", b"No IB devices found\n")})
    found = first(unloaded)
    assert found.id == "no-verbs"
    assert "modprobe ib_uverbs" in steps(found)
    # With ibv_devinfo listing the device, the two contradict each other.
    assert slugs(diagnose([none])) == {"unreadable"}


@pytest.mark.parametrize(
    ("mode", "who", "opens"),
    [
        ("crw-rw-rw- 1 0 0", "uid=1000(u) gid=1000(u) groups=1000(u)", True),
        ("crw-rw---- 1 0 44", "uid=1000(u) gid=1000(u) groups=1000(u),44(rdma)", True),
        ("crw-rw---- 1 0 44", "uid=1000(u) gid=1000(u) groups=1000(u)", False),
        ("crw------- 1 1000 0", "uid=1000(u) gid=1000(u)", True),
        ("c--------- 1 1000 0", "uid=1000(u) gid=1000(u)", False),
        ("crw------- 1 0 0", "uid=0(root) gid=0(root) groups=0(root)", True),
    ],
)
def test_who_may_open_the_device(mode: str, who: str, opens: bool) -> None:
    files = with_text(HEALTHY, "dev_infiniband", f"total 0\n{mode} 231, 192 Jan  1 00:00 uverbs0\n".encode())
    found = slugs(diagnose([with_text(files, "id", f"{who}\n".encode())]))
    assert ("verbs-permission" in found) is not opens


@pytest.mark.parametrize(("text", "low"), [(b"1048576\n", False), (b"1048575\n", True), (b"64\n", True)])
def test_how_much_may_be_locked(text: bytes, low: bool) -> None:
    assert ("memlock-low" in slugs(diagnose([with_text(HEALTHY, "memlock", text)]))) is low


def test_the_limits_serve_where_ulimit_was_not_captured() -> None:
    texts = {name: said for name, said in HEALTHY.texts.items() if name != "memlock"}
    assert diagnose([Capture("linux", "n", texts)]).would_work
    low = with_text(Capture("linux", "n", texts), "limits", b"Max locked memory   65536    65536    bytes\n")
    assert slugs(diagnose([low])) == {"memlock-low"}


def test_nccl_is_missing_or_told_to_stay_away() -> None:
    assert first(replaced(HEALTHY, "mlx", '"nccl": true', '"nccl": false')).id == "nccl-missing"
    assert first(with_text(HEALTHY, "environment", b"NCCL_IB_DISABLE=1\n")).id == "nccl-ib-off"
    assert diagnose([with_text(HEALTHY, "environment", b"NCCL_IB_DISABLE=0\n")]).would_work


@pytest.mark.parametrize(
    ("rule", "leaves_it"),
    [
        ("mlx5", True),
        ("mlx5_0", True),
        ("mlx5_0:1", True),
        ("mlx5_0:2", False),
        ("=mlx5", False),
        ("=mlx5_0", True),
        ("^mlx5_0", False),
        ("^=mlx5_1,mlx5_2", True),
        ("bnxt", False),
        ("", True),
    ],
)
def test_the_cards_that_nccl_is_told_to_use(rule: str, leaves_it: bool) -> None:
    found = diagnose([with_text(HEALTHY, "environment", f"NCCL_IB_HCA={rule}\n".encode())])
    assert slugs(found) == (set() if leaves_it else {"nccl-ib-off"})


def test_nccl_that_used_sockets_while_a_port_is_active() -> None:
    found = diagnose([replaced(HEALTHY, "nccl_log", "Using network IB", "Using network Socket")])
    assert slugs(found) == {"nccl-uses-sockets"}
    assert found.would_work


def test_a_port_that_waits_for_a_subnet_manager() -> None:
    found = first(replaced(HEALTHY, "infiniband", "state:4: ACTIVE", "state:2: INIT"))
    assert found.id == "rdma-port-down"
    assert "subnet manager" in (found.means or "")


def test_an_empty_class_directory_is_no_device_where_all_agree() -> None:
    (none,) = read(CAPTURES / "linux-no-device")
    empty = Capture("linux", "n", {**none.texts, "infiniband": Said(0, b"")})
    assert slugs(diagnose([empty])) == {"no-rdma-device"}
    # One of the tools lists a device: then the tree was cut off.
    assert slugs(diagnose([with_text(HEALTHY, "infiniband", b"")])) == {"unreadable"}


def test_on_a_machine_without_nccl_the_ring_is_named() -> None:
    (here,) = read(CAPTURES / "linux-observed-no-device")
    found = diagnose([here])
    assert found.uses == "its ring over TCP (Ethernet)"
    assert [each.id for each in found.findings if each.id == "jaccl"] == ["jaccl"]
    assert troubles(found)[0].evidence == "L4"
