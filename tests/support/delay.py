"""A switch that takes its time: every frame between the hosts of a lab comes out later than it went in.

For kernels without netem. A process in the switch's namespace carries Ethernet frames between TAP devices,
each of them bridged to one host's cable, in the order in which they came; what a host's own `tbf` does comes
before. Frames beyond a bound are lost, as on a real link. It knows nothing of what the frames carry.
"""

import contextlib
import fcntl
import json
import os
import select
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.support.lab import run

QUEUE: Final = 4096
"""Frames on their way at once, all ports together."""
_AT_ONCE: Final = 32
"""Frames taken from a port before the others have their turn."""
_ROOT: Final = Path(__file__).parents[2]
_TUNSETIFF: Final = 0x400454CA
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000


@dataclass(slots=True)
class Switch:
    """Frames on their way between ports, which are numbered; a time is given with each call."""

    ports: int
    delay_s: float
    limit: int = QUEUE
    _known: dict[bytes, int] = field(default_factory=dict)
    """By address, the port behind which it was seen last."""
    _way: deque[tuple[float, tuple[int, ...], bytes]] = field(default_factory=deque)

    def take(self, port: int, frame: bytes, now_s: float) -> None:
        """A frame has come in."""
        to, source = frame[:6], frame[6:12]
        self._known[source] = port
        known = self._known.get(to)
        others = (known,) if known is not None else range(self.ports)
        out = tuple(other for other in others if other != port)
        if out and len(self._way) < self.limit:
            self._way.append((now_s + self.delay_s, out, frame))

    def due(self, now_s: float, send: Callable[[int, bytes], None]) -> float | None:
        """Send what has waited long enough; how long until there is more, if there is."""
        while self._way and self._way[0][0] <= now_s:
            _, out, frame = self._way.popleft()
            for port in out:
                send(port, frame)
        return self._way[0][0] - now_s if self._way else None


def carry(names: Sequence[str], delay_s: float) -> None:
    """Between these TAP devices of the namespace that this process is in, until its input ends."""
    with contextlib.suppress(PermissionError):
        # A network does not wait for the processors of those that it joins.
        os.setpriority(os.PRIO_PROCESS, 0, -15)
    taps = [_opened(name) for name in names]
    number = {tap: port for port, tap in enumerate(taps)}
    switch = Switch(len(taps), delay_s)

    def send(port: int, frame: bytes) -> None:
        # A port that is down, or has no room, loses the frame.
        with contextlib.suppress(OSError):
            os.write(taps[port], frame)

    owner = sys.stdin.fileno()
    print("ready", flush=True)
    while True:
        wait_s = switch.due(time.monotonic(), send)
        readable, _, _ = select.select([*taps, owner], [], [], wait_s)
        if owner in readable:
            return
        for tap in readable:
            with contextlib.suppress(BlockingIOError):
                for _ in range(_AT_ONCE):
                    switch.take(number[tap], os.read(tap, 1 << 16), time.monotonic())


def _opened(name: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
    return descriptor


class Delay:
    """While entered, the hosts on a lab's switch are `delay_s` away from each other, one way."""

    def __init__(self, switch: str, delay_s: float) -> None:
        self._switch = switch
        self._delay_s = delay_s
        self._ports: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Of the process that carries the frames."""
        return None if self._process is None else self._process.pid

    def __enter__(self) -> Self:
        try:
            self._begin()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _begin(self) -> None:
        self._ports = self._on("br0")
        for number, port in enumerate(self._ports):
            self._ip("link", "add", f"s{number}", "type", "bridge")
            self._ip("tuntap", "add", "dev", f"t{number}", "mode", "tap")
            for name in (f"t{number}", port):
                self._ip("link", "set", name, "master", f"s{number}", "up")
            self._ip("link", "set", f"s{number}", "up")
        taps = [f"t{number}" for number in range(len(self._ports))]
        self._process = subprocess.Popen(
            [
                *("ip", "netns", "exec", self._switch),
                *(sys.executable, "-m", "tests.support.delay", str(self._delay_s), *taps),
            ],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            raise RuntimeError("the delaying switch did not start")

    def _end(self) -> None:
        if self._process is not None:
            # Its input ends, and so does it.
            with self._process:
                pass
        for number, port in enumerate(self._ports):
            self._ip("link", "set", port, "master", "br0")
            for name in (f"t{number}", f"s{number}"):
                self._ip("link", "del", name)
        self._ports = []

    def _on(self, bridge: str) -> list[str]:
        shown = subprocess.run(
            ["ip", "-n", self._switch, "-j", "link", "show", "master", bridge],
            capture_output=True,
            check=True,
        )
        return [each["ifname"] for each in json.loads(shown.stdout)]

    def _ip(self, *command: str) -> None:
        run("ip", "-n", self._switch, *command)


if __name__ == "__main__":
    carry(sys.argv[2:], float(sys.argv[1]))
