"""A chat as a state: its messages, and what a typed line means. Pure; knows no terminal and no model.

A line that begins with a slash and a word is a command. A message of several lines stands between two
lines of three quotes, or each of its lines but the last ends with a backslash.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

QUOTES: Final = '"""'
HELP: Final = """\
/help           this list
/clear          forget the conversation
/system TEXT    say what the model is to be; without TEXT, show it
/save FILE      write the conversation as JSON
\"""             begin, and end, a message of several lines
Ctrl-C          stop the answer
Ctrl-D          leave"""

Verb = Literal["help", "clear", "system", "save"]
_VERBS: Final[tuple[Verb, ...]] = ("help", "clear", "system", "save")
_COMMAND: Final = re.compile(r"/([a-z?]+)(?:\s+(.*))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class More:
    """The message goes on."""


@dataclass(frozen=True, slots=True)
class Command:
    """Something for the chat itself."""

    verb: Verb
    argument: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """It looks like a command and is none."""

    word: str


@dataclass(frozen=True, slots=True)
class Say:
    """A message for the model."""

    text: str


Meaning = More | Command | Unknown | Say


@dataclass(slots=True)
class Lines:
    """Puts typed lines together."""

    _pending: list[str] = field(default_factory=list)
    _quoted: bool = False

    def feed(self, line: str) -> Meaning:
        if self._quoted:
            return self._in_quotes(line)
        if not self._pending:
            stripped = line.strip()
            found = _COMMAND.fullmatch(stripped)
            if found is not None:
                verb = next((verb for verb in _VERBS if verb == found[1]), None)
                return Unknown(f"/{found[1]}") if verb is None else Command(verb, (found[2] or "").strip())
            if stripped.startswith(QUOTES):
                self._quoted = True
                return self._in_quotes(stripped.removeprefix(QUOTES))
        if line.endswith("\\"):
            self._pending.append(line[:-1])
            return More()
        return self._say(line)

    def drop(self) -> bool:
        """Forget a message that was begun; whether there was one."""
        begun = bool(self._pending) or self._quoted
        self._pending, self._quoted = [], False
        return begun

    def _in_quotes(self, line: str) -> Meaning:
        if line.rstrip().endswith(QUOTES):
            self._quoted = False
            return self._say(line.rstrip().removesuffix(QUOTES), quoted=True)
        self._pending.append(line)
        return More()

    def _say(self, line: str, *, quoted: bool = False) -> Say:
        lines, self._pending = [*self._pending, line], []
        text = "\n".join(lines)
        return Say(text.strip("\n") if quoted else text)


@dataclass(slots=True)
class Chat:
    """The conversation."""

    system: str | None = None
    turns: list[dict[str, str]] = field(default_factory=list)

    def messages(self, *more: dict[str, str]) -> list[dict[str, str]]:
        """As a template wants them."""
        head = [{"role": "system", "content": self.system}] if self.system else []
        return [*head, *self.turns, *more]

    def add(self, question: str, answer: str) -> None:
        """A turn that happened; an answer that was stopped is what was said of it."""
        self.turns += [user(question), {"role": "assistant", "content": answer}]

    def clear(self) -> None:
        self.turns.clear()


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def one_question(text: str, system: str | None) -> Sequence[dict[str, str]]:
    """The messages of a single question."""
    return Chat(system).messages(user(text))
