"""From a phrasing to what somebody might really type: frames, synonyms, chatter around it, slips.

Everything is drawn from one generator of random numbers, so the same seed gives the same questions.
Knows nothing of answers.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Final

from pocket import topics
from pocket.grammar import expand
from pocket.topics import Intent, Phrasing, Topics

_HERE: Final = Path(__file__).parent
_SECTIONS: Final = {
    topics.ACTION: "action",
    topics.PROBLEM: "problem",
    topics.QUESTION: "question",
    topics.KEYWORDS: "keywords",
}
_PLAIN_TOPICS: Final = ("smalltalk", "beyond")
"""Frames made for a cluster's verbs do not fit around these."""
_STOP_WORDS: Final = frozenset(
    (
        *("a", "an", "the", "is", "are", "am", "do", "does", "did", "i", "my", "me", "to", "of", "in", "on"),
        *("for", "it", "that", "this", "with", "can", "could", "would", "should", "please", "how", "be"),
        *("will", "and", "so", "there", "you", "your"),
    )
)
_FILLERS: Final = (
    *("actually", "just", "really", "currently", "somehow", "maybe", "again", "still", "simply", "also"),
    *("quickly", "basically", "exactly", "now", "like", "even", "here", "somewhere", "properly", "safely"),
    *("always", "often", "yet", "already", "manually", "temporarily", "directly", "usually", "remotely"),
)
_BEFORE_PLAIN: Final = ("hey,", "hi,", "ok,", "so", "please,", "and", "tell me:", "pocket,")
_SHORT: Final = {
    "you": "u",
    "your": "ur",
    "are": "r",
    "please": "pls",
    "because": "bc",
    "with": "w/",
    "without": "w/o",
    "and": "&",
    "to": "2",
    "thanks": "thx",
    "what": "wat",
    "my": "mah",
    "going": "goin",
    "want to": "wanna",
    "going to": "gonna",
    "computer": "comp",
    "command": "cmd",
    "directory": "dir",
    "message": "msg",
    "machine": "mach",
    "machines": "machs",
    "parameters": "params",
    "number": "nr",
    "memory": "mem",
}
_KEYS: Final = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


class Phraser:
    """Makes questions for intents."""

    def __init__(self, known: Topics) -> None:
        self._slots = known.slots
        self._frames = _frames(_HERE / "frames.txt")
        self._synonyms = _synonyms(_HERE / "synonyms.txt")
        longest_first = sorted(self._synonyms, key=lambda word: (-len(word), word))
        self._words = re.compile(r"(?<![\w.-])(" + "|".join(map(re.escape, longest_first)) + r")(?![\w'-])")

    def question(self, intent: Intent, rng: Random, lines: Sequence[Phrasing] | None = None) -> str:
        """Something that asks for the intent, in lower case as the chat template writes it."""
        lines = lines or intent.phrasings
        plain = intent.topic in _PLAIN_TOPICS
        text = self.clean(rng.choice(lines), rng, framed=not plain)
        if not plain:
            if rng.random() < 0.07:
                text = (
                    f"{text}{rng.choice(('. ', ', ', '? ', ' - ', ' '))}{self.clean(rng.choice(lines), rng)}"
                )
            if rng.random() < 0.75:
                text = self.reword(text, rng, rng.choice((0.15, 0.3, 0.5)))
            if rng.random() < 0.14:
                text = f"{self._draw('lead', rng)} {text}"
            if rng.random() < 0.08:
                text = f"{text}{rng.choice((' ', ', ', '. ', '? '))}{self._draw('tail', rng)}"
        elif rng.random() < 0.2:
            text = f"{rng.choice(_BEFORE_PLAIN)} {text}"
        return slip(text, rng, gently=plain)

    def followup(self, template: str, rng: Random) -> str:
        return slip(expand(template, self._slots, rng), rng, gently=True)

    def clean(self, phrasing: Phrasing, rng: Random, *, framed: bool = True) -> str:
        """The phrasing in a frame, before any slip."""
        text = expand(phrasing.template, self._slots, rng)
        if framed:
            text = self._draw(_SECTIONS[phrasing.kind], rng).replace("{}", text)
        return text.lower()

    def reword(self, text: str, rng: Random, share: float) -> str:
        """Some of the words replaced by others of the same meaning."""

        def other(found: re.Match[str]) -> str:
            return rng.choice(self._synonyms[found[1]]) if rng.random() < share else found[1]

        return self._words.sub(other, text)

    def _draw(self, section: str, rng: Random) -> str:
        frames, weights = self._frames[section]
        return expand(rng.choices(frames, weights)[0], self._slots, rng).replace("{ }", "{}").lower()


def slip(text: str, rng: Random, *, gently: bool = False) -> str:
    """The text as people type: marks left out, words dropped, letters swapped."""
    for chance, change in _SLIPS:
        if rng.random() < (chance / 3 if gently else chance):
            text = change(text, rng)
    end = rng.random()
    if end < 0.42 and not text.endswith((".", "?", "!")):
        text += "?"
    elif end < 0.5:
        text += rng.choice((".", "!", "??", "...", " ?", "?!"))
    return " ".join(text.split())


def _no_apostrophe(text: str, rng: Random) -> str:
    return text.replace("'", "")


def _no_marks(text: str, rng: Random) -> str:
    return re.sub(r"[,:;.!?]+(?= |$)", "", text)


def _telegram(text: str, rng: Random) -> str:
    """Without the small words, as in a search box."""
    kept = [word for word in text.split() if word not in _STOP_WORDS]
    return " ".join(kept) if kept else text


def _drop_words(text: str, rng: Random) -> str:
    words = text.split()
    if len(words) < 5:
        return text
    return " ".join(word for word in words if rng.random() > 0.08)


def _filler(text: str, rng: Random) -> str:
    words = text.split()
    words.insert(rng.randint(0, len(words)), rng.choice(_FILLERS))
    return " ".join(words)


def _shorthand(text: str, rng: Random) -> str:
    return " ".join(_SHORT.get(word, word) if rng.random() < 0.7 else word for word in text.split())


def _shuffle(text: str, rng: Random) -> str:
    """The second part before the first."""
    words = text.split()
    at = rng.randint(0, len(words))
    return " ".join(words[at:] + words[:at])


def _typos(text: str, rng: Random) -> str:
    for _ in range(1 if rng.random() < 0.7 or len(text) < 20 else 2):
        text = _typo(text, rng)
    return text


def _typo(text: str, rng: Random) -> str:
    places = [i for i in range(len(text) - 1) if text[i].isalpha() and text[i + 1].isalpha()]
    if not places:
        return text
    at = rng.choice(places)
    match rng.randrange(4):
        case 0:
            return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
        case 1:
            return text[:at] + text[at + 1 :]
        case 2:
            return text[:at] + text[at] + text[at:]
        case _:
            row = next((row for row in _KEYS if text[at] in row), None)
            if row is None:
                return text
            near = row[max(0, row.index(text[at]) - 1) : row.index(text[at]) + 2]
            return text[:at] + rng.choice(near) + text[at + 1 :]


_SLIPS: Final[tuple[tuple[float, Callable[[str, Random], str]], ...]] = (
    (0.05, _telegram),
    (0.06, _filler),
    (0.06, _drop_words),
    (0.02, _shuffle),
    (0.04, _shorthand),
    (0.20, _no_apostrophe),
    (0.30, _no_marks),
    (0.14, _typos),
)


def _frames(path: Path) -> dict[str, tuple[list[str], list[int]]]:
    """By section: the frames and their weights."""
    found: dict[str, tuple[list[str], list[int]]] = {}
    section = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        weight, _, frame = line.partition(" ")
        if not weight.isdigit():
            section = line
            found[section] = ([], [])
        else:
            found[section][0].append(frame)
            found[section][1].append(int(weight))
    return found


def _synonyms(path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            word, _, others = line.partition("=")
            found.setdefault(word.strip(), []).extend(part.strip() for part in others.split("|"))
    return found
