"""Stop strings in a stream: what may still become one is held back, everything else passes at once.

The rule does not depend on how the text is cut into pieces: the text ends at the first character
with which any stop string is complete; of several that end there the longest counts; what stands
before it is the answer. One automaton (Aho and Corasick) looks at each character once; its state is
the longest end of the text that may still grow into a stop string, so what is held is the least
that can be held. Knows nothing of tokens.
"""

from collections import deque
from collections.abc import Iterable
from typing import Final

from exo_cli.errors import UsageProblem

MAX_STOPS: Final = 64
MAX_STOP_CHARACTERS: Final = 4096


class Finder:
    """Finds the first of some words in a stream. `feed` may go on after a hit, as on a new text."""

    def __init__(self, words: Iterable[str]) -> None:
        self._words = tuple(dict.fromkeys(words))
        self._next: list[dict[str, int]] = [{}]
        self._depth = [0]
        self._link = [0]
        self._found: list[str | None] = [None]
        for word in self._words:
            self._add(word)
        self._connect()
        self._state = 0
        self._held = ""

    def feed(self, text: str) -> tuple[str, str | None, str]:
        """The text that is now sure not to be a word, the word found if any, and the unread rest."""
        if not self._words:
            return text, None, ""
        text = self._held + text
        for index in range(len(self._held), len(text)):
            self._state = self._step(self._state, text[index])
            word = self._found[self._state]
            if word is not None:
                self._state, self._held = 0, ""
                return text[: index + 1 - len(word)], word, text[index + 1 :]
        sure = len(text) - self._depth[self._state]
        self._held = text[sure:]
        return text[:sure], None, ""

    def flush(self) -> str:
        """What was held back, now that nothing follows."""
        held, self._held, self._state = self._held, "", 0
        return held

    def _add(self, word: str) -> None:
        state = 0
        for char in word:
            if char not in self._next[state]:
                self._next[state][char] = len(self._next)
                self._next.append({})
                self._depth.append(self._depth[state] + 1)
                self._link.append(0)
                self._found.append(None)
            state = self._next[state][char]
        self._found[state] = word

    def _connect(self) -> None:
        """To every state the longest other state that ends the same way."""
        queue = deque(self._next[0].values())
        while queue:
            state = queue.popleft()
            for char, after in self._next[state].items():
                self._link[after] = self._step(self._link[state], char)
                queue.append(after)
            if self._found[state] is None:
                self._found[state] = self._found[self._link[state]]

    def _step(self, state: int, char: str) -> int:
        while char not in self._next[state]:
            if state == 0:
                return 0
            state = self._link[state]
        return self._next[state][char]


class StopStrings:
    """Passes text on until a stop string is complete; the stop string and all after it are dropped."""

    def __init__(self, stops: Iterable[str]) -> None:
        wanted = tuple(stops)
        if len(wanted) > MAX_STOPS:
            raise UsageProblem(f"{len(wanted)} stop strings were given; at most {MAX_STOPS} are possible")
        if not all(wanted):
            raise UsageProblem("a stop string is empty, and would stop every answer before its first word")
        if any(len(stop) > MAX_STOP_CHARACTERS for stop in wanted):
            raise UsageProblem(f"a stop string is longer than {MAX_STOP_CHARACTERS} characters")
        self._finder = Finder(wanted)
        self.hit: str | None = None
        """The stop string that ended the text, once one has."""

    def feed(self, text: str) -> str:
        """What may be shown now; nothing any more after a hit."""
        if self.hit is not None:
            return ""
        sure, self.hit, _ = self._finder.feed(text)
        return sure

    def flush(self) -> str:
        """What was held back at the end of the text."""
        return "" if self.hit is not None else self._finder.flush()
