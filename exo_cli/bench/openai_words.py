"""Prompts of an exact size for servers that take text only: words whose size in tokens was measured.

Pure but for the questions it asks through `count`. Words cost what they cost whatever stands beside
them, since tokenizers do not merge over a space. Knows nothing of HTTP.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

# The more frequent in any text, the likelier one token of any vocabulary.
WORDS: Final = (
    *(
        "the",
        "of",
        "and",
        "to",
        "in",
        "is",
        "that",
        "for",
        "it",
        "as",
        "was",
        "with",
        "be",
        "by",
        "on",
        "not",
    ),
    *("this", "are", "or", "from", "at", "which", "but", "have", "an", "they", "you", "there", "one", "all"),
    *("we", "can", "has", "their", "been", "if", "more", "when", "will", "would", "who", "so", "no", "time"),
)
ENOUGH: Final = 8
"""Different words, for prompts that no server has met before."""
QUESTIONS: Final = 12
_HEAD: Final = "Words:"
"""Begins every text, so that each of the words follows a space."""
_COPIES: Final = 8

Count = Callable[[str], Awaitable[int | None]]
"""How many tokens a server says that a text has; None if it does not say."""


@dataclass(frozen=True, slots=True)
class Wording:
    """How to write a prompt."""

    words: tuple[str, ...] = WORDS
    cost: int = 1
    """Tokens of each word."""
    overhead: int = 0
    """Tokens of what stands around the words: the beginning, a chat's template."""
    exact: bool = False
    """Whether the sizes were measured."""

    def text(self, ids: Sequence[int]) -> str:
        """As many tokens as there are ids, or a few less; equal ids give equal words."""
        count = max((len(ids) - self.overhead) // self.cost, 1)
        return spell([self.words[each % len(self.words)] for each in ids[:count]])


def spell(words: Sequence[str]) -> str:
    return " ".join((_HEAD, *words))


async def calibrate(count: Count) -> Wording:
    """Ask for the sizes of a few texts: of two, where each word is one token."""
    overhead = await count(spell([]))
    if overhead is None:
        return Wording()
    plain: list[str] = []
    groups: list[tuple[str, ...]] = [WORDS]
    questions = 0
    while groups and len(plain) < ENOUGH and questions < QUESTIONS:
        group = groups.pop()
        size = await count(spell(group))
        questions += 1
        if size is None:
            return Wording()
        # No word is less than a token: so many tokens for so many words are one each.
        if size - overhead == len(group):
            plain += group
        elif len(group) > 1:
            middle = len(group) // 2
            groups += [group[middle:], group[:middle]]
    if plain:
        return Wording(tuple(plain), 1, overhead, exact=True)
    return await _of_equal_cost(count, overhead)


async def _of_equal_cost(count: Count, overhead: int) -> Wording:
    found: dict[int, list[str]] = {}
    for word in WORDS[:ENOUGH]:
        size = await count(spell([word] * _COPIES))
        if size is None:
            return Wording()
        cost, left = divmod(size - overhead, _COPIES)
        if cost > 0 and left == 0:
            found.setdefault(cost, []).append(word)
    if not found:
        return Wording()
    cost = max(found, key=lambda each: (len(found[each]), -each))
    return Wording(tuple(found[cost]), cost, overhead, exact=True)
