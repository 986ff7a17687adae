"""Asking this machine: real commands and files, a made-up /sys, and what is kept."""

import sys
from pathlib import Path

import pytest

from exo_cli.rdma import collect as module
from exo_cli.rdma.capture import NOT_THERE, TIMED_OUT
from exo_cli.rdma.collect import collect, environment, run, tree
from exo_cli.rdma.linux_texts import infiniband
from exo_cli.rdma.sources import SOURCES, Platform

CARD = {
    "mlx5_0/fw_ver": "28.39.2048",
    "mlx5_0/node_type": "1: CA",
    "mlx5_0/secret": "not asked for",
    "mlx5_0/ports/1/state": "4: ACTIVE",
    "mlx5_0/ports/1/phys_state": "5: LinkUp",
    "mlx5_0/ports/1/rate": "400 Gb/sec (4X NDR)",
    "mlx5_0/ports/1/link_layer": "Ethernet",
    "mlx5_0/ports/1/gids/0": "fe80:0000:0000:0000:0200:5e00:0000:0001",
    "mlx5_0/ports/1/gids/1": "0000:0000:0000:0000:0000:0000:0000:0000",
    "mlx5_0/ports/1/gids/10": "0000:0000:0000:0000:0000:ffff:c633:640b",
    "mlx5_0/ports/1/gid_attrs/types/0": "IB/RoCE v1",
    "mlx5_0/ports/1/gid_attrs/types/1": "never",
    "mlx5_0/ports/1/gid_attrs/ndevs/0": "ens1",
}


def test_the_tree_is_read_as_the_captures_have_it(tmp_path: Path) -> None:
    base = tmp_path / "infiniband"
    for name, value in CARD.items():
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text(value + "\n")
    said = tree(base)
    assert said.exit == 0
    lines = said.output.decode().splitlines()
    assert "/sys/class/infiniband/mlx5_0/ports/1/state:4: ACTIVE" in lines
    assert not [line for line in lines if "secret" in line or "gids/1:" in line or "types/1:" in line]
    assert lines[-1] == "/sys/class/infiniband/mlx5_0/ports/1/gids/10:" + CARD["mlx5_0/ports/1/gids/10"]
    (device,) = infiniband(said.output)
    assert [(port.state, port.kind, port.interfaces) for port in device.ports] == [
        ("ACTIVE", "RoCE", ("ens1",))
    ]


def test_no_tree_is_its_errno(tmp_path: Path) -> None:
    said = tree(tmp_path / "nothing")
    assert (said.exit, said.there) == (2, False)


def test_a_command_its_absence_and_its_delay() -> None:
    assert run((sys.executable, "-c", "print('yes')")).output == b"yes\n"
    failed = run((sys.executable, "-c", "import sys; sys.exit('no')"))
    assert (failed.exit, failed.error) == (1, b"no\n")
    assert run(("exo-no-such-program",)).exit == NOT_THERE
    late = run((sys.executable, "-c", "import time; time.sleep(600)"), timeout_s=0.2)
    assert (late.exit, late.there) == (TIMED_OUT, False)


def test_commands_speak_english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    told = run((sys.executable, "-c", "import os; print(os.environ['LC_ALL'])"))
    assert told.output == b"C\n"


def test_only_the_variables_that_steer_collectives_are_told() -> None:
    variables = {
        "MLX_RANK": "0",
        "NCCL_IB_HCA": "mlx5\n_0",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_TOKEN": "secret",
        "HOME": "/home/me",
    }
    assert environment(variables) == "CUDA_VISIBLE_DEVICES=\nMLX_RANK=0\nNCCL_IB_HCA=mlx5 _0\n"


def test_this_machine_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MLX", (sys.executable, "-c", "print('{}')"))
    capture = collect("me", attempt="[jaccl] no")
    known = SOURCES[capture.platform]
    assert set(capture.texts) <= set(known)
    assert {"environment", "mlx", "jaccl_error", "ibv_devices"} <= set(capture.texts)
    assert capture.texts["jaccl_error"].output == b"[jaccl] no\n"
    assert set(collect("me", only=("environment",)).texts) == {"environment"}


@pytest.mark.parametrize("platform", ["darwin", "linux"])
def test_no_source_changes_anything_or_prints_a_serial_number(platform: Platform) -> None:
    for name, source in SOURCES[platform].items():
        assert sum(map(bool, (source.argv, source.path, source.probe))) == 1, name
        words = " ".join(source.argv)
        assert "SPHardwareDataType" not in words
        assert not any(word in ("sudo", "set", "-w", "down", "up", "enable") for word in source.argv), words
