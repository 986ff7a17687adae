"""How much of a prompt goes through the chain at once, learned from how long it took. Pure.

The cost of a chunk grows faster than its length, and more the further into the prompt it lies, so a trial
at load bounds it and what really happens decides. Knows nothing of requests.
"""

from dataclasses import dataclass, field
from typing import Final

TARGET_S: Final = 0.35
"""A chunk on its way through the whole chain; the bound on one stage's step is 0.5 s."""
FIRST: Final = 64
_EASY: Final = 0.25
"""Of the target: then twice as long a chunk meets it too, even where cost grows with the square."""


@dataclass(slots=True)
class Pace:
    """The length of the next chunk, never above `most`."""

    most: int
    tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = min(self.most, FIRST)

    def took(self, tokens: int, seconds: float) -> None:
        """A chunk of so many tokens was that long under way."""
        if seconds > TARGET_S:
            self.tokens = max(1, min(self.tokens, tokens // 2))
        elif seconds < TARGET_S * _EASY and tokens >= self.tokens:
            self.tokens = min(self.most, self.tokens * 2)
