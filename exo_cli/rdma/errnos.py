"""What the errors of a failed start of jaccl mean, and what helps: a table with a source for each line.

A number alone says little: 22 means one thing when a queue pair is made ready and nothing elsewhere, so
a line holds what was attempted, too. Pure.
"""

import re
from dataclasses import dataclass
from typing import Final

from exo_cli.rdma.probes import Attempt


@dataclass(frozen=True, slots=True)
class Meaning:
    """What one error says; `causes` are findings that explain it."""

    words: str
    errno: int | None
    means: str
    do: str
    source: str
    causes: tuple[str, ...] = ()


TABLE: Final = (
    Meaning(
        words="RTR",
        errno=22,
        means="errno 22 (EINVAL) when a queue pair is made ready to receive: the GID is not one this link "
        "has, because a Thunderbolt Bridge holds the address or the interface has no IPv4 address",
        do="give the Thunderbolt interface an IPv4 address of its own, outside any bridge",
        source="ml-explore/mlx issues 3207 and 3467",
        causes=("bridge-active", "no-ipv4-gid"),
    ),
    Meaning(
        words="RTR",
        errno=60,
        means="errno 60 (ETIMEDOUT): the GID of the other Mac is not reached over this cable, although its "
        "address may be reached over another network",
        do="look up the cable's two ends with exo rdma-check --cluster, and name those devices",
        source="ml-explore/mlx issue 3755",
        causes=("port-down", "subnets-differ"),
    ),
    Meaning(
        words="RTR",
        errno=65,
        means="errno 65 (EHOSTUNREACH): there is no way to the other Mac's GID over this cable",
        do="look up the cable's two ends with exo rdma-check --cluster, and name those devices",
        source="ml-explore/mlx issue 3755",
        causes=("port-down", "subnets-differ"),
    ),
    Meaning(
        words="",
        errno=96,
        means="errno 96: the RDMA ports went dead, reported after the Macs were idle for long",
        do="restart both Macs, and keep them from sleeping",
        source="exo-explore/exo issue 1973",
        causes=("sleeps",),
    ),
    Meaning(
        words="queue pair",
        errno=16,
        means="errno 16 (EBUSY) when a queue pair is made: all queue pairs of the device are taken, by a "
        "process that runs or by one that ended without giving them back",
        do="end the process that holds them; where there is none, restart the Mac",
        source="ml-explore/mlx pull request 4209, issue 3162",
        causes=("queue-pairs-exhausted",),
    ),
    Meaning(
        words="queue pair",
        errno=102,
        means="errno 102 (EOPNOTSUPP): the device does not know this kind of queue pair; Thunderbolt has "
        "unreliable connections only",
        do="install the MLX that the other nodes have",
        source="ml-explore/mlx, jaccl",
    ),
    Meaning(
        words="Recv",
        errno=2,
        means="errno 2 while the group was made: another rank ended before it was complete",
        do="look at the other rank's own error first",
        source="ml-explore/mlx, jaccl",
    ),
    Meaning(
        words="memory region",
        errno=None,
        means="no further memory region could be registered: a device has about 100",
        do="end the process that holds them; where there is none, restart the Mac",
        source="ml-explore/mlx issue 3162",
    ),
    Meaning(
        words="protection domain",
        errno=None,
        means="no protection domain could be had: the port is down, or the device's resources are used up",
        do="mend the port if it is down; else restart the Mac",
        source="exo-explore/exo issues; ml-explore/mlx issue 3162",
        causes=("port-down", "no-peer"),
    ),
    Meaning(
        words="No IPv4-mapped GID",
        errno=None,
        means="the port has no GID that holds an IPv4 address, for want of an address on the interface",
        do="give the Thunderbolt interface an IPv4 address of its own, outside any bridge",
        source="ml-explore/mlx pull request 4191",
        causes=("no-ipv4-gid", "bridge-active"),
    ),
)


def meaning(attempt: Attempt) -> Meaning | None:
    """The line of the table for that error; None where nobody has written one."""
    for line in TABLE:
        if line.errno is not None and line.errno != attempt.errno:
            continue
        if re.search(rf"\b{re.escape(line.words)}", attempt.text, re.IGNORECASE):
            return line
    return None
