"""The kinds of findings that the doctor makes: their order, how far each was tried out, and its source.

Knows nothing of how anything was found.
"""

from dataclasses import dataclass
from typing import Final

from exo_cli.schemas.findings import Finding, Level

TN3205: Final = "Apple TN3205"
_UPSTREAM_MLX: Final = "ml-explore/mlx"


@dataclass(frozen=True, slots=True)
class Kind:
    evidence: str
    source: str


# In the order in which failures are told, and then warnings: a cause before what follows from it.
KINDS: Final[dict[str, Kind]] = {
    "unreadable": Kind("L1", "the text itself"),
    "silent": Kind("L3", "the attempt to reach it"),
    "not-apple-silicon": Kind("L1", TN3205),
    "os-too-old": Kind("L1", TN3205),
    "thunderbolt-4": Kind("L1", f"{TN3205}; jundot/omlx issue 3037; {_UPSTREAM_MLX} issue 3777"),
    "rdma-disabled": Kind("L1", TN3205),
    "no-device": Kind("L1", TN3205),
    "drive-not-mac": Kind("L1", TN3205),
    "no-peer": Kind("L1", TN3205),
    "hub-between": Kind("L1", f"{TN3205}; exo-explore/exo pull requests 1982 and 2063"),
    "port-down": Kind("L1", TN3205),
    "bridge-active": Kind("L1", f"{_UPSTREAM_MLX} issue 3207; {TN3205}"),
    "no-ipv4-gid": Kind("L1", f"{_UPSTREAM_MLX} issue 3467, pull request 4191"),
    "jaccl-missing": Kind("L1", f"{_UPSTREAM_MLX}: jaccl needs macOS 26.2 and its own wheel"),
    "queue-pairs-exhausted": Kind("L1", f"{_UPSTREAM_MLX} pull request 4209, issue 3162"),
    "os-builds-differ": Kind("L0", "exo-explore/exo; one report has mixed builds working (mlx issue 3467)"),
    "mlx-versions-differ": Kind("L0", "exo-explore/exo"),
    "two-cables": Kind("L1", TN3205),
    "cable-missing": Kind("L1", f"{TN3205}; mlx.distributed_config"),
    "subnets-differ": Kind("L0", f"{_UPSTREAM_MLX} issue 3755; mlx.distributed_config"),
    "wrong-interface": Kind("L0", "exo-explore/exo issues 796, 1203 and 2295"),
    "coordinator": Kind("L1", "mlx.launch: rank 0 is reached over TCP"),
    "fast-synch-set": Kind("L1", f"{_UPSTREAM_MLX} issues 3142 and 3830, pull request 4005"),
    "small-frames": Kind("L0", f"{_UPSTREAM_MLX}, jaccl: frames over 4 KiB need macOS 26.3"),
    "no-rdma-device": Kind("L4", "/sys/class/infiniband; NVIDIA/nccl issues 226, 952 and 958"),
    "no-verbs": Kind("L0", "rdma-core"),
    "rdma-port-down": Kind("L1", "sysfs-class-infiniband; deepseek-ai/DeepEP issue 60"),
    "verbs-permission": Kind("L1", "rdma-core's udev rules"),
    "memlock-low": Kind("L1", "NVIDIA/nccl-tests issue 206; openucx/ucx issue 8229"),
    "nccl-missing": Kind("L3", "mx.distributed.is_available"),
    "nccl-ib-off": Kind("L0", "NCCL's documentation of NCCL_IB_DISABLE"),
    "nccl-uses-sockets": Kind("L1", "NCCL_DEBUG=INFO"),
    "attempt-failed": Kind("L1", "jaccl's own message"),
    "mixed-systems": Kind("L0", "jaccl is for macOS, NCCL for Linux"),
    "memory-limit": Kind("L0", "sysctl iogpu.wired_limit_mb"),
    "sleeps": Kind("L0", "pmset(1); exo-explore/exo issue 1973"),
}
_ORDER: Final = {id_: place for place, id_ in enumerate(KINDS)}
_LEVELS: Final[dict[Level, int]] = {"failure": 0, "warning": 1, "info": 2, "ok": 3}


def found(
    id_: str,
    level: Level,
    node: str | tuple[str, ...],
    seen: str,
    means: str | None = None,
    do: str | None = None,
    *then: str,
    where: str | None = None,
    source: str | None = None,
    evidence: str | None = None,
) -> Finding:
    """A finding about one node, or a few; `where` is the interface or device there."""
    nodes = (node,) if isinstance(node, str) else node
    kind = KINDS.get(id_)
    about = " and ".join((", ".join(nodes[:-1]), nodes[-1])) if len(nodes) > 1 else nodes[0]
    return Finding(
        id=id_,
        level=level,
        about=f"{about}, {where}" if where else about,
        seen=seen,
        means=means,
        do=do,
        then=then,
        evidence=evidence or (kind.evidence if kind else "L1"),
        source=source or (kind.source if kind else None),
        nodes=nodes,
    )


def ordered(findings: list[Finding]) -> tuple[Finding, ...]:
    """What could not be read first, then failures and warnings by the table above, then the rest."""
    return tuple(
        sorted(
            findings,
            key=lambda one: (
                one.id != "unreadable" or one.level != "failure",
                _LEVELS[one.level],
                _ORDER.get(one.id, len(_ORDER)) if one.level in ("failure", "warning") else 0,
            ),
        )
    )
