"""What pocket is taught: the same every time, every named verb and option there, enough ways to ask."""

from itertools import product
from random import Random

import pytest

from pocket import check, grammar, topics
from pocket.corpus import Corpus
from pocket.phrasing import slip
from pocket.topics import Intent, Topics, load

KNOWN = load()
# What cannot be said in more ways has less; the rest has at least so many lines.
FEWEST_PHRASINGS = {"okay": 1, "bye": 2}
MOST_WORDS = 55


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus(KNOWN)


def drawn(corpus: Corpus, seed: int, count: int = 300) -> list[tuple[str, str]]:
    rng = Random(seed)
    return [(turn.question, turn.answer) for _ in range(count) for turn in corpus.conversation(rng)]


def test_the_same_seed_draws_the_same_conversations(corpus: Corpus) -> None:
    assert drawn(corpus, 1) == drawn(Corpus(load()), 1)
    assert drawn(corpus, 1) != drawn(corpus, 2)


@pytest.mark.parametrize("intent", KNOWN.intents, ids=lambda intent: intent.name)
def test_answers_name_only_what_there_is(intent: Intent) -> None:
    assert intent.answers
    for answer in intent.answers:
        assert not check.invented(answer)
        assert len(answer.split()) <= MOST_WORDS
        assert intent.topic == "smalltalk" or check.verbs(answer) or "--" in answer


@pytest.mark.parametrize("intent", KNOWN.intents, ids=lambda intent: intent.name)
def test_there_are_enough_ways_to_ask(intent: Intent) -> None:
    assert len(intent.phrasings) >= FEWEST_PHRASINGS.get(intent.name, 3)
    corpus, rng = Corpus(KNOWN), Random(0)
    asked = {corpus.phraser.question(intent, rng) for _ in range(60)}
    assert len(asked) >= 30


def test_no_two_intents_are_answered_alike() -> None:
    answers = [answer for intent in KNOWN.intents for answer in intent.answers]
    assert len(set(answers)) == len(answers)


def test_every_verb_has_an_answer() -> None:
    """Whoever adds a verb adds it here, too."""
    named = {verb for intent in KNOWN.intents for answer in intent.answers for verb in check.verbs(answer)}
    assert named == {path.split()[0] for path in check.known().options if path}


def test_questions_are_lower_case_single_lines_without_slots(corpus: Corpus) -> None:
    for question, _ in drawn(corpus, 3, 3000):
        assert question
        assert question == " ".join(question.split())
        assert not set("{}|\n") & set(question)
        assert question == question.lower()


def test_some_questions_follow_from_the_turn_before(corpus: Corpus) -> None:
    rng = Random(5)
    turns = [corpus.conversation(rng) for _ in range(2000)]
    assert 0.05 < sum(len(turn) == 2 for turn in turns) / len(turns) < 0.3
    assert any(len(turn) == 2 and "stop" in turn[1].question for turn in turns)


def test_what_is_held_out_is_never_drawn() -> None:
    held = Corpus(KNOWN, hold_out=True)
    kept_back = list(held.held_out(Random(0)))
    assert len(kept_back) > 100
    assert not list(Corpus(KNOWN).held_out(Random(0)))
    intent = KNOWN.named("discover")
    lines = held._lines["discover"]
    assert 0 < len(intent.phrasings) - len(lines) < len(intent.phrasings) / 4


def test_choices_and_slots_are_expanded() -> None:
    slots = {"host": ("mac2",), "n": ("3",)}
    texts = {grammar.expand("(see|list) (all (the|my)|) nodes {n}", slots, Random(i)) for i in range(200)}
    parts = product(("see", "list"), ("all the ", "all my ", ""))
    assert texts == {f"{verb} {which}nodes 3" for verb, which in parts}


def test_slips_leave_something_to_read() -> None:
    for seed in range(500):
        assert slip("how do i do it", Random(seed))


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("`exo discover --explain` and `exo ps`", []),
        ("`exo key export -o FILE | ssh mac2 exo key join -`", []),
        ("`exo run MODEL --no-think`; --json works everywhere", []),
        ("`exo plot`", ["exo plot"]),
        ("`exo plan MODEL --bits 4`", ["--bits"]),
        ("`exo ps --watch`", ["--watch"]),
        ("`exo run MODEL --wait nodes=3`", ["--wait"]),
        ("say --nonsense", ["--nonsense"]),
        ("exo is a program", ["exo is"]),
    ],
)
def test_what_does_not_exist_is_noticed(text: str, wrong: list[str]) -> None:
    assert check.invented(text) == wrong


def test_a_line_that_means_nothing_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("topics")
    for name in ("slots.txt", "general.txt", "followups.txt"):
        (folder / name).write_text("# nothing\n")
    (folder / "a.txt").write_text("[one]\n= answer\nwhat is this\n")
    with pytest.raises(topics.BadTopic, match=r"a\.txt:3"):
        load(folder)


def test_a_followup_of_an_unknown_intent_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("topics")
    for name in ("slots.txt", "general.txt"):
        (folder / name).write_text("# nothing\n")
    (folder / "a.txt").write_text("[one]\n= answer\n? what\n")
    (folder / "followups.txt").write_text("after two\none: and then\n")
    with pytest.raises(topics.BadTopic, match="two"):
        load(folder)


def test_slots_that_are_used_are_defined() -> None:
    _all_slots_defined(KNOWN)


def _all_slots_defined(known: Topics) -> None:
    used = {
        slot
        for intent in known.intents
        for phrasing in intent.phrasings
        for slot in grammar.slots_of(phrasing.template)
    }
    assert used <= set(known.slots)
