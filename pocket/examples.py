"""Conversations as rows of ids: what to read, what to predict, and how much each prediction counts.

The first tokens of an answer decide which answer it is; the rest follows from them. So most examples
end soon after that decision, and the time goes into more questions. Knows nothing of the network.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, Final

import numpy as np
from tokenizers import Tokenizer

from pocket.corpus import Corpus, Turn
from pocket.vocabulary import end_id, prompt

ROWS, COLUMNS = 32, 128
SAID, ASKED = 1792, 768
"""How many predictions, and how many guesses of an intent, a batch has at most."""
WHOLE: Final = 0.12
"""The share of examples with the whole answer."""
_AFTER_DECISION: Final = 3
_QUESTION_WEIGHT: Final = 0.1
_KNOWN_WEIGHT: Final = 0.3
"""For what follows from the tokens before it."""
NOTHING: Final = -100

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Batch:
    """Several documents a row, which `document` tells apart; places are counted over all rows."""

    ids: Array
    position: Array
    document: Array
    said_at: Array
    """Where something is predicted, then what, and how much it counts (nothing: it only fills up)."""
    said: Array
    said_weight: Array
    asked_at: Array
    """Where an answer begins and goes on until it is decided, then which intent it is of."""
    asked: Array
    tokens: int
    examples: int


@dataclass(frozen=True, slots=True)
class _Example:
    ids: list[int]
    weights: list[float]
    asked: list[tuple[int, int]]
    """Where the intent has to be known, and which it is."""


class Examples:
    """An endless stream of batches."""

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer) -> None:
        self.corpus, self.tokenizer = corpus, tokenizer
        end = end_id(tokenizer)
        self.numbers = {intent.name: n for n, intent in enumerate(corpus.known.intents)}
        answers = {answer for intent in corpus.known.intents for answer in intent.answers}
        self._answers = {answer: [*self.encode(answer), end] for answer in sorted(answers)}
        self._decided = _decisions(self._answers)

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def decided(self, answer: str) -> int:
        """The first token of an answer that tells it from all others."""
        return self._decided[answer]

    def batches(self, rng: Random) -> Iterator[Batch]:
        waiting: list[_Example] = []
        while True:
            while len(waiting) < 400:
                waiting.append(self._example(self.corpus.conversation(rng), rng))
            rows: list[list[_Example]] = [[] for _ in range(ROWS)]
            free, left, misses = [COLUMNS] * ROWS, [], 0
            for example in waiting:
                row = next((r for r in range(ROWS) if free[r] >= len(example.ids)), None)
                if row is None or misses > 60:
                    misses += 1
                    left.append(example)
                    continue
                rows[row].append(example)
                free[row] -= len(example.ids)
            waiting = left
            yield _packed(rows, rng)

    def _example(self, turns: list[Turn], rng: Random) -> _Example:
        ids: list[int] = []
        weights: list[float] = []
        asked = []
        for n, turn in enumerate(turns):
            question = self.encode(prompt([turn]))
            answer, decided = self._answers[turn.answer], self._decided[turn.answer]
            if n == len(turns) - 1 and rng.random() >= WHOLE:
                answer = answer[: decided + _AFTER_DECISION]
            ids += question
            weights += [_QUESTION_WEIGHT] * len(question)
            # Known where the answer begins, and still known until it has been decided.
            start, number = len(ids) - 1, self.numbers[turn.intent.name]
            asked += [(start + k, number) for k in range(min(decided + 1, len(answer)))]
            ids += answer
            weights += [1.0 if i <= decided else _KNOWN_WEIGHT for i in range(len(answer))]
        return _Example(ids[:COLUMNS], weights[:COLUMNS], [spot for spot in asked if spot[0] < COLUMNS])


def _decisions(answers: dict[str, list[int]]) -> dict[str, int]:
    """For each answer, the first token that tells it from all others."""
    found = {}
    for text, ids in answers.items():
        others = [other for name, other in answers.items() if name != text]
        found[text] = next(n for n in range(len(ids)) if all(o[: n + 1] != ids[: n + 1] for o in others))
    return found


def _packed(rows: list[list[_Example]], rng: Random) -> Batch:
    shape = (ROWS, COLUMNS)
    ids, position, document = (np.zeros(shape, np.int64) for _ in range(3))
    document -= 1
    said: list[tuple[int, int, float]] = []
    asked: list[tuple[int, int]] = []
    for r, examples in enumerate(rows):
        at = 0
        for d, example in enumerate(examples):
            n = len(example.ids)
            ids[r, at : at + n] = example.ids
            document[r, at : at + n] = d
            position[r, at : at + n] = np.arange(n)
            here = r * COLUMNS + at
            said += [(here + i, example.ids[i + 1], example.weights[i + 1]) for i in range(n - 1)]
            asked += [(here + spot, number) for spot, number in example.asked]
            at += n
    # What counts most first; of the questions' words, some.
    rng.shuffle(said)
    said = sorted(said, key=lambda entry: -entry[2])[:SAID]
    asked = asked[:ASKED]
    said += [(0, 0, 0.0)] * (SAID - len(said))
    asked += [(0, NOTHING)] * (ASKED - len(asked))
    return Batch(
        ids,
        position,
        document,
        np.array([place for place, _, _ in said], np.int64),
        np.array([token for _, token, _ in said], np.int64),
        np.array([weight for _, _, weight in said], np.float32),
        np.array([place for place, _ in asked], np.int64),
        np.array([number for _, number in asked], np.int64),
        int((document >= 0).sum()),
        sum(map(len, rows)),
    )
