"""What spoils a Mac as a node, RDMA or not: memory that models may not use, a system that falls asleep.

A chapter of the doctor that `discover --explain` has in common with `rdma-check`. From captured texts;
knows nothing of the network.
"""

from collections.abc import Iterator
from typing import Final

from exo_cli.rdma import mac_texts
from exo_cli.rdma.capture import Capture
from exo_cli.rdma.reader import Reader
from exo_cli.rdma.words import found
from exo_cli.schemas.findings import Finding

TEXTS: Final = ("sysctl", "pmset")
"""What has to be captured for it."""
_GIB: Final = 1 << 30
_MIB: Final = 1 << 20


def check_machine(capture: Capture) -> Iterator[Finding]:
    if capture.platform == "darwin":
        reader = Reader(capture)
        yield from _memory(reader)
        yield from _sleep(reader)


def _memory(reader: Reader) -> Iterator[Finding]:
    hardware = reader.optional("sysctl", mac_texts.sysctl, exit_code=None)
    if hardware is None or hardware.ram_bytes is None or hardware.wired_limit_mb is None:
        return
    ram, set_bytes = hardware.ram_bytes, hardware.wired_limit_mb * _MIB
    # What Metal is reported to give where nothing is set: two thirds, from 36 GiB on three quarters.
    usual = ram * 3 // 4 if ram >= 36 * _GIB else ram * 2 // 3
    most = ram - max(8 * _GIB, ram // 10)
    raise_it = f"sudo sysctl iogpu.wired_limit_mb={most // _MIB}   (until the Mac restarts)"
    node = reader.capture.node
    if set_bytes == 0:
        worth_it = most - usual >= max(_GIB, ram // 20)
        yield found(
            "memory-limit",
            "ok",
            node,
            f"the accelerator has macOS's own limit, about {usual / _GIB:.0f} of {ram / _GIB:.0f} GiB",
            f"it may be raised to {most / _GIB:.0f} GiB for larger models" if worth_it else None,
            raise_it if worth_it else None,
        )
    elif set_bytes < usual:
        yield found(
            "memory-limit",
            "warning",
            node,
            f"iogpu.wired_limit_mb={hardware.wired_limit_mb}: models may use {set_bytes / _GIB:.1f} of "
            f"{ram / _GIB:.0f} GiB",
            "somebody set less than macOS gives by itself",
            "sudo sysctl iogpu.wired_limit_mb=0",
        )
    elif set_bytes > most:
        yield found(
            "memory-limit",
            "warning",
            node,
            f"iogpu.wired_limit_mb={hardware.wired_limit_mb}: models may use {set_bytes / _GIB:.1f} of "
            f"{ram / _GIB:.0f} GiB",
            f"less than {(ram - most) / _GIB:.0f} GiB stay for macOS, which can freeze the Mac",
            raise_it,
        )
    else:
        yield found(
            "memory-limit",
            "ok",
            node,
            f"models may use {set_bytes / _GIB:.1f} of {ram / _GIB:.0f} GiB",
        )


def _sleep(reader: Reader) -> Iterator[Finding]:
    settings = reader.optional("pmset", mac_texts.pmset)
    if settings is None or "sleep" not in settings:
        return
    minutes, node = settings["sleep"], reader.capture.node
    if minutes == 0:
        yield found("sleep", "ok", node, "it does not fall asleep by itself")
        return
    yield found(
        "sleeps",
        "warning",
        node,
        f"it falls asleep after {minutes} min without a user",
        "a node that sleeps is gone; RDMA ports were reported dead after long idling (errno 96)",
        "sudo pmset -a sleep 0   (or start the node as: caffeinate -s exo serve-shard)",
    )
