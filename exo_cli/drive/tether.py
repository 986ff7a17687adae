"""Run a command that ends when its starter does: `python -m exo_cli.drive.tether PARENT COMMAND…`.

On Linux the kernel ends it (PDEATHSIG survives exec, so the command becomes this process). Elsewhere a
guard stays behind, watching standard input: the starter holds the other end of that pipe. Imports
nothing that takes time; knows nothing of what it runs.
"""

import ctypes
import os
import select
import signal
import sys
from collections.abc import Sequence
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_LOOK_S: Final = 0.2


def main(arguments: Sequence[str], *, linux: bool = sys.platform == "linux") -> int:
    parent, command = int(arguments[0]), list(arguments[1:])
    return _by_kernel(parent, command) if linux else _by_guard(command)


def _by_kernel(parent: int, command: list[str]) -> int:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() == parent:  # else it was gone before we asked
        os.execvp(command[0], command)  # noqa: S606 - our own words, no shell
    return 0


def _by_guard(command: list[str]) -> int:
    child = os.fork()
    if child == 0:
        os.execvp(command[0], command)  # noqa: S606
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
    # Ctrl-C goes to the whole group: our starter decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status) & 0xFF
        readable, _, _ = select.select([0], [], [], _LOOK_S)
        if readable and not os.read(0, 4096):
            os.kill(child, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
