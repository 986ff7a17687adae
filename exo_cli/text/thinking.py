"""What a model thinks apart from what it answers, by the tags of its family, as the text comes.

The tags themselves, and the space right after each, belong to neither part. Thinking opens at the
start of an answer only, so that an answer may speak of the tags; families that mark channels by
special tokens may open it again. A tag that is cut by the end of the text is text. Works on text, so
that a tag may be one token or many; knows nothing of ids and of stop strings (put those after it, on
the answer).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

from exo_cli.text.stops import Finder


class Part(Enum):
    THINKING = "thinking"
    ANSWER = "answer"


@dataclass(frozen=True, slots=True)
class ThinkingStyle:
    """How a family marks its thinking."""

    open: str
    close: str
    dropped: tuple[str, ...] = ()
    """Marks around the answer, which are not part of it."""
    needs: tuple[str, ...] = ()
    """Tokens of the vocabulary that tell the family; the tags themselves if none."""

    @property
    def marks(self) -> tuple[str, ...]:
        return self.needs or (self.open, self.close)

    @property
    def anywhere(self) -> bool:
        """Whether thinking may open after the answer has begun."""
        return bool(self.dropped)

    def opened_by(self, prompt: str) -> bool:
        """Whether the prompt itself ends inside thinking: some templates open it."""
        return prompt.rstrip().endswith(self.open)


STYLES: Final = (
    ThinkingStyle("<think>", "</think>"),
    ThinkingStyle("<thinking>", "</thinking>"),
    ThinkingStyle("[THINK]", "[/THINK]"),
    ThinkingStyle("<seed:think>", "</seed:think>"),
    ThinkingStyle("<longcat_think>", "</longcat_think>"),
    ThinkingStyle("<|think:start|>", "<|think:end|>"),
    ThinkingStyle("◁think▷", "◁/think▷"),
    ThinkingStyle(
        "<|channel|>analysis<|message|>",
        "<|end|>",
        dropped=(
            *("<|start|>assistant", "<|channel|>final<|message|>", "<|channel|>commentary<|message|>"),
            "<|return|>",
        ),
        needs=("<|channel|>", "<|message|>", "<|start|>", "<|end|>"),
    ),
    ThinkingStyle("<|channel>thought", "<channel|>", needs=("<|channel>", "<channel|>")),
    ThinkingStyle(
        "<|open|>think<|sep|>",
        "<|close|>think<|sep|>",
        dropped=("<|open|>response<|sep|>", "<|close|>response<|sep|>", "<|close|>message<|sep|>"),
        needs=("<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"),
    ),
)


def detect(tokens: frozenset[str] | set[str], template: str | None) -> ThinkingStyle | None:
    """The style whose marks are tokens of the vocabulary, or in the template; best of all in both."""

    def spoken(style: ThinkingStyle) -> bool:
        return template is not None and all(mark in template for mark in style.marks)

    known = [style for style in STYLES if tokens.issuperset(style.marks)]
    return next(filter(spoken, known), known[0] if known else next(filter(spoken, STYLES), None))


class ThinkingSplitter:
    """Splits one answer. `thinking` says whether the prompt has opened it already."""

    def __init__(self, style: ThinkingStyle | None, *, thinking: bool = False) -> None:
        self._style = style
        self._part = Part.THINKING if style is not None and thinking else Part.ANSWER
        self._skip_space = thinking
        self._blank = ""
        self._begun = False
        self._finder = self._new_finder()

    @property
    def part(self) -> Part:
        return self._part

    def feed(self, text: str) -> list[tuple[Part, str]]:
        """The pieces that are now sure, each with its part; none is empty."""
        return _joined(self._split(text))

    def flush(self) -> list[tuple[Part, str]]:
        """What was held back at the end of the text."""
        pieces = [*self._piece(self._finder.flush()), *self._release()]
        return _joined(iter(pieces))

    def _split(self, text: str) -> Iterator[tuple[Part, str]]:
        while text:
            if self._style is None or (self._begun and not self._style.anywhere):
                yield from self._piece(self._finder.flush() + text)
                return
            sure, mark, text_after = self._finder.feed(text)
            yield from self._piece(sure)
            if mark is not None and self._may_mark(mark):
                self._turn(mark)
            elif mark is not None:
                yield from self._piece(mark)
            elif self._begun and not self._style.anywhere:
                yield from self._piece(self._finder.flush())
            text = text_after

    def _may_mark(self, mark: str) -> bool:
        style = self._style
        return style is not None and not (mark == style.open and self._begun and not style.anywhere)

    def _turn(self, mark: str) -> None:
        style = self._style
        assert style is not None
        self._blank, self._skip_space = "", True
        if mark == style.open:
            self._part = Part.THINKING
        elif mark == style.close and self._part is Part.THINKING:
            self._part, self._begun = Part.ANSWER, not style.anywhere
        self._finder = self._new_finder()

    def _new_finder(self) -> Finder:
        if self._style is None:
            return Finder(())
        if self._part is Part.THINKING:
            return Finder((self._style.close,))
        return Finder((self._style.open, *self._style.dropped))

    def _piece(self, text: str) -> Iterator[tuple[Part, str]]:
        """`text` of the present part, without the space after a tag, and with none sure before words."""
        if self._skip_space:
            text = text.lstrip()
        if not text:
            return
        if self._part is Part.ANSWER and not self._begun:
            if text.isspace():
                self._blank += text
                return
            self._begun = True
            yield from self._release()
        self._skip_space = False
        yield self._part, text

    def _release(self) -> Iterator[tuple[Part, str]]:
        blank, self._blank = self._blank, ""
        if blank:
            yield Part.ANSWER, blank


def _joined(pieces: Iterator[tuple[Part, str]]) -> list[tuple[Part, str]]:
    found: list[tuple[Part, str]] = []
    for part, text in pieces:
        if found and found[-1][0] is part:
            found[-1] = (part, found[-1][1] + text)
        else:
            found.append((part, text))
    return found
