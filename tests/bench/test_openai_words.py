"""Prompts of an exact size, by tokenizers of several kinds: what a text has is counted by a real one."""

import asyncio
import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer

import exo_cli
from exo_cli.bench.openai_words import ENOUGH, QUESTIONS, WORDS, Count, Wording, calibrate

POCKET = Path(exo_cli.__file__).parent / "models" / "pocket" / "tokenizer.json"


class Asked:
    """Counts as `size` does, and how often it was asked."""

    def __init__(self, size: object) -> None:
        self.size = size
        self.questions = 0

    async def __call__(self, text: str) -> int | None:
        self.questions += 1
        assert callable(self.size)
        found = self.size(text)
        assert found is None or isinstance(found, int)
        return found


def made(count: Count) -> Wording:
    return asyncio.run(calibrate(count))


def ids(size: int, seed: int = 1) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(30_000) for _ in range(size)]


@pytest.mark.parametrize("around", [0, 17])
def test_a_real_tokenizer_counts_what_was_asked_for(around: int) -> None:
    tokenizer = Tokenizer.from_file(str(POCKET))
    count = Asked(lambda text: len(tokenizer.encode(text).ids) + around)
    wording = made(count)
    assert (wording.exact, wording.cost) == (True, 1)
    assert count.questions == 2
    for size in (around + 10, 64, 257, 1000):
        assert count.size(wording.text(ids(size))) == size  # type: ignore[operator]


def test_words_that_are_two_tokens_are_left_out() -> None:
    long = {"which", "their", "would", "been", "have"}
    count = Asked(lambda text: 3 + sum(2 if word in long else 1 for word in text.split()[1:]))
    wording = made(count)
    assert wording.exact
    assert wording.cost == 1
    assert wording.overhead == 3
    assert not long & set(wording.words)
    assert len(wording.words) >= ENOUGH
    assert count.questions <= QUESTIONS + 1
    assert count.size(wording.text(ids(100))) == 100  # type: ignore[operator]


def test_a_tokenizer_of_letters_gets_words_of_one_length() -> None:
    count = Asked(lambda text: 1 + len(text))
    wording = made(count)
    assert wording.exact
    assert len({len(word) for word in wording.words}) == 1
    assert wording.cost == len(wording.words[0]) + 1
    assert 0 <= 100 - count.size(wording.text(ids(100))) < wording.cost  # type: ignore[operator]
    assert count.questions <= 1 + QUESTIONS + ENOUGH


def test_a_server_that_does_not_count_gets_a_guess() -> None:
    assert made(Asked(lambda text: None)) == Wording()
    assert Wording().exact is False
    # Nor one that stops counting, or counts something else.
    sizes = iter([3, None])
    assert made(Asked(lambda text: next(sizes))).exact is False
    assert made(Asked(lambda text: 5)).exact is False


def test_equal_ids_give_equal_words_and_a_beginning_stays_one() -> None:
    wording = Wording(overhead=2, exact=True)
    first, second = ids(50), ids(50, seed=2)
    assert wording.text(first) == wording.text(first) != wording.text(second)
    longer = wording.text([*first, *second])
    assert longer.startswith(wording.text(first))
    # A size below what cannot be left out is the least there is.
    assert wording.text([5]) == f"Words: {WORDS[5]}"
