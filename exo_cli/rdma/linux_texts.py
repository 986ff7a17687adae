"""What Linux and its tools say about RDMA, as data; whatever else they say is `Unreadable`. Pure."""

import re
from dataclasses import dataclass, field
from typing import Final

from exo_cli.rdma.text import Unreadable, lines

TREE: Final = "/sys/class/infiniband/"


@dataclass(frozen=True, slots=True)
class TreePort:
    number: int
    state: str
    """`ACTIVE`, `DOWN`."""
    physical: str | None
    rate: str | None
    link_layer: str
    interfaces: tuple[str, ...]

    @property
    def kind(self) -> str:
        return "RoCE" if self.link_layer == "Ethernet" else self.link_layer


@dataclass(slots=True)
class TreeDevice:
    name: str
    ports: list[TreePort] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class User:
    uid: int
    groups: tuple[int, ...]
    name: str


@dataclass(frozen=True, slots=True)
class DeviceFile:
    name: str
    mode: str
    uid: int
    gid: int

    def opens_for(self, user: User) -> bool:
        """Whether that user may read and write it, by its mode."""
        if user.uid == 0:
            return True
        if user.uid == self.uid:
            return self.mode[1:3] == "rw"
        return (self.mode[4:6] if self.gid in user.groups else self.mode[7:9]) == "rw"


def infiniband(data: bytes) -> tuple[TreeDevice, ...]:
    """The tree /sys/class/infiniband, one line a file; no device is an answer too."""
    files: dict[str, str] = {}
    for line in lines(data, empty=True):
        path, there, value = line.partition(":")
        if not there or not path.startswith(TREE) or "/" not in path.removeprefix(TREE):
            raise Unreadable("it holds lines that are not of /sys/class/infiniband")
        files[path.removeprefix(TREE)] = value.strip()
    names = list(dict.fromkeys(path.split("/")[0] for path in files))
    return tuple(_device(name, files) for name in names)


def _device(name: str, files: dict[str, str]) -> TreeDevice:
    numbers = {
        int(match[1])
        for path in files
        if (match := re.match(rf"{re.escape(name)}/ports/([0-9]{{1,3}})/", path))
    }
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name) or not numbers:
        raise Unreadable(f"{name[:64]} has no port")
    return TreeDevice(name, [_port(name, number, files) for number in sorted(numbers)])


def _port(name: str, number: int, files: dict[str, str]) -> TreePort:
    base = f"{name}/ports/{number}"
    state = re.fullmatch(r"[0-9]: (NOP|DOWN|INIT|ARMED|ACTIVE|ACTIVE_DEFER)", files.get(f"{base}/state", ""))
    layer = files.get(f"{base}/link_layer")
    if state is None or layer not in ("InfiniBand", "Ethernet", "Unspecified"):
        raise Unreadable(f"port {number} of {name} has no state or no link layer that is known")
    physical = re.fullmatch(r"[0-9]: (\S+)", files.get(f"{base}/phys_state", ""))
    attached = (value for path, value in files.items() if path.startswith(f"{base}/gid_attrs/ndevs/"))
    return TreePort(
        number=number,
        state=state[1],
        physical=physical[1] if physical else None,
        rate=files.get(f"{base}/rate"),
        link_layer=layer,
        interfaces=tuple(dict.fromkeys(attached)),
    )


def rdma_link(data: bytes) -> tuple[str, ...]:
    """The devices that `rdma link` lists."""
    found = []
    for line in lines(data, empty=True):
        match = re.match(r"(?:[0-9]+: )?link ([A-Za-z0-9_.-]{1,64})/[0-9-]+[: ]", line)
        if match is None:
            raise Unreadable("it holds lines that name no link")
        found.append(match[1])
    return tuple(dict.fromkeys(found))


def device_files(data: bytes) -> tuple[DeviceFile, ...]:
    """`ls -ln /dev/infiniband`."""
    found = []
    for line in lines(data):
        if re.fullmatch(r"total [0-9]+", line):
            continue
        match = re.fullmatch(
            r"([-bcdlps][-rwxsStT]{9})[.+@]? +[0-9]+ +([0-9]+) +([0-9]+) .* ([A-Za-z0-9_.-]+)", line
        )
        if match is None:
            raise Unreadable("it holds lines that name no file")
        found.append(DeviceFile(match[4], match[1], int(match[2]), int(match[3])))
    return tuple(found)


def identity(data: bytes) -> User:
    """`id`."""
    text = " ".join(lines(data))
    match = re.match(r"uid=([0-9]{1,10})(?:\(([^)]*)\))? gid=([0-9]{1,10})(?:\([^)]*\))?", text)
    if match is None:
        raise Unreadable("it names no user")
    groups = re.search(r" groups=((?:[0-9]{1,10}(?:\([^)]*\))?,?)+)", text)
    ids = re.findall(r"(?:^|,)([0-9]{1,10})", groups[1]) if groups else []
    return User(int(match[1]), (int(match[3]), *map(int, ids)), match[2] or match[1])


def memlock(data: bytes) -> int | None:
    """Bytes that a process may lock; None where there is no limit."""
    found = [line.strip() for line in lines(data)]
    if found == ["unlimited"]:
        return None
    if len(found) != 1 or not re.fullmatch(r"[0-9]{1,15}", found[0]):
        raise Unreadable("it is neither a number nor unlimited")
    return int(found[0]) * 1024


def limits(data: bytes) -> int | None:
    """The same, from /proc/self/limits."""
    for line in lines(data):
        match = re.match(r"Max locked memory\s+(unlimited|[0-9]{1,18})\s", line)
        if match:
            return None if match[1] == "unlimited" else int(match[1])
    raise Unreadable("it does not say how much memory may be locked")


def modules(data: bytes) -> frozenset[str]:
    """The names in /proc/modules."""
    found = []
    for line in lines(data, empty=True):
        words = line.split()
        if len(words) < 3 or not words[1].isdecimal():
            raise Unreadable("it holds lines that name no module")
        found.append(words[0])
    return frozenset(found)


def os_release(data: bytes) -> str:
    """What the distribution calls itself."""
    for line in lines(data):
        match = re.fullmatch(r'PRETTY_NAME="?([^"]{1,100})"?', line)
        if match:
            return match[1]
    raise Unreadable("it has no PRETTY_NAME")


def nccl_network(data: bytes) -> str | None:
    """What NCCL said last that it uses: `IB`, `Socket`; None where it did not say."""
    found = re.findall(r"NCCL INFO Using network (\S+)$", "\n".join(lines(data, empty=True)), re.MULTILINE)
    return found[-1] if found else None
