"""What is known of one Linux machine, put together from its texts. Where two texts contradict each
other, neither is believed. Knows nothing of what is wrong with it.
"""

from dataclasses import dataclass

from exo_cli.rdma import linux_texts, probes, verbs
from exo_cli.rdma.capture import Capture
from exo_cli.rdma.linux_texts import DeviceFile, TreeDevice, TreePort, User
from exo_cli.rdma.probes import Mlx
from exo_cli.rdma.reader import ENOENT, Reader
from exo_cli.schemas.doctor import RdmaNode, RdmaPort


@dataclass(slots=True)
class Linux:
    """One Linux machine; None is what could not be read, and `troubles` says why."""

    name: str
    troubles: dict[str, str]
    os: str | None
    devices: tuple[TreeDevice, ...] | None
    verbs_sees_none: bool
    """Whether the verbs library finds no device although the kernel has one."""
    files: tuple[DeviceFile, ...] | None
    user: User | None
    locked_bytes: int | None
    locks_all: bool
    """Whether any amount of memory may be locked."""
    modules: frozenset[str]
    environment: dict[str, str]
    mlx: Mlx | None
    nccl_network: str | None

    @property
    def active(self) -> list[tuple[TreeDevice, TreePort]]:
        return [
            (device, port)
            for device in self.devices or ()
            for port in device.ports
            if port.state == "ACTIVE" and port.link_layer != "Unspecified"
        ]

    def record(self) -> RdmaNode:
        return RdmaNode(
            name=self.name,
            platform="linux",
            os=self.os,
            build=None,
            chip=None,
            thunderbolt=None,
            mlx=self.mlx.mlx if self.mlx else None,
            ports=tuple(
                RdmaPort(
                    device=device.name,
                    interface=", ".join(port.interfaces) or None,
                    receptacle=None,
                    state=f"PORT_{port.state}",
                    rate=port.rate,
                    peer=None,
                )
                for device in self.devices or ()
                for port in device.ports
            ),
        )


def read_linux(capture: Capture) -> Linux:
    reader = Reader(capture)
    devices, sees_none = _devices(reader)
    memlock = "memlock" if reader.said("memlock") is not None else "limits"
    locked = reader.read(memlock, linux_texts.memlock if memlock == "memlock" else linux_texts.limits)
    said = reader.said("dev_infiniband")
    no_files = said is not None and said.exit == ENOENT and b"No such file" in said.error
    files = () if no_files else reader.read("dev_infiniband", linux_texts.device_files)
    if files is not None and devices and not sees_none:
        opened = sum(file.name.startswith("uverbs") for file in files)
        if opened < len(devices):
            reader.troubles["dev_infiniband"] = f"it has {opened} uverbs files for {len(devices)} devices"
            files = None
    return Linux(
        name=capture.node,
        troubles=reader.troubles,
        os=reader.read("os_release", linux_texts.os_release),
        devices=devices,
        verbs_sees_none=sees_none,
        files=files,
        user=reader.read("id", linux_texts.identity),
        locked_bytes=locked,
        locks_all=locked is None and memlock not in reader.troubles,
        modules=reader.read("modules", linux_texts.modules) or frozenset(),
        environment=reader.read("environment", probes.environment) or {},
        mlx=reader.read("mlx", probes.mlx),
        nccl_network=reader.optional("nccl_log", linux_texts.nccl_network),
    )


def _devices(reader: Reader) -> tuple[tuple[TreeDevice, ...] | None, bool]:
    """The kernel's devices, held against what the tools list, and whether the verbs library sees none."""
    said = reader.said("infiniband")
    tree: tuple[TreeDevice, ...] | None = ()
    if said is None or said.exit != ENOENT:
        tree = reader.read("infiniband", linux_texts.infiniband)
    listed = None
    if not reader.is_missing("ibv_devices"):
        listed = reader.read("ibv_devices", verbs.ibv_devices)
    linked = None
    if reader.said("rdma_link") is not None and not reader.is_missing("rdma_link"):
        linked = reader.read("rdma_link", linux_texts.rdma_link)
    if tree is None:
        return None, False
    names = {device.name for device in tree}
    # A device may have no link of its own to list; one that is listed is there.
    if linked is not None and not set(linked) <= names:
        reader.troubles["infiniband"] = "it has other devices than rdma link"
        return None, False
    if listed is not None and set(listed) != names:
        devinfo = reader.said("ibv_devinfo")
        agreed = devinfo is not None and verbs.says_no_device(devinfo.output, devinfo.error)
        if not listed and agreed:
            return tree, True
        reader.troubles["infiniband"] = "it has other devices than ibv_devices"
        return None, False
    return tree, False
