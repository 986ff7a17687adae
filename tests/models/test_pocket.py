"""The embedded model as it is committed: small, complete, and it answers with the right verb."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exo_cli.models.directory import ModelDirectory
from exo_cli.text.chat import Language
from pocket import check, evaluate

MODEL = evaluate.MODEL
WRITTEN_BY_OTHERS = Path(__file__).parent / "pocket_questions.jsonl"
MAX_BYTES = 4_000_000

Model = tuple[Any, Any]
Ask = Callable[[str], str]


@pytest.fixture(scope="module")
def model() -> Model:
    """Network and tokenizer, through mlx-lm. MLX's compiler is off: it starts g++."""
    import mlx.core as mx

    mx.disable_compile()
    return evaluate.loaded(MODEL)


@pytest.fixture(scope="module")
def ask(model: Model) -> Ask:
    return lambda question: evaluate.answer(*model, [{"role": "user", "content": question}])


def test_it_is_small_and_holds_nothing_else() -> None:
    names = {path.name for path in MODEL.iterdir()}
    assert names == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(path.stat().st_size for path in MODEL.iterdir()) <= MAX_BYTES


def test_the_directory_reader_accepts_it() -> None:
    directory = ModelDirectory.open(MODEL)
    assert directory.has_tokenizer
    assert directory.model_type == "llama"
    assert directory.config["quantization"] == {"group_size": 64, "bits": 4}
    assert directory.config["num_hidden_layers"] >= 4
    assert directory.config["tie_word_embeddings"]


def test_it_is_greedy_by_default() -> None:
    from exo_cli.drive.sampling import sampling

    assert sampling({}, MODEL).temperature == 0


@pytest.mark.parametrize(
    "text",
    ["how do I start a node?", "EXO_MEMORY=24GiB exo serve-shard --data-ports 52500-52520", "é ☃ 你好"],
)
def test_text_comes_back_from_its_ids(text: str) -> None:
    tokenizer = Language.load(MODEL).tokenizer
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_template_keeps_one_turn_of_history_and_ends_where_the_answer_begins() -> None:
    language = Language.load(MODEL)
    chat = [{"role": "user", "content": "One"}, {"role": "assistant", "content": "Two"}]
    chat += [{"role": "user", "content": "Three"}, {"role": "assistant", "content": "Four"}]
    prompt = language.chat([*chat, {"role": "user", "content": "It\u2019s FIVE "}])
    assert (
        prompt.text == "<|user|> three<|end|><|assistant|>Four<|end|><|user|> it's five<|end|><|assistant|>"
    )
    assert set(language.tokenizer.stop_ids) == {language.tokenizer.id_of("<|end|>")}


@pytest.mark.process
@pytest.mark.parametrize(
    ("question", "verb"),
    [
        ("How do I start a node?", "serve-shard"),
        ("what machines are in my cluster", "discover"),
        ("my second node isn't showing up", "discover"),
        ("unload model?", "unload"),
        ("which models are loaded right now", "ps"),
        ("how do I run llama-3.2-1b", "run"),
        ("make a new cluster key", "key"),
        ("copy the key to another machine", "key"),
        ("limit memory of a node to 24GB", "serve-shard"),
        ("what does exit code 79 mean?", "run"),
        ("split a big model over two macs", "run"),
        ("where are my settings", "config"),
        ("bash completion", "completion"),
        ("will llama-3.3-70b fit on my machines?", "plan"),
        ("make a plan.json", "plan"),
        ("how do I run a benchmark", "bench"),
        ("the gate says invalid", "bench"),
        ("does exo support rdma?", "rdma-check"),
        ("is rdma usable on Thunderbolt 4", "rdma-check"),
        ("What is the capital of France?", "run"),
    ],
)
def test_plain_questions_get_the_right_verb(ask: Ask, question: str, verb: str) -> None:
    answer = ask(question)
    assert verb in check.verbs(answer), answer
    assert not check.invented(answer), answer


@pytest.mark.process
def test_small_talk_is_answered_and_names_nothing_that_is_not_there(ask: Ask) -> None:
    for answer in map(ask, ("Hello!", "thanks", "who are you?", "how are you?")):
        assert len(answer) > 20
        assert answer.endswith((".", "?", "!"))
        assert not check.invented(answer)


@pytest.mark.process
def test_a_chat_goes_on(model: Model) -> None:
    chat = [{"role": "user", "content": "how do I start a node?"}]
    for question, verb in (("and how do I stop it?", "serve-shard"), ("which nodes are there?", "discover")):
        chat.append({"role": "assistant", "content": evaluate.answer(*model, chat)})
        chat.append({"role": "user", "content": question})
        said = evaluate.answer(*model, chat)
        assert verb in check.verbs(said), said


def measure(ask: Ask, questions: list[evaluate.Question]) -> tuple[float, float]:
    """The share with a right verb, and the share that names something that does not exist."""
    results = [evaluate.Result(question, ask(question.question)) for question in questions]
    n = len(results)
    return sum(result.right for result in results) / n, sum(bool(result.invented) for result in results) / n


def written_by_others() -> list[evaluate.Question]:
    return evaluate.read(WRITTEN_BY_OTHERS)


@pytest.mark.process
def test_a_fifth_of_the_questions_of_somebody_else(ask: Ask) -> None:
    right, invented = measure(ask, written_by_others()[::5])
    assert right >= 0.75  # of 40; the whole is measured at night
    assert invented <= 0.05


@pytest.mark.nightly
@pytest.mark.process
def test_all_questions_of_somebody_else(ask: Ask) -> None:
    questions = written_by_others()
    assert len(questions) >= 200
    right, invented = measure(ask, questions)
    assert right >= 0.8
    assert invented <= 0.05


def test_the_questions_of_development_can_be_read() -> None:
    questions = evaluate.read(evaluate.DEV)
    assert len(questions) > 150
    verbs = {verb for question in questions for verb in question.verbs}
    assert verbs <= set(check.known().options)


def test_right_is_one_of_the_verbs_or_else_nothing_invented() -> None:
    question = evaluate.Question("?", ("exo key new", "ps"))
    assert evaluate.right(question, "say `exo key show`")
    assert evaluate.right(question, "`exo ps`")
    assert not evaluate.right(question, "`exo run MODEL`")
    assert evaluate.right(evaluate.Question("hi", ()), "Hello!")
    assert not evaluate.right(evaluate.Question("hi", ()), "try `exo frobnicate`")


def test_a_file_of_questions_is_lines_of_json(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps({"question": "Q", "verbs": ["run"]}) + "\n\n")
    assert evaluate.read(path) == [evaluate.Question("Q", ("run",))]
