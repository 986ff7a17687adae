"""What pocket is taught, read from topics/*.txt: intents with an answer and many ways to ask for it.

The format is described in README.md. Knows nothing of how phrasings are turned into questions.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent / "topics"
ACTION, PROBLEM, QUESTION, KEYWORDS = "!", "~", "?", "*"
KINDS: Final = (ACTION, PROBLEM, QUESTION, KEYWORDS)
_HEAD: Final = re.compile(r"\[([a-z0-9-]+)\]")
_NOT_INTENTS: Final = ("slots", "general", "followups")


class BadTopic(Exception):
    """A line of a topic file that cannot be understood."""


@dataclass(frozen=True, slots=True)
class Phrasing:
    """One line: a template and what kind of sentence it is."""

    kind: str
    template: str


@dataclass(slots=True)
class Intent:
    """Something people ask for, with the answer to it."""

    name: str
    topic: str
    """The file's name."""
    answers: list[str] = field(default_factory=list)
    phrasings: list[Phrasing] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class FollowUp:
    """A second turn that only the first one explains."""

    after: tuple[str, ...]
    """Intents; empty for any."""
    intent: str
    templates: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Topics:
    """Everything in the folder."""

    intents: tuple[Intent, ...]
    slots: dict[str, tuple[str, ...]]
    followups: tuple[FollowUp, ...]

    def named(self, name: str) -> Intent:
        return next(intent for intent in self.intents if intent.name == name)


def load(folder: Path = FOLDER) -> Topics:
    intents: list[Intent] = []
    for path in sorted(folder.glob("*.txt")):
        if path.stem not in _NOT_INTENTS:
            intents += _intents(path)
    names = [intent.name for intent in intents]
    if len(set(names)) != len(names):
        raise BadTopic(f"two intents have one name: {sorted({n for n in names if names.count(n) > 1})}")
    slots = {**_slots(folder / "slots.txt"), **_slots(folder / "general.txt")}
    return Topics(tuple(intents), slots, tuple(_followups(folder / "followups.txt", set(names))))


def _lines(path: Path) -> list[tuple[str, str]]:
    """The lines that say something, each with where it stands."""
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    return [(f"{path.name}:{n}", line.strip()) for n, line in lines if line.strip() and line[0] != "#"]


def _intents(path: Path) -> list[Intent]:
    found: list[Intent] = []
    for where, line in _lines(path):
        head = _HEAD.fullmatch(line)
        if head is not None:
            found.append(Intent(head[1], path.stem))
            continue
        mark, _, text = line.partition(" ")
        if not found or not text.strip():
            raise BadTopic(f"{where}: {line}")
        if mark == "=":
            found[-1].answers.append(text.strip())
        elif mark in KINDS:
            found[-1].phrasings.append(Phrasing(mark, text.strip()))
        else:
            raise BadTopic(f"{where}: {line}")
    return found


def _slots(path: Path) -> dict[str, tuple[str, ...]]:
    found = {}
    for where, line in _lines(path):
        name, colon, values = line.partition(":")
        if not colon:
            raise BadTopic(f"{where}: {line}")
        found[name.strip()] = tuple(value.strip() for value in values.split("|"))
    return found


def _followups(path: Path, names: set[str]) -> list[FollowUp]:
    found: list[FollowUp] = []
    after: tuple[str, ...] = ()
    for where, line in _lines(path):
        if line.startswith("after "):
            words = line.split()[1:]
            after = () if words == ["*"] else tuple(words)
            if not set(after) <= names:
                raise BadTopic(f"{where}: no intent {sorted(set(after) - names)}")
            continue
        intent, colon, templates = line.partition(":")
        if not colon or intent not in names:
            raise BadTopic(f"{where}: {line}")
        found.append(FollowUp(after, intent, tuple(_split(templates))))
    return found


def _split(text: str) -> list[str]:
    """At the bars outside parentheses."""
    parts, depth = [""], 0
    for char in text.strip():
        depth += (char == "(") - (char == ")")
        if char == "|" and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts]
