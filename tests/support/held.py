"""What a process holds, by the kernel's own books: threads, sockets and memory of its own.

Linux only. Knows nothing of what the process is.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Holds:
    """Of one process, at one moment."""

    threads: int
    descriptors: int
    sockets: int
    anonymous_bytes: int
    """Resident memory that no file stands behind."""

    @property
    def countable(self) -> tuple[int, int, int]:
        return self.threads, self.descriptors, self.sockets


def holds(pid: int) -> Holds:
    process = Path(f"/proc/{pid}")
    links = []
    for each in (process / "fd").iterdir():
        try:
            links.append(str(each.readlink()))
        except FileNotFoundError:
            continue  # the one that we read the directory by
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    return Holds(
        threads=int(status["Threads"]),
        descriptors=len(links),
        sockets=sum(link.startswith("socket:") for link in links),
        anonymous_bytes=int(status["RssAnon"].split()[0]) * 1024,
    )
