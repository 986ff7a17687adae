"""What is done to the links of a lab in a round of a benchmark: a lower rate, or time.

Knows nothing of what runs over them.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tests.support.delay import Delay
from tests.support.lab import Lab, run


@dataclass(frozen=True, slots=True)
class Shape:
    """A rate for what leaves each node, or time that each frame takes one way."""

    name: str
    rate: str | None = None
    delay_s: float | None = None

    def __str__(self) -> str:
        done = []
        if self.rate is not None:
            done.append(f"tbf {self.rate} on what leaves a node")
        if self.delay_s is not None:
            done.append(f"each frame {self.delay_s * 1000:g} ms later, one way")
        return f"{self.name} ({', '.join(done)})"


SHAPES: Final = (
    Shape("20mbit", rate="20mbit"),
    Shape("2ms", delay_s=0.002),
    Shape("50mbit", rate="50mbit"),
    Shape("5ms", delay_s=0.005),
)


def shape_of(number: int) -> Shape:
    """Of that round."""
    return SHAPES[number % len(SHAPES)]


@contextlib.contextmanager
def shaped(lab: Lab, switch: str, shape: Shape) -> Iterator[None]:
    """All hosts of the lab, as long as this lasts."""
    with contextlib.ExitStack() as undone:
        if shape.delay_s is not None:
            undone.enter_context(Delay(switch, shape.delay_s))
        if shape.rate is not None:
            # A burst of one packet: else a token's payload would pass as if there were no limit.
            limits = ("tbf", "rate", shape.rate, "burst", "1600", "latency", "200ms")
            for host in lab.hosts.values():
                device = ("dev", "eth0", "root")
                run("tc", "-n", host.namespace, "qdisc", "add", *device, *limits)
                undone.callback(run, "tc", "-n", host.namespace, "qdisc", "del", *device)
        yield
