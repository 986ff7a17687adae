"""What a capture holds: the name of each text, and the read-only command, file or probe behind it.

One table for who collects, who writes, who reads and who asks another node. No command here changes
anything, and none prints a serial number. Knows nothing of what the texts mean.
"""

from dataclasses import dataclass
from typing import Final, Literal

Platform = Literal["darwin", "linux"]


@dataclass(frozen=True, slots=True)
class Source:
    """Where one text comes from: exactly one of the three."""

    argv: tuple[str, ...] = ()
    path: str = ""
    probe: str = ""
    suffix: str = ".txt"

    @property
    def words(self) -> str:
        """How a person looks at the same."""
        if self.argv[:2] == ("sh", "-c"):
            return self.argv[2]
        if self.argv:
            return f"LC_ALL=C {' '.join(self.argv)}"
        return f"grep -r . {self.path}" if self.path else "exo rdma-check --capture DIR"


def _run(words: str) -> Source:
    return Source(argv=tuple(words.split()))


_PROBES: Final = {
    "environment": Source(probe="environment"),
    "mlx": Source(probe="mlx", suffix=".json"),
    "jaccl_error": Source(probe="jaccl_error"),
}
_VERBS: Final = {"ibv_devices": _run("ibv_devices"), "ibv_devinfo": _run("ibv_devinfo -v")}

SOURCES: Final[dict[Platform, dict[str, Source]]] = {
    "darwin": {
        "sw_vers": _run("sw_vers"),
        "sysctl": _run(
            "sysctl machdep.cpu.brand_string hw.model hw.memsize hw.optional.arm64 iogpu.wired_limit_mb"
        ),
        "thunderbolt": Source(
            argv=("system_profiler", "SPThunderboltDataType", "-json"),
            suffix=".json",
        ),
        "rdma_ctl": _run("rdma_ctl status"),
        **_VERBS,
        "hardware_ports": _run("networksetup -listallhardwareports"),
        "ifconfig": _run("ifconfig -a"),
        "routes": _run("netstat -rn -f inet"),
        "pmset": _run("pmset -g"),
        **_PROBES,
    },
    "linux": {
        "uname": _run("uname -srm"),
        "id": _run("id"),
        "os_release": Source(path="/etc/os-release"),
        **_VERBS,
        "rdma_link": _run("rdma link"),
        "infiniband": Source(path="/sys/class/infiniband"),
        "dev_infiniband": _run("ls -ln /dev/infiniband"),
        "modules": Source(path="/proc/modules"),
        "limits": Source(path="/proc/self/limits"),
        "memlock": Source(argv=("sh", "-c", "ulimit -l")),
        "gpu_topology": _run("nvidia-smi topo -m"),
        "addresses": _run("ip -o addr"),
        "routes": _run("ip route"),
        **_PROBES,
        "nccl_log": Source(probe="nccl_log"),
    },
}
ENVIRONMENT: Final = ("MLX_", "JACCL_", "NCCL_", "IBV_", "RDMAV_")
"""What names of variables begin with that are told, besides CUDA_VISIBLE_DEVICES."""
