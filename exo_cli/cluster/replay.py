"""Which packets were heard before. Bounded, pure, and ignorant of what they mean.

A sender is (node id, instance); its sequence number may arrive a little out of order, because the
same node sends on several interfaces. An instance of an older boot than one that was heard is a
recording.
"""

from collections import OrderedDict
from dataclasses import dataclass

WINDOW = 64


@dataclass(slots=True)
class _Heard:
    highest: int
    mask: int
    """Bit i: highest - i was heard."""


class ReplayGuard:
    """Accepts each (sender, sequence) once."""

    def __init__(self, capacity: int = 4096) -> None:
        self._capacity = capacity
        self._heard: OrderedDict[tuple[bytes, bytes], _Heard] = OrderedDict()
        self._boots: OrderedDict[bytes, int] = OrderedDict()

    def is_newest(self, node_id: bytes, instance: bytes, seq: int) -> bool:
        """Whether nothing later was heard of this sender; asked before `accept`."""
        heard = self._heard.get((node_id, instance))
        return heard is None or seq > heard.highest

    def accept(self, node_id: bytes, instance: bytes, boot: int, seq: int) -> bool:
        """Whether this packet is new; remembers it if so."""
        if boot < self._boots.get(node_id, 0):
            return False
        sender = (node_id, instance)
        heard = self._heard.get(sender)
        if heard is None:
            heard = self._heard[sender] = _Heard(seq, 1)
        elif seq > heard.highest:
            shift = seq - heard.highest
            heard.mask = 1 if shift >= WINDOW else ((heard.mask << shift) | 1) & ((1 << WINDOW) - 1)
            heard.highest = seq
        else:
            bit = heard.highest - seq
            if bit >= WINDOW or heard.mask >> bit & 1:
                return False
            heard.mask |= 1 << bit
        self._boots[node_id] = boot
        self._heard.move_to_end(sender)
        self._boots.move_to_end(node_id)
        if len(self._heard) > self._capacity:
            self._heard.popitem(last=False)
        if len(self._boots) > self._capacity:
            self._boots.popitem(last=False)
        return True
