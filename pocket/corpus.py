"""The corpus: conversations of one or two turns, each question with the intent that it asks for.

`python -m pocket.corpus` prints some. The same seed gives the same conversations. Knows nothing of
tokens.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from pocket.phrasing import Phraser
from pocket.topics import Intent, Phrasing, Topics, load

# How often a topic's intents are asked for, where it is not once: they have the widest language.
_WEIGHTS: Final = {
    "beyond": 2.6,
    "smalltalk": 1.2,
    "later": 0.9,
    "words": 0.8,
    "exit-codes": 0.8,
    "plan": 0.9,
    "bench": 0.8,
    "rdma-check": 0.7,
    "fetch": 0.9,
}
_INTENT_WEIGHTS: Final = (
    {"beyond-general": 2.0, "beyond-facts": 1.5, "later-unknown": 0.5}
    | {"unload": 2.2, "ps": 1.8, "ps-memory": 1.3, "discover": 1.5, "discover-nobody": 1.5}
    | {"serve-start": 1.5, "serve-memory": 1.2, "run": 1.6, "run-split": 1.2, "cluster-quick": 1.3}
    | {"plan": 1.3, "plan-fits": 1.1, "plan-suggest": 1.2, "bench": 1.4, "rdma-check": 1.3, "rdma": 1.3}
)
TWO_TURNS: Final = 0.16
HELD_OUT: Final = 8
"""Of every so many phrasings of an intent, one is kept back when generalization is measured."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A question, in lower case, and the intent that answers it."""

    question: str
    intent: Intent
    answer: str


class Corpus:
    """Draws conversations."""

    def __init__(self, known: Topics, *, hold_out: bool = False) -> None:
        self.known = known
        self.phraser = Phraser(known)
        self._weights = [_weight(intent) for intent in known.intents]
        self._by_name = {intent.name: intent for intent in known.intents}
        self._lines: Mapping[str, Sequence[Phrasing]] = {
            intent.name: _kept(intent) if hold_out else intent.phrasings for intent in known.intents
        }

    def conversation(self, rng: Random) -> list[Turn]:
        if rng.random() >= TWO_TURNS:
            return [self.turn(rng)]
        first = self.turn(rng)
        fitting = [f for f in self.known.followups if not f.after or first.intent.name in f.after]
        if fitting and rng.random() < 0.5:
            special = [f for f in fitting if f.after] or fitting
            chosen = rng.choice(special if rng.random() < 0.75 else fitting)
            question = self.phraser.followup(rng.choice(chosen.templates), rng)
            return [first, _turn(question, self._by_name[chosen.intent], rng)]
        return [first, self.turn(rng)]

    def turn(self, rng: Random) -> Turn:
        intent = rng.choices(self.known.intents, self._weights)[0]
        return _turn(self.phraser.question(intent, rng, self._lines[intent.name]), intent, rng)

    def held_out(self, rng: Random) -> Iterator[Turn]:
        """Each phrasing that was kept back, in a frame and with no slip."""
        for intent in self.known.intents:
            for phrasing in intent.phrasings:
                if phrasing not in self._lines[intent.name]:
                    framed = intent.topic not in ("smalltalk", "beyond")
                    yield _turn(self.phraser.clean(phrasing, rng, framed=framed), intent, rng)


def _turn(question: str, intent: Intent, rng: Random) -> Turn:
    return Turn(question, intent, rng.choice(intent.answers))


def _weight(intent: Intent) -> float:
    # What can be asked in many ways is asked more often.
    breadth = max(0.7, min(1.6, len(intent.phrasings) / 12))
    return breadth * _WEIGHTS.get(intent.topic, 1.0) * _INTENT_WEIGHTS.get(intent.name, 1.0)


def _kept(intent: Intent) -> list[Phrasing]:
    if len(intent.phrasings) < HELD_OUT // 2:
        return intent.phrasings
    return [line for i, line in enumerate(intent.phrasings) if i % HELD_OUT != HELD_OUT // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description="Print some of the corpus that pocket learns from.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--intent", help="only questions for this one")
    given = parser.parse_args()
    corpus, rng = Corpus(load()), Random(given.seed)
    for _ in range(given.count):
        if given.intent:
            print(corpus.phraser.question(corpus.known.named(given.intent), rng))
            continue
        for turn in corpus.conversation(rng):
            print(f"[{turn.intent.name}] {turn.question}")
            print(f"    {turn.answer}")


if __name__ == "__main__":
    main()
