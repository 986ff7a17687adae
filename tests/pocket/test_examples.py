"""Rows of ids for the trainer: what is predicted is what comes next; the same seed gives the same rows."""

from itertools import islice
from random import Random

import numpy as np
import pytest

from pocket import vocabulary
from pocket.corpus import Corpus
from pocket.examples import COLUMNS, NOTHING, ROWS, Batch, Examples
from pocket.topics import load


@pytest.fixture(scope="module")
def examples() -> Examples:
    corpus = Corpus(load())
    return Examples(corpus, vocabulary.train(corpus, 0, sample=4000))


def drawn(examples: Examples, seed: int, count: int = 3) -> list[Batch]:
    return list(islice(examples.batches(Random(seed)), count))


def test_what_is_predicted_is_the_next_id_of_the_same_document(examples: Examples) -> None:
    for batch in drawn(examples, 1):
        ids, document = batch.ids.flatten(), batch.document.flatten()
        real = batch.said_weight > 0
        at = batch.said_at[real]
        assert np.array_equal(ids[at + 1], batch.said[real])
        assert np.array_equal(document[at], document[at + 1])
        assert np.array_equal(at // COLUMNS, (at + 1) // COLUMNS)


def test_rows_are_full_and_count_from_nought_in_each_document(examples: Examples) -> None:
    for batch in drawn(examples, 2):
        assert batch.ids.shape == (ROWS, COLUMNS)
        assert batch.tokens > 0.9 * ROWS * COLUMNS
        begins = batch.position == 0
        starts = np.diff(batch.document, axis=1, prepend=-2) != 0
        assert np.array_equal(begins[batch.document >= 0], starts[batch.document >= 0])


def test_intents_are_asked_for_where_an_answer_begins(examples: Examples) -> None:
    tokenizer = examples.tokenizer
    assistant = tokenizer.token_to_id(vocabulary.ASSISTANT)
    for batch in drawn(examples, 3):
        real = batch.asked != NOTHING
        places = set(batch.asked_at[real].tolist())
        starts = np.flatnonzero(batch.ids.flatten() == assistant)
        # What is cut off at the end of a row is not asked for.
        assert np.mean([int(start) in places for start in starts]) > 0.95
        assert batch.asked[real].max() < len(examples.numbers)


def test_every_answer_is_told_from_all_others_before_it_ends(examples: Examples) -> None:
    answers = [answer for intent in examples.corpus.known.intents for answer in intent.answers]
    for answer in answers:
        ids = examples.encode(answer)
        prefix = ids[: examples.decided(answer) + 1]
        assert sum(examples.encode(other)[: len(prefix)] == prefix for other in answers) == 1


def test_the_same_seed_draws_the_same_rows(examples: Examples) -> None:
    one, two = drawn(examples, 4), drawn(examples, 4)
    assert all(
        np.array_equal(a.ids, b.ids) and np.array_equal(a.said, b.said) for a, b in zip(one, two, strict=True)
    )
    assert not np.array_equal(one[0].ids, drawn(examples, 5)[0].ids)
