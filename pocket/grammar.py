"""Templates such as `(see|list) the nodes of {host}`: choices, which may be empty, and slots.

Knows nothing of topics or of language.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Final

_SLOT: Final = re.compile(r"\{([a-z]+)\}")
_INNERMOST: Final = re.compile(r"\(([^()]*)\)")
_SYLLABLES: Final = tuple(first + second for first in "bdfgklmnprstvz" for second in "aeio")


def expand(template: str, slots: Mapping[str, Sequence[str]], rng: Random) -> str:
    """One of the texts that the template stands for."""
    text = template
    while (found := _INNERMOST.search(text)) is not None:
        text = text[: found.start()] + rng.choice(found[1].split("|")) + text[found.end() :]
    text = _SLOT.sub(lambda slot: _value(slot[1], slots, rng), text)
    return " ".join(text.split())


def shortest(template: str) -> str:
    """The text with the first of each choice, slots left as they are."""
    text = template
    while (found := _INNERMOST.search(text)) is not None:
        text = text[: found.start()] + found[1].split("|")[0] + text[found.end() :]
    return " ".join(text.split())


def slots_of(template: str) -> Iterator[str]:
    yield from _SLOT.findall(template)


def invented_name(rng: Random) -> str:
    """A word that nobody has heard: names of hosts are like that."""
    word = "".join(rng.choice(_SYLLABLES) for _ in range(rng.randint(2, 4)))
    return word + rng.choice(("", "", "", "1", "2", "-01", ".local", "-mac", "box"))


def _value(name: str, slots: Mapping[str, Sequence[str]], rng: Random) -> str:
    if name == "host":
        # A machine may be called anything.
        kind = rng.random()
        if kind < 0.25:
            return invented_name(rng)
        if kind < 0.45:
            return rng.choice(slots.get("noun", slots[name]))
    return rng.choice(slots[name])
