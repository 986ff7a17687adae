"""How much of the work a side can do that may be far slower than was hoped for. Pure.

A side that would take longer than its time does a part of the work, and its figures say of how much.
"""

from collections.abc import Sequence
from typing import Final

PROBE: Final = 4
"""The tokens of the first prompt, which says how fast the side is."""


def affordable(asked: int, probe_tokens: int, probe_s: float, left_s: float) -> int:
    """The longest prompt, `asked` at most, that is likely to be through in the time that is left."""
    likely = int(left_s * probe_tokens / max(probe_s, 1e-9))
    return max(min(asked, likely), min(asked, PROBE))


def rate(times: Sequence[float]) -> float | None:
    """Tokens a second of one answer, from the first token on."""
    return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else None


def rate_together(answers: Sequence[Sequence[float]]) -> float | None:
    """Of several answers together, while all of them were generating; the times of each one's tokens."""
    if not all(answers):
        return None
    begin, end = max(times[0] for times in answers), min(times[-1] for times in answers)
    inside = sum(begin < at <= end for times in answers for at in times)
    return inside / (end - begin) if end > begin and inside else None
